"""The kernel for GPUs gives the bits of the JAX code; without a GPU it is interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import LOW, by_jax, random_int8

from int_lm import native
from int_lm.model import perturb
from int_lm.model.perturb import shift_for
from int_lm.native import triton

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
    tile = triton.tile_of(*shape)
    assert tile is not None
    for left, right in ((None, None), noises):
        weight = perturb.Weight(jnp.asarray(weight_MN), left, right, shift=LOW)
        got = triton.linear(
            jnp.asarray(x_PN),
            weight.value,
            left,
            right,
            tile,
            low=LOW,
            high=shift_for(inputs),
            dtype=dtype,
            interpret=INTERPRET,
        )
        assert got.dtype == dtype
        assert np.array_equal(got, by_jax(weight, x_PN, dtype))


def test_shapes_without_whole_tiles_have_none() -> None:
    assert triton.tile_of(64, 64, 48) is None
    assert triton.tile_of(2, 64, 64) is None
    assert triton.tile_of(384, 96, 256) == triton.Tile(128, 128, 32)


def test_it_is_for_gpus_and_for_rank_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x_PN = jnp.ones((64, 64), jnp.int8)

    def weight(rank: int) -> perturb.Weight:
        noise = jnp.ones((32, 64, rank), jnp.int8)
        return perturb.Weight(jnp.ones((64, 64), jnp.int8), noise, noise, shift=LOW)

    monkeypatch.setattr(native, "on_gpu", lambda: False)
    assert perturb._on_gpu(weight(1), x_PN, jnp.int8) is None
    monkeypatch.setattr(native, "on_gpu", lambda: True)
    assert perturb._on_gpu(weight(2), x_PN, jnp.int8) is None
    assert perturb._on_gpu(weight(1), x_PN[:10], jnp.int8) is None
    # two functions, for a trace is kept by function
    program = str(jax.make_jaxpr(lambda weight, x: perturb.linear(weight, x))(weight(1), x_PN))
    assert "pallas_call" in program and "float" not in program
    monkeypatch.undo()
    if INTERPRET:  # a program for CPUs is the same whatever the kernel
        program = str(jax.make_jaxpr(lambda weight, x: perturb.linear(weight, x))(weight(1), x_PN))
        assert "pallas_call" not in program
