"""The kernel for GPUs gives the bits of the JAX code; without a GPU it is interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import LOW, random_int8

from int_lm import native
from int_lm.model import layers, perturb
from int_lm.model.layers import shift_for
from int_lm.native import dispatch, gpu

INTERPRET = not native.on_gpu()
# rows, inputs, outputs: one tile, several of every kind, tiles of unequal sides
SHAPES = [(32, 32, 32), (256, 384, 256), (96, 160, 64)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (SHAPES[0], jnp.int16),
        *(pytest.param(shape, jnp.int8, marks=pytest.mark.slow) for shape in SHAPES),
    ],
)
@pytest.mark.parametrize("extreme", [False, True])
def test_linear(shape: tuple[int, int, int], dtype: type, extreme: bool) -> None:
    rows, inputs, outputs = shape
    draw = functools.partial(random_int8, np.random.default_rng(rows), extreme=extreme)
    x_PN, weight_MN = draw(rows, inputs), draw(outputs, inputs)
    noises = [jnp.asarray(draw(rows // 2, size, 1)) for size in (outputs, inputs)]
    assert gpu.tile_of(*shape) is not None
    for left, right in ((None, None), noises):
        weight = perturb.Weight(jnp.asarray(weight_MN), left, right, shift=LOW)
        operands = weight, jnp.asarray(x_PN), shift_for(inputs), dtype
        got = gpu.linear(*operands, interpret=INTERPRET)
        assert got is not NotImplemented and got.dtype == dtype
        assert np.array_equal(got, layers.narrowed.by_jax(*operands))


def test_shapes_without_whole_tiles_have_none() -> None:
    assert gpu.tile_of(64, 64, 48) is None
    assert gpu.tile_of(2, 64, 64) is None
    assert gpu.tile_of(384, 96, 256) == gpu.Tile(128, 128, 32)


def test_it_is_for_gpus_and_for_rank_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x_PN = jnp.ones((64, 64), jnp.int8)

    def weight(rank: int) -> perturb.Weight:
        noise = jnp.ones((32, 64, rank), jnp.int8)
        return perturb.Weight(jnp.ones((64, 64), jnp.int8), noise, noise, shift=LOW)

    def program(rank: int, x_PN: jax.Array) -> str:
        # a function of its own each time, for a trace is kept by function
        return str(jax.make_jaxpr(lambda weight, x: layers.linear(weight, x))(weight(rank), x_PN))

    assert gpu.linear(weight(2), x_PN, 7, jnp.int8) is NotImplemented
    assert gpu.linear(weight(1), x_PN[:10], 7, jnp.int8) is NotImplemented
    monkeypatch.setattr(dispatch, "on_gpu", lambda: False)
    assert "pallas_call" not in program(1, x_PN)
    monkeypatch.setattr(dispatch, "on_gpu", lambda: True)
    assert "pallas_call" not in program(2, x_PN)
    assert "pallas_call" in program(1, x_PN) and "float" not in program(1, x_PN)
    monkeypatch.undo()
    if INTERPRET:  # a program for CPUs is the same whatever the kernel
        assert "pallas_call" not in program(1, x_PN)
