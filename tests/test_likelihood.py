"""Log-likelihood in integers: equal to the oracle, within its stated error of real arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm.arithmetic import constants, fixed
from int_lm.limits import LOG2_FRACTION_BITS, WORST_BITS_PER_TOKEN
from int_lm.model import likelihood

UNIT = 2.0**-LOG2_FRACTION_BITS
VOCABULARIES = [2, 3, 17, 255, 256, 257, 300, 1000, 4096, 32000, 65536]
log2_likelihood = jax.jit(likelihood.log2_likelihood)
errors = jax.jit(likelihood.errors, static_argnums=2)


def worst_distance(vocab_size: int) -> tuple[int, float]:
    """The distance at which V - 1 equal logits make the rounded exp2 sum most wrong, in bits."""
    bits = (
        likelihood.NARROW_BITS
        if vocab_size <= likelihood.NARROW_VOCABULARY
        else likelihood.WIDE_BITS
    )
    real = 2.0 ** (bits - np.arange(255) / 16)
    rounded = constants.exp2(bits).astype(np.float64)
    error = np.abs(
        np.log2((2.0**bits + (vocab_size - 1) * rounded) / (2.0**bits + (vocab_size - 1) * real))
    )
    return int(error.argmax()), float(error.max())


def rows_of(vocab_size: int) -> np.ndarray:
    """Random and adversarial logits, int8 [rows, V]."""
    random = np.random.default_rng(vocab_size)
    rows = [random.integers(-127, 128, vocab_size) for _ in range(4)]
    rows += [np.clip(np.rint(random.normal(0, s, vocab_size)), -127, 127) for s in (1, 16, 60)]
    rows += [np.full(vocab_size, level) for level in (-127, 0, 127)]
    for distance in (1, 16, 120, 200, 240, 254, worst_distance(vocab_size)[0]):
        rows.append(np.where(np.arange(vocab_size) == vocab_size // 2, 127, 127 - distance))
    rows.append(np.where(np.arange(vocab_size) % 2, 127, -127))
    return np.stack(rows).astype(np.int8)


def real_log2_likelihoods(logits_PV: np.ndarray, targets_P: np.ndarray) -> np.ndarray:
    """log2 p(target) in float64."""
    bits = logits_PV.astype(np.float64) / 16
    bits -= bits.max(axis=1, keepdims=True)
    return bits[np.arange(len(bits)), targets_P] - np.log2(np.exp2(bits).sum(axis=1))


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_likelihood_equals_the_oracle_and_real_arithmetic_within_the_bound(vocab_size: int):
    """Random and adversarial logits of every vocabulary: bit for bit, and within ERROR_BOUND."""
    logits = rows_of(vocab_size)
    targets = np.stack([logits.argmax(axis=1), logits.argmin(axis=1)]).astype(np.int32)
    for targets_P in targets:
        integers = np.asarray(log2_likelihood(jnp.asarray(logits), jnp.asarray(targets_P)))
        assert integers.dtype == np.int32
        assert integers.max() <= 0 and integers.min() >= -(WORST_BITS_PER_TOKEN << 16)
        error = np.abs(integers * UNIT - real_log2_likelihoods(logits, targets_P))
        assert error.max() < likelihood.ERROR_BOUND
        for row in range(len(logits)) if vocab_size <= 1000 else (0, 8, -2):
            plain, target = logits[row].tolist(), int(targets_P[row])
            assert integers[row] == oracle.log2_likelihood(plain, target)


def test_the_error_bound_is_true_and_tight():
    """The exp2 table's worst case and the logarithm's rounding stay below it, yet come near."""
    from_table = max(worst_distance(size)[1] for size in (*VOCABULARIES, *range(2, 65537, 111)))
    mantissa = np.random.default_rng(0).integers(2**30, 2**31, 2**20)
    log2 = np.asarray(likelihood._log2_normalised(jnp.asarray(mantissa.astype(np.int32)))) * UNIT
    from_log2 = float(np.abs(log2 - np.log2(mantissa / 2**30)).max())
    assert 0.5 * UNIT < from_log2 < 0.55 * UNIT
    total = from_table + from_log2
    assert 0.9 * likelihood.ERROR_BOUND < total < likelihood.ERROR_BOUND
    narrow = worst_distance(likelihood.NARROW_VOCABULARY)[1]
    assert (round(from_table / UNIT, 2), round(narrow / UNIT, 2)) == (5.16, 2.80)  # the docstring


@pytest.mark.parametrize("bits", range(1, 17))
def test_a_uniform_model_of_a_power_of_two_is_exact(bits: int):
    """2^k equally likely tokens cost k bits, whatever the common logit: 256 cost exactly 8."""
    for level in (-127, 0, 127):
        logits = jnp.full((1, 2**bits), level, jnp.int8)
        target = jnp.array([2**bits - 1], jnp.int32)
        assert log2_likelihood(logits, target).tolist() == [-bits << LOG2_FRACTION_BITS]


def test_a_certain_model_pays_nothing_and_a_wrong_one_all():
    """The extremes: p near 1 costs 0, and the worst case stays under WORST_BITS_PER_TOKEN."""
    certain = jnp.array([[127, -127]], jnp.int8)
    cost = log2_likelihood(certain, jnp.array([0], jnp.int32))
    assert -2 <= int(cost[0]) <= 0
    worst = jnp.full((1, 65536), 127, jnp.int8).at[0, 7].set(-127)
    bits = constants.bits(int(log2_likelihood(worst, jnp.array([7], jnp.int32))[0]))
    assert WORST_BITS_PER_TOKEN - 0.2 < bits < WORST_BITS_PER_TOKEN


def test_probabilities_sum_to_one():
    """Summed over all targets, 2^log2 p is 1 within the error bound."""
    logits = rows_of(300)[4:5]
    everywhere = jnp.asarray(np.repeat(logits, 300, axis=0))
    log2 = np.asarray(log2_likelihood(everywhere, jnp.arange(300, dtype=jnp.int32))) * UNIT
    assert abs(np.log2(np.exp2(log2).sum())) < likelihood.ERROR_BOUND


def test_likelihood_ignores_a_common_shift_and_the_order_of_tokens():
    """Only differences of logits count."""
    random = np.random.default_rng(1)
    logits = random.integers(-100, 100, (6, 50)).astype(np.int8)
    targets = random.integers(0, 50, 6).astype(np.int32)
    plain = log2_likelihood(jnp.asarray(logits), jnp.asarray(targets))
    shifted = log2_likelihood(jnp.asarray(logits + np.int8(20)), jnp.asarray(targets))
    order = random.permutation(50)
    places = np.argsort(order)[targets].astype(np.int32)
    reordered = log2_likelihood(jnp.asarray(logits[:, order]), jnp.asarray(places))
    assert plain.tolist() == shifted.tolist() == reordered.tolist()


# -- Wider logits ----------------------------------------------------------------------------------


def wide_rows(vocab_size: int) -> np.ndarray:
    """Logits of 16 bits, some within the floor of the largest, some far below: int16 [rows, V]."""
    random = np.random.default_rng(vocab_size)
    rows = [random.integers(-most, most + 1, vocab_size) for most in (150, 500, 2**15 - 1)]
    rows += [np.full(vocab_size, level) for level in (-(2**15) + 1, 0, 2**15 - 1)]
    for distance in (253, 254, 255, 2**16 - 2):
        rows.append(np.where(np.arange(vocab_size) == vocab_size // 2, 2**15 - 1, 0))
        rows[-1] = np.where(rows[-1] == 0, 2**15 - 1 - distance, rows[-1])
    return np.stack(rows).astype(np.int16)


@pytest.mark.parametrize("vocab_size", [2, 17, 256, 257, 1000])
def test_a_logit_far_below_the_largest_counts_as_254_below_it(vocab_size: int):
    """Logits of 16 bits: equal to the oracle, and to the likelihood of the int8 logits they are."""
    logits = wide_rows(vocab_size)
    narrow = np.maximum(logits.astype(np.int32) - logits.max(axis=1, keepdims=True), -254) + 127
    for targets_P in (logits.argmax(axis=1), logits.argmin(axis=1)):
        targets = jnp.asarray(targets_P.astype(np.int32))
        result = log2_likelihood(jnp.asarray(logits), targets)
        same = log2_likelihood(jnp.asarray(narrow.astype(np.int8)), targets)
        np.testing.assert_array_equal(result, same)
        assert result.tolist() == [
            oracle.log2_likelihood(row, target)
            for row, target in zip(logits.tolist(), targets_P.tolist(), strict=True)
        ]


# -- Errors ----------------------------------------------------------------------------------------

SCALES = [127, 63, 31, 15, 7]  # 127 >> limits.spare_bits


def dithers_of(shape: tuple[int, ...]) -> jax.Array:
    """Dithers as `votes` makes them, int32 [P, V]; of the first two rows the least and the most."""
    rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in shape)
    dither = fixed.dither(rows[:, None], columns[None], jnp.uint32(3), 16)
    return dither.at[0].set(0).at[1].set(2**16 - 1)


@pytest.mark.parametrize("vocab_size, scale", [(2, 127), (17, 15), (256, 127), (257, 63), (300, 7)])
def test_errors_equal_the_oracle(vocab_size: int, scale: int):
    """Random and adversarial logits in 8 and 16 bits, the best and the worst token as target."""
    for logits in (rows_of(vocab_size), wide_rows(vocab_size)):
        dither_PV = dithers_of(logits.shape)
        lowest = -int(np.iinfo(logits.dtype).max)
        for targets_P in (logits.argmax(axis=1), logits.argmin(axis=1)):
            targets = jnp.asarray(targets_P.astype(np.int32))
            result = errors(jnp.asarray(logits), targets, scale, dither_PV)
            assert result.dtype == jnp.int8 and int(jnp.max(jnp.abs(result))) <= scale
            for row in range(len(logits)):
                expected = oracle.errors(
                    logits[row].tolist(),
                    int(targets_P[row]),
                    scale,
                    dither_PV[row].tolist(),
                    lowest,
                )
                assert result[row].tolist() == expected


@pytest.mark.parametrize("scale", [127])
def test_errors_of_the_largest_vocabulary_equal_the_oracle(scale: int):
    """65 536 tokens: uniform, nearly certain, and random logits."""
    logits = rows_of(65536)[[0, 4, 8, 10]]
    targets, dither_PV = np.array([65535, 0, 7, 32768], np.int32), dithers_of(logits.shape)
    result = errors(jnp.asarray(logits), jnp.asarray(targets), scale, dither_PV)
    for row in range(len(logits)):
        plain, dither = logits[row].tolist(), dither_PV[row].tolist()
        assert result[row].tolist() == oracle.errors(plain, int(targets[row]), scale, dither)


def mean_probabilities(logits: np.ndarray, scale: int) -> np.ndarray:
    """The p that `errors` subtracts, averaged over all 2^16 dithers, in units of 1 / scale.

    A dither only ever raises the rounded p, by one unit at one place in [0, 2^16), which bisection
    finds for every token at once.
    """
    targets = jnp.zeros(len(logits), jnp.int32)
    hit = scale * (np.arange(logits.shape[1]) == 0)

    def rounded(dither: np.ndarray) -> np.ndarray:
        dither_PV = jnp.asarray(dither.astype(np.int32))
        error = errors(jnp.asarray(logits), targets, scale, dither_PV)
        return hit - np.asarray(error).astype(np.int64)

    least = rounded(np.zeros(logits.shape))
    low, high = np.zeros(logits.shape, np.int64), np.full(logits.shape, 2**16)
    for _ in range(16):  # p stays `least` below `low`, and exceeds it from `high` on
        middle = (low + high) // 2
        raised = rounded(middle) > least
        low, high = np.where(raised, low, middle), np.where(raised, middle, high)
    raised = rounded(np.minimum(high, 2**16 - 1)) > least
    return least + np.where(raised, 2**16 - high, 0) / 2**16


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax in float64, in base 2^(1/16)."""
    terms = np.exp2((logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / 16)
    return terms / terms.sum(axis=1, keepdims=True)


def test_the_mean_over_dithers_is_what_bisection_finds():
    """Over all 2^16 dithers of a few tokens, one after another."""
    logits = rows_of(17)[:2, :5]
    found = mean_probabilities(logits, 127)
    total = np.zeros(logits.shape)
    for dither in range(0, 2**16, 2**12):
        block = dither + np.arange(2**12, dtype=np.int32)
        everywhere = jnp.asarray(np.repeat(block, 2)[:, None] + np.zeros((1, 5), np.int32))
        many = jnp.asarray(np.tile(logits, (2**12, 1)))
        error = errors(many, jnp.zeros(len(many), jnp.int32), 127, everywhere)
        error = np.asarray(error).reshape(2**12, 2, 5).astype(np.int64)
        total += (127 * (np.arange(5) == 0) - error).sum(axis=0)
    np.testing.assert_array_equal(found, total / 2**16)


@pytest.mark.parametrize("vocab_size", [2, 256, 257, 5000, 65536])
@pytest.mark.parametrize("scale", [127, 15])
def test_errors_are_the_gradient_within_their_bound(vocab_size: int, scale: int):
    """Averaged over dithers, p is off by 2^-17 of the likeliest's, 2^-10 of itself, 2^-16 units.

    Uniform logits among them: at 65 536 tokens every p is far below one unit.
    """
    logits = rows_of(vocab_size)[[0, 4, 6, 8, 9, 11, 16, 17] if vocab_size < 65536 else [0, 6, 8]]
    p, most = probabilities(logits), 2.0**-16
    floored = (logits == -127) | (logits.max(axis=1, keepdims=True) - logits.astype(np.int32) > 253)
    mean = mean_probabilities(logits, scale)
    bound = scale * (p.max(axis=1, keepdims=True) / 2**17 + p / 2**10) + most
    off = np.abs(mean - scale * p)
    assert np.all(mean[floored] == 0)
    assert np.all((off <= bound) | floored), (off / bound)[~floored].max()


@pytest.mark.parametrize("scale", SCALES)
def test_the_bound_of_an_error_holds_for_every_scale(scale: int):
    """The oracle's p, one token against V - 1 equal ones: 2^-10 of itself, 2^-9 at scale 7."""
    worst = 0.0
    for vocab_size in (2, 3, 5, 7, 13, 17, 29, 41, 77, 133, 256, 300):
        for distance in (0, 1, 2, 3, 5, 8, 21, 34, 60):
            logits = [127] + [127 - distance] * (vocab_size - 1)
            scaled = oracle.scaled_probabilities(logits, scale)
            p = probabilities(np.array([logits]))[0]
            for v in (0, 1):
                bound = scale * (p[0] / 2**17 + p[v] / (2**10 if scale > 7 else 2**9)) + 2.0**-16
                worst = max(worst, abs(scaled[v] / 2**16 - scale * p[v]) / bound)
    assert 0.3 < worst < 1


def test_errors_of_many_positions_sum_to_the_gradient():
    """Over 2^10 positions with the dithers that `votes` uses, uniform logits at 65 536 tokens."""
    count = 1 << 10
    logits = jnp.zeros((64, 65536), jnp.int8)
    columns = jnp.arange(65536, dtype=jnp.int32)[None]
    total = np.zeros(65536, np.int64)
    for start in range(0, count, 64):
        places = start + jnp.arange(64, dtype=jnp.int32)[:, None]
        dither_PV = fixed.dither(places // 64, columns, places % 64, 16)
        total += np.asarray(
            jnp.sum(errors(logits, jnp.zeros(64, jnp.int32), 127, dither_PV), 0, jnp.int32)
        )
    expected = np.where(np.arange(65536) == 0, 127 * count, 0) - 127 * count / 65536
    assert np.abs(total - expected).max() < 4, "rounded to the nearest, all but one would be 0"


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16])
def test_no_probability_is_above_one(dtype: type):
    """One token as likely as can be, rounded up: the scale and not a unit more."""
    sure = jnp.array([[127, *[-127] * 8]], dtype)
    other, dither_PV = jnp.array([1], jnp.int32), jnp.full(sure.shape, 2**16 - 1, jnp.int32)
    at_any_scale = jax.jit(likelihood.errors)  # one program, where a constant scale has one each
    for scale in range(1, 128):
        error = at_any_scale(sure, other, jnp.int32(scale), dither_PV)
        assert error[0, 0] == -scale and error[0, 1] == scale


def test_a_token_whose_logit_is_as_low_as_it_can_be_is_pushed_no_further():
    """Neither at the lowest logit of the dtype nor at the floor, except up, as the target."""
    dither_PV, none = jnp.full((1, 4), 2**16 - 1, jnp.int32), jnp.array([0], jnp.int32)
    uniform = errors(jnp.full((1, 4), -127, jnp.int8), none, 127, dither_PV)
    assert uniform.tolist() == [[127, 0, 0, 0]]
    narrow = errors(jnp.array([[-127, -126, 127, 126]], jnp.int8), none, 127, dither_PV)
    assert narrow[0, 0] == 127 and narrow[0, 1] == -1 and narrow[0, 2] < -60
    wide = errors(jnp.array([[0, 0, 254, 1]], jnp.int16), none, 127, dither_PV)
    assert wide.tolist() == [[127, 0, -127, -1]]
