"""What architectures share: the norm, its transposed derivative and saturating sums."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX, INT32_MAX
from int_lm.model import layers

WIDTH = 8
CREDIT_MAX = (1 << fixed.CREDIT_BITS) - 1
norm = jax.jit(layers.norm)
norm_credit = jax.jit(layers.norm_credit)


def streams(width: int) -> np.ndarray:
    """Residual streams of every mean magnitude: constant, one-hot, random; int64 [rows, width]."""
    random = np.random.default_rng(width)
    rows = [np.full(width, level) for level in (0, 1, -1, 2, 127, -127)]
    rows += [np.eye(width, dtype=np.int64)[0] * level for level in (1, 7, 127, -127)]
    rows += [random.integers(-most, most + 1, width) for most in (1, 3, 20, 127) for _ in range(9)]
    return np.stack(rows)


def int32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.astype(np.int32))


@pytest.mark.parametrize("width", [1, 2, WIDTH, 33])
def test_norm_equals_the_oracle(width: int):
    """Mean magnitudes from 0 to 127 and gains at +-127: products saturate, no mean is 0."""
    x = streams(width)
    for gain in (np.full(width, 127), np.full(width, -127), np.arange(width) * 30 % 255 - 127):
        gains = np.broadcast_to(gain, x.shape)
        y = norm(int32(gains), jnp.asarray(x.astype(np.int8)))
        assert y.dtype == jnp.int8
        assert y.tolist() == [oracle.norm(gain.tolist(), row) for row in x.tolist()]


def test_plus_adds_in_int32_and_saturates():
    """Sums of several int8 and int32 arrays never wrap, and -128 never occurs."""
    terms = [[127, -127, 100, -64], [127, -127, -100, -64], [127, -127, 5, 0]]
    narrow = [jnp.array(term, jnp.int8) for term in terms]
    assert layers.plus(*narrow).dtype == jnp.int8
    assert layers.plus(*narrow).tolist() == [127, -127, 5, -127]
    assert layers.plus(narrow[0], jnp.array([-(2**20)] * 4, jnp.int32)).tolist() == [-127] * 4


@pytest.mark.parametrize("width", [1, 2, WIDTH, 33])
def test_norm_credit_equals_the_oracle(width: int):
    """Streams of every magnitude, gains and credits up to the most there is, of either sign."""
    random = np.random.default_rng(width)
    x = streams(width)
    for most_gain, most_credit in ((16, 300), (127, CREDIT_MAX), (3, CREDIT_MAX), (127, 2)):
        gain = random.integers(-most_gain, most_gain + 1, x.shape)
        credit = random.integers(-most_credit, most_credit + 1, x.shape)
        gain[::3], credit[::4] = most_gain, most_credit * np.sign(x[::4] + 0.5)
        gain[1::5], credit[2::7] = -most_gain, 0
        result = norm_credit(int32(gain), jnp.asarray(x.astype(np.int8)), int32(credit))
        assert result.dtype == jnp.int32
        assert result.tolist() == [
            oracle.norm_credit(*row)
            for row in zip(gain.tolist(), x.tolist(), credit.tolist(), strict=True)
        ]
        assert int(jnp.max(jnp.abs(result))) < 2**14


def test_responses_are_differences_of_the_effect():
    """At every value of an output, the ends included: none leaves its range, nor does an answer.

    Effects of two outputs, of which one moves at a time: linear, steep, constant, products.
    """
    one = np.arange(-INT8_MAX, INT8_MAX + 1)
    two = np.random.default_rng(0).permutation(one)
    both = [np.stack([each] * 5, axis=1) for each in (one, two)]

    def effects(one: Any, two: Any) -> list[Any]:
        narrow = (one * two).clip(-INT8_MAX, INT8_MAX)
        return [one - two, 100 * one + two, narrow, 0 * one + 127, one * one - 300 * two]

    def of_outputs(one: jax.Array, two: jax.Array) -> jax.Array:
        columns = effects(*(each[:, 0].astype(jnp.int32) for each in (one, two)))
        return jnp.stack(columns, axis=1)

    found = jax.jit(functools.partial(layers.responses, of_outputs))(
        *(jnp.asarray(each.astype(np.int8)) for each in both)
    )
    up, down = (
        [*effects((one + by).clip(-127, 127), two), *effects(one, (two + by).clip(-127, 127))]
        for by in (16, -16)
    )
    assert found.dtype == jnp.int8
    np.testing.assert_array_equal(found, (np.stack(up) - np.stack(down)).T.clip(-127, 127))
    assert found[0, 0] == found[-1, 0] == 16 and found[127, 0] == 32, "half of a step at the ends"


def real_norm_credit(gain: np.ndarray, x: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """Transposed derivative of g x / mean|x| applied to the credit, by central differences."""
    weighted, step, result = gain * credit, 1e-6, np.zeros_like(x)
    for k in range(len(x)):
        moved = np.repeat(x[None], 2, axis=0)
        moved[:, k] += step, -step
        plus, minus = (weighted * row / np.abs(row).mean() for row in moved)
        result[k] = (plus - minus).sum() / (2 * step)
    return result


@pytest.mark.parametrize("magnitude", [6, 16, 40, 100])
@pytest.mark.parametrize("gain_of", [16, 40])
def test_norm_credit_is_the_derivative_of_the_norm(magnitude: int, gain_of: int):
    """Against central differences in float64, for credits near 2^10 / gain.

    Roundings, in units of the result: of c and of the last quotient 1/2 each of a unit divided by
    m or of 1/4; of the sum along x one of 4/m, doubled by the integer mean. The integer mean
    differs from the real one by a relative 1/m, and so does the result, twice in its second term.
    """
    random = np.random.default_rng(magnitude)
    width = 64
    for _ in range(8):
        x = np.clip(np.rint(random.laplace(0, magnitude, width)), -127, 127)
        x[x == 0] = 1  # where the magnitude has a kink
        gain = random.integers(gain_of // 2, 3 * gain_of // 2, width).astype(np.float64)
        credit = np.rint(random.normal(0, 2**10 * 16 / gain_of, width)).clip(
            -CREDIT_MAX, CREDIT_MAX
        )
        real = real_norm_credit(gain / 16, x, credit)
        rows = (gain[None], x[None], credit[None])
        result = norm_credit(int32(rows[0]), jnp.asarray(rows[1].astype(np.int8)), int32(rows[2]))
        mean = np.abs(x).mean()
        off = np.asarray(result)[0] / 2**fixed.CREDIT_FRACTION_BITS - real
        along = np.abs((x * gain * credit).mean() / 16 / mean / mean)
        bound = 0.125 + 7 / mean + (np.abs(real) + 2 * along) / (mean - 1)
        assert np.all(np.abs(off) <= bound), np.max(np.abs(off) / bound)
        assert np.corrcoef(np.asarray(result)[0], real)[0, 1] > 0.999


def test_norm_credit_is_exact_at_the_widest_model_that_config_allows():
    """The sum over D 127 2^12 < 2^31, all of one sign, and its opposite: nothing wraps."""
    width = INT32_MAX // (INT8_MAX * 2**12)
    for sign in (1, -1):
        x = jnp.full((1, width), 127, jnp.int8)
        gain, credit = (jnp.full((1, width), n, jnp.int32) for n in (127, sign * CREDIT_MAX))
        expected = oracle.norm_credit([127], [127], [sign * CREDIT_MAX])
        assert np.unique(np.asarray(norm_credit(gain, x, credit))).tolist() == expected
        crossed = jnp.asarray(np.where(np.arange(width) % 2, 127, -127)[None].astype(np.int8))
        result = norm_credit(gain, crossed, sign * jnp.sign(crossed).astype(jnp.int32) * CREDIT_MAX)
        plain = oracle.norm_credit([127] * 2, [-127, 127], [-sign * CREDIT_MAX, sign * CREDIT_MAX])
        assert result[0, :2].tolist() == plain


def test_a_gain_that_is_no_weight_has_the_shape_of_the_stream():
    """int32, one entry for every channel of every member."""
    gain = layers.constant_gain(16, jnp.zeros((3, 4), jnp.int8))
    assert gain.dtype == jnp.int32 and gain.tolist() == [[16] * 4] * 3
