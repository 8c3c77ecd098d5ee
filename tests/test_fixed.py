"""Fixed-point arithmetic: every operation equals integer arithmetic on all or extreme inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX, INT32_MAX

EXTREMES = [0, 1, -1, 126, 127, 128, -127, -128, -129, 255, 256, 2**15, 2**30, -(2**30)]
LIMITS = [INT32_MAX, -INT32_MAX, -INT32_MAX - 1]


def test_saturate_clips_to_127_on_both_sides():
    """No int32 becomes -128, and everything within range is kept."""
    x = [*EXTREMES, *LIMITS, *range(-300, 300)]
    narrowed = fixed.saturate(jnp.array(x, jnp.int32))
    assert narrowed.dtype == jnp.int8
    assert narrowed.tolist() == [oracle.saturate(entry) for entry in x]
    assert fixed.saturate(jnp.array([-128, 127], jnp.int8)).tolist() == [-127, 127]


@pytest.mark.parametrize("bits", [0, 1, 4, 8, 15, 30])
def test_shifts_round_as_they_say(bits: int):
    """`shift_down` rounds halves up, `shift_floor` towards minus infinity."""
    x = [*EXTREMES, *range(-600, 600)]
    array = jnp.array(x, jnp.int32)
    assert fixed.shift_floor(array, bits).tolist() == [oracle.shift_floor(n, bits) for n in x]
    inside = [n for n in x if abs(n) + 2**bits // 2 <= INT32_MAX]
    down = fixed.shift_down(jnp.array(inside, jnp.int32), bits)
    assert down.tolist() == [oracle.shift_down(n, bits) for n in inside]


def test_shift_floor_takes_every_int32():
    """The smallest and the largest int32 shift without wrapping."""
    array = jnp.array(LIMITS, jnp.int32)
    assert fixed.shift_floor(array, 31).tolist() == [0, -1, -1]
    assert fixed.shift_floor(array, 8).tolist() == [n >> 8 for n in LIMITS]


@pytest.mark.parametrize("inputs", [1, 7, 64, 300])
def test_dot_accumulates_in_int32(inputs: int):
    """int8 dots equal wide integer dots, at all +-127 as at random."""
    random = np.random.default_rng(inputs)
    x = random.integers(-127, 128, (5, inputs))
    weight = random.integers(-127, 128, (3, inputs))
    x[0], x[1], x[2], weight[0], weight[1] = 127, -127, 0, 127, -127
    acc = fixed.dot(jnp.asarray(x.astype(np.int8)), jnp.asarray(weight.astype(np.int8)))
    assert acc.dtype == jnp.int32
    assert acc.tolist() == (x @ weight.T).tolist()


def test_dot_is_exact_at_the_widest_model_that_config_allows():
    """2 N 127^2 < 2^31, the bound of `config.validate`, leaves room for the perturbation."""
    inputs = INT32_MAX // (2 * INT8_MAX**2)
    full = jnp.full((1, inputs), INT8_MAX, jnp.int8)
    assert fixed.dot(full, full).tolist() == [[inputs * INT8_MAX**2]]
    assert fixed.dot(full, -full).tolist() == [[-inputs * INT8_MAX**2]]


def test_floor_divide_is_exact_for_every_dividend_and_divisor():
    """All |dividend| <= 127^2 by all divisors 1..127, and up to the stated 2^14 - 1."""
    dividend = np.arange(-(2**14) + 1, 2**14, dtype=np.int32)
    divisor = np.arange(1, 128, dtype=np.int32)
    quotient = jax.jit(fixed.floor_divide)(
        jnp.asarray(np.repeat(dividend[:, None], 127, axis=1)), jnp.asarray(divisor[None, :])
    )
    np.testing.assert_array_equal(quotient, dividend[:, None] // divisor[None, :])


def test_integer_sqrt_is_the_floor_of_the_root():
    """Exact at 0, at perfect squares and their neighbours, and at the largest int32."""
    roots = np.concatenate([np.arange(0, 2000), np.arange(46000, 46341), 2 ** np.arange(16)])
    around = (roots.astype(np.int64)[:, None] ** 2 + np.array([-1, 0, 1])).reshape(-1)
    x = np.append(around[(around >= 0) & (around <= INT32_MAX)], INT32_MAX)
    expected = [math.isqrt(int(n)) for n in x]
    assert jax.jit(fixed.integer_sqrt)(jnp.asarray(x.astype(np.int32))).tolist() == expected


# -- Dither ----------------------------------------------------------------------------------------

COORDINATES = [0, 1, 2, 255, 65535, 2**20 + 7, INT32_MAX]


@pytest.mark.parametrize("bits", [1, 4, 11, 16, 23, 31])
def test_dither_equals_the_oracle(bits: int):
    """At small and extreme coordinates, of either integer dtype, every word in [0, 2^bits)."""
    row, column, position = np.meshgrid(*[COORDINATES] * 3, indexing="ij")
    words = fixed.dither(
        jnp.asarray(row.astype(np.int32)),
        jnp.asarray(column.astype(np.int32)),
        jnp.asarray((position + 2**31).astype(np.uint32)),
        bits,
    )
    assert words.dtype == jnp.int32
    assert int(words.min()) >= 0 and int(words.max()) < 2**bits
    expected = [
        oracle.dither(r, c, p + 2**31, bits)
        for r, c, p in zip(
            *(grid.reshape(-1).tolist() for grid in (row, column, position)), strict=True
        )
    ]
    assert words.reshape(-1).tolist() == expected


def test_dither_depends_on_its_coordinates_only():
    """Any part of a grid, and any broadcast shape, gives the words that the whole grid has."""
    rows, columns, positions = (jnp.arange(n, dtype=jnp.int32) for n in (5, 7, 3))
    grid = fixed.dither(rows[:, None, None], columns[None, :, None], positions[None, None], 12)
    assert grid.shape == (5, 7, 3)
    part = fixed.dither(rows[2:4, None, None], columns[None, 6:, None], positions[None, None], 12)
    np.testing.assert_array_equal(part, grid[2:4, 6:])
    assert fixed.dither(rows[3], columns[2], positions[1], 12) == grid[3, 2, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 12345, 2**31 - 2**12])
def test_dither_spreads_evenly_along_every_axis(axis: int, start: int):
    """Of 2^k consecutive words the share below any limit is right to a few 2^-k, as is the mean.

    The star discrepancy of an additive sequence grows with k; that of random words is 0.87 2^(k/2)
    of these units: 14 for k = 8, 56 for k = 12.
    """
    for log2_count in (4, 8, 12, 16):
        count = 1 << log2_count
        coordinates = [jnp.full(1, 77, jnp.int32)] * 3
        coordinates[axis] = jnp.asarray(np.arange(start, start + count).astype(np.uint32))
        words = np.sort(np.asarray(fixed.dither(*coordinates, 31))) / 2**31
        steps = np.arange(count + 1) / count
        discrepancy = max(np.abs(words - steps[:-1]).max(), np.abs(words - steps[1:]).max())
        assert discrepancy < (3 + log2_count / 4) / count
        assert abs(words.mean() - 0.5) < 2.5 / count


def test_dither_rounds_without_bias():
    """Numbers rounded down after a dither have the right sum, along an axis and over a grid."""
    numbers = [-513, -256, -255, -3, 0, 1, 100, 255, 300]
    columns = jnp.arange(256, dtype=jnp.int32)
    grid = fixed.dither(columns[:, None], columns[None], jnp.int32(5), 8)
    for number in numbers:
        rounded = np.asarray((number + grid) >> 8)
        assert set(np.unique(rounded)) <= {number >> 8, (number >> 8) + 1}
        assert abs(rounded.mean() - number / 256) < 1e-3
        assert np.abs(rounded.mean(axis=0) - number / 256).max() < 2e-2
        assert np.abs(rounded.mean(axis=1) - number / 256).max() < 2e-2
