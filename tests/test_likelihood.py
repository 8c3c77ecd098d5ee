"""Log-likelihood in integers: equal to the oracle, within its stated error of real arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import likelihood, tables
from int_lm.config import LOG2_FRACTION_BITS, WORST_BITS_PER_TOKEN

UNIT = 2.0**-LOG2_FRACTION_BITS
VOCABULARIES = [2, 3, 17, 255, 256, 257, 300, 1000, 4096, 32000, 65536]
log2_likelihood = jax.jit(likelihood.log2_likelihood)


def worst_distance(vocab_size: int) -> tuple[int, float]:
    """The distance at which V - 1 equal logits make the rounded exp2 sum most wrong, in bits."""
    bits = (
        likelihood.NARROW_BITS
        if vocab_size <= likelihood.NARROW_VOCABULARY
        else likelihood.WIDE_BITS
    )
    real = 2.0 ** (bits - np.arange(255) / 16)
    rounded = tables.exp2(bits).astype(np.float64)
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
    bits = tables.bits(int(log2_likelihood(worst, jnp.array([7], jnp.int32))[0]))
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
