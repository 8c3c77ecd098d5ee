"""Log-likelihood in integers: base 2, units of 2^-16 bit, from logits in units of 1/16 bit.

    log2 p(target) = (logit[target] - max) / 16 - log2 sum_v 2^((logit[v] - max) / 16)

where a logit more than 254 units below the largest counts as 254 below it: the whole range of int8
logits, and a floor under the probabilities of wider ones.
The sum adds entries of a 255-entry table; its logarithm takes the position of the leading one and
an interpolated 1025-entry mantissa table. Error against real arithmetic, for every vocabulary up to
65 536: below `ERROR_BOUND` = 6 units of 2^-16 bit, in two parts.

    exp2 table   the maximum's entry is exact and the others are off by at most 1/2; their sum is
                 off the most, relative to itself, when all V - 1 stand at the one distance whose
                 entry is rounded the worst: 5.16 units at V = 65 536, 2.80 at V = 256
    log2         1/2 unit for the last rounding, 0.04 for the mantissa table and its interpolation

A uniform model over 2^k tokens is exact: k bits.

Axes: P members (or any batch), V vocabulary.
"""

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed, tables
from int_lm.arithmetic.tables import (
    DISTANCE_MAX,
    ERROR_BITS,
    ERROR_FACTOR_BITS,
    LOG2_REST_BITS,
    NARROW_BITS,
    NARROW_VOCABULARY,
    WIDE_BITS,
)
from int_lm.limits import LOG2_FRACTION_BITS, NO_TARGET

LIMB_BITS = WIDE_BITS // 2
ERROR_BOUND = 6 * 2.0**-LOG2_FRACTION_BITS


def _log2_normalised(mantissa: Array) -> Array:
    """log2(mantissa / 2^30) in units of 2^-16 for int32 mantissas in [2^30, 2^31)."""
    index_shift = 30 - tables.LOG2_INDEX_BITS
    index = (mantissa >> index_shift) & ((1 << tables.LOG2_INDEX_BITS) - 1)
    rest = (mantissa >> (index_shift - LOG2_REST_BITS)) & ((1 << LOG2_REST_BITS) - 1)
    table = jnp.asarray(tables.log2_mantissa())
    low, high = table[index], table[index + 1]
    log2 = low + (((high - low) * rest) >> LOG2_REST_BITS)
    return fixed.shift_down(log2, tables.LOG2_TABLE_BITS - LOG2_FRACTION_BITS)


def _terms(distance_PV: Array) -> Array:
    """round(2^bits 2^(-distance/16)) with the bits that the vocabulary allows: int32 [P, V]."""
    narrow = distance_PV.shape[-1] <= NARROW_VOCABULARY
    return jnp.asarray(tables.exp2(NARROW_BITS if narrow else WIDE_BITS))[distance_PV]


def log2_sum_exp2(distance_PV: Array) -> Array:
    """log2 of sum over v of 2^(-distance/16), in units of 2^-16 bit.

    Args:
      distance_PV: int32, max logit minus logit, 0..254, 0 occurring in every row; V <= 65 536.

    Returns:
      int32 [P], between 0 and 16 * 2^16.
    """
    term = _terms(distance_PV)
    if distance_PV.shape[-1] <= NARROW_VOCABULARY:
        total = jnp.sum(term, axis=-1)
        exponent = 31 - jax.lax.clz(total)
        mantissa = total << (30 - exponent)
        exponent = exponent - NARROW_BITS
    else:
        high = jnp.sum(term >> LIMB_BITS, axis=-1)
        low = jnp.sum(term & ((1 << LIMB_BITS) - 1), axis=-1)
        high, low = high + (low >> LIMB_BITS), low & ((1 << LIMB_BITS) - 1)
        exponent = 31 - jax.lax.clz(high)
        fill = 30 - exponent - LIMB_BITS  # left shift that brings `low` below `high`
        below = jnp.where(fill >= 0, low << jnp.maximum(fill, 0), low >> jnp.maximum(-fill, 0))
        mantissa = (high << (30 - exponent)) | below
        exponent = exponent - LIMB_BITS
    return (exponent << LOG2_FRACTION_BITS) + _log2_normalised(mantissa)


def _distances(logits_PV: Array) -> Array:
    """Max logit minus logit, at most `DISTANCE_MAX`: int32 [P, V]."""
    logits = logits_PV.astype(jnp.int32)
    return jnp.minimum(jnp.max(logits, axis=-1, keepdims=True) - logits, DISTANCE_MAX)


@native.accelerated(cpu="likelihood")
def log2_likelihood(logits_PV: Array, targets_P: Array) -> Array:
    """log2 p(target), int32 [P] in units of 2^-16 bit, at most 0.

    Args:
      logits_PV: int8 or int16 in units of 1/16 bit.
      targets_P: int32 ids below V.
    """
    distance_PV = _distances(logits_PV)
    target_P = jnp.take_along_axis(distance_PV, targets_P[:, None], axis=-1)[:, 0]
    unit_shift = LOG2_FRACTION_BITS - tables.LOGIT_UNIT_BITS
    return -(target_P << unit_shift) - log2_sum_exp2(distance_PV)


def errors(logits_PV: Array, targets_P: Array, scale: int, dither_PV: Array) -> Array:
    """The gradient of log p(target) by the logits, onehot(target) - p, rounded by a dither.

    p times `scale` is known to 16 fractional bits and rounded down after a number that runs evenly
    through [0, 1) has been added: an error too small for a unit is one unit now and then, and its
    sum over members and tokens is right. Rounded to the nearest, every p below 1 / (2 scale) would
    be 0, rare tokens would keep their probability, and training would stall. A token whose logit is
    as low as it can be has no error, except as the target.

    Args:
      logits_PV: int8 or int16 in units of 1/16 bit.
      targets_P: int32 ids below V, or `NO_TARGET`, which has no errors.
      scale: units that make 1, at most 127.
      dither_PV: int32 in [0, 2^`ERROR_BITS`), of `fixed.dither`.

    Returns:
      int8 [P, V] in [-scale, scale]. Before rounding p is off by at most 2^-17 of the likeliest
      token's, and by 2^-10 of itself (2^-9 where `scale` is below 15).
    """
    distance_PV = _distances(logits_PV)
    log2_sum_P1 = log2_sum_exp2(distance_PV)[:, None]
    narrow = distance_PV.shape[-1] <= NARROW_VOCABULARY
    term_PV = fixed.shift_down(
        _terms(distance_PV), (NARROW_BITS if narrow else WIDE_BITS) - ERROR_BITS
    )
    index_P1 = (log2_sum_P1 >> (LOG2_FRACTION_BITS - tables.EXP2_INDEX_BITS)) & (
        (1 << tables.EXP2_INDEX_BITS) - 1
    )
    factor_P1 = scale * jnp.asarray(tables.exp2_fraction())[index_P1]
    factor_P1 = factor_P1 >> (tables.EXP2_FRACTION_BITS - ERROR_FACTOR_BITS)  # below 2^15
    product_PV = term_PV.astype(jnp.uint32) * factor_P1.astype(jnp.uint32)  # below 2^31
    shift_P1 = (ERROR_FACTOR_BITS + (log2_sum_P1 >> LOG2_FRACTION_BITS)).astype(jnp.uint32)
    scaled_PV = (product_PV >> shift_P1).astype(jnp.int32)
    p_PV = (
        scaled_PV + dither_PV
    ) >> ERROR_BITS  # at most scale: a factor is below 256 scale, terms 2^16
    # where a logit is at its lowest, going down has no effect, and weights pushed on would run away
    lowest = -int(jnp.iinfo(logits_PV.dtype).max)
    p_PV = jnp.where((distance_PV == DISTANCE_MAX) | (logits_PV == lowest), 0, p_PV)
    hit_PV = jnp.arange(logits_PV.shape[-1], dtype=jnp.int32)[None] == targets_P[:, None]
    errors_PV = fixed.saturate(jnp.where(hit_PV, scale, 0) - p_PV)
    return jnp.where(targets_P[:, None] == NO_TARGET, jnp.int8(0), errors_PV)
