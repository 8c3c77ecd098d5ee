"""The kernels that votes are made with give the bits of the JAX code they stand in for."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import PATHS

from int_lm import credit, native, units
from int_lm.credit import Rounding
from int_lm.likelihood import NO_TARGET
from int_lm.perturb import Weight

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built")
KERNELS = ("errors", "stream", "through", "unit")
LENGTH = 3
Both = Callable[..., np.ndarray]


@pytest.fixture(params=PATHS, ids=["widest", "avx2"])
def both(request, monkeypatch) -> Both:
    """Calls a function with kernels, of the one or the other path, and without: the same."""
    for name in KERNELS:
        kernel = functools.partial(getattr(native, name), avx2_only=request.param)
        monkeypatch.setattr(native, name, kernel)

    def call(function: Callable[..., jax.Array], *operands: Any) -> np.ndarray:
        with_kernels = jax.jit(lambda *operands: function(*operands))
        assert "int_lm_" in with_kernels.lower(*operands).as_text()
        got = np.asarray(with_kernels(*operands))
        with monkeypatch.context() as patch:
            patch.setattr(native, "either", lambda kernel, otherwise: otherwise())
            want = np.asarray(jax.jit(lambda *operands: function(*operands))(*operands))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
        return got

    return call


def drawing(seed: int, extreme: bool) -> Callable[..., jax.Array]:
    """Draws int8 arrays within +-most; the two ends only, if `extreme`."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, most: int = 127) -> jax.Array:
        ends = random.choice([-most, most], shape)
        found = ends if extreme else random.integers(-most, most + 1, shape)
        return jnp.asarray(found.astype(np.int8))

    return draw


def rounding(pairs: int, spare_bits: int) -> Rounding:
    """Pairs and a step so far on that every product of the dither wraps."""
    numbers = np.random.default_rng(pairs).integers(0, 2**30, pairs).astype(np.int32)
    return Rounding(jnp.asarray(numbers), jnp.uint32(2**31 + 5), spare_bits)


cases = pytest.mark.parametrize("spare_bits, extreme", [(0, False), (3, True)])


@cases
@pytest.mark.parametrize(
    "dtype, vocabulary", [(np.int8, 11), (np.int8, 300), (np.int16, 256), (np.int16, 300)]
)
def test_errors(both: Both, dtype: type, vocabulary: int, spare_bits: int, extreme: bool) -> None:
    """Every logit alike, the two ends, padding and real targets; both forms of the sum."""
    random, shape = np.random.default_rng(vocabulary), (LENGTH, 4, vocabulary)
    most = np.iinfo(dtype).max if extreme else 90
    logits = random.choice([-most, most], shape) if extreme else random.integers(-90, 91, shape)
    logits[0, 0] = logits[0, 0, 0]
    targets = random.integers(0, vocabulary, shape[:2])
    targets[1] = NO_TARGET
    errors = both(
        lambda *operands: credit.readout_errors(*operands, rounding(4, spare_bits)),
        jnp.asarray(logits.astype(dtype)),
        jnp.asarray(targets.astype(np.int32)),
    )
    assert not np.any(errors[1]) and np.abs(errors).max() <= 127 >> spare_bits


def test_errors_of_the_largest_vocabulary(both: Both) -> None:
    """Of 65 536 tokens, all as likely: the largest sum there is."""
    logits, targets = jnp.zeros((1, 2, 65536), jnp.int16), jnp.array([[5, 65535]])
    errors = both(
        lambda *operands: credit.readout_errors(*operands, rounding(2, 0)), logits, targets
    )
    assert np.count_nonzero(errors[0, 0] > 0) == 1


@cases
@pytest.mark.parametrize(
    "pairs, width, most, gain", [(1, 1, 3, 16), (3, 33, 0, -127), (4, 130, 127, 127)]
)
def test_stream(
    both: Both, pairs: int, width: int, most: int, gain: int, spare_bits: int, extreme: bool
) -> None:
    """Large, small and no weights of the head, whose level shifts to either side."""
    draw = drawing(width, extreme)
    both(
        lambda *operands: credit.of_stream(*operands, rounding(pairs, spare_bits)),
        jnp.full((LENGTH, pairs, width), gain, jnp.int32),
        draw(LENGTH, pairs, width, most=max(1, most)),
        draw(21, width, most=most),
        draw(LENGTH, pairs, 21, most=127 >> spare_bits),
    )


@cases
@pytest.mark.parametrize("pairs, columns, most", [(1, 1, 127), (3, 33, 3), (4, 130, 0)])
def test_through(
    both: Both, pairs: int, columns: int, most: int, spare_bits: int, extreme: bool
) -> None:
    draw = drawing(columns, extreme)
    both(
        lambda *operands: credit.through(*operands, rounding(pairs, spare_bits)),
        draw(66, columns, most=most),
        draw(LENGTH, pairs, 66),
    )


@cases
@pytest.mark.parametrize("rank, pairs, effects", [(1, 4, 33), (2, 1, 1), (3, 3, 130), (4, 2, 16)])
def test_unit(
    both: Both, pairs: int, effects: int, rank: int, spare_bits: int, extreme: bool
) -> None:
    """Outputs that share effects, and the largest perturbations there are."""
    draw = drawing(effects, extreme)
    operands = draw(LENGTH, pairs, 37), draw(LENGTH, pairs, effects), draw(LENGTH, pairs, effects)
    left, right = draw(pairs, 3 * effects, rank, most=69), draw(pairs, 37, rank, most=69)
    both(
        lambda left, right, *operands: units.operand(
            Weight(left, left, right), *operands, rounding(pairs, spare_bits)
        ),
        *(left, right, *operands),
    )


def test_in_a_loop_over_layers(both: Both) -> None:
    """As in `votes.of_segment`: every layer with weights of its own."""
    draw = drawing(0, extreme=False)
    values, credit_TID = draw(3, 8, 12), draw(LENGTH, 2, 8)
    both(
        lambda values, of: jax.lax.map(
            lambda value: credit.through(value, of, rounding(2, 0)), values
        ),
        *(values, credit_TID),
    )
