"""Log-likelihood in integers: base 2, units of 2^-16 bit, from logits in units of 1/16 bit.

    log2 p(target) = (logit[target] - max) / 16 - log2 sum_v 2^((logit[v] - max) / 16)

A logit more than 254 below the largest one counts as 254 below it. This covers the whole range of
int8 logits; int16 logits get a least probability. The sum adds entries of a lookup table of 255
entries. Its logarithm is the position of the leading one bit plus an interpolated entry of a lookup
table of 1025 mantissas. The error against real arithmetic is below `ERROR_BOUND` = 6 units of
2^-16 bit for every vocabulary up to 65 536. It has two parts:

    exp2    the entry of the largest logit is exact, and the other entries are rounded by at most
            1/2. The relative error of the sum is largest if all V - 1 other logits are at the one
            distance whose entry has the largest rounding error: 5.16 units at V = 65 536, 2.80 at
            V = 256
    log2    1/2 unit for the last rounding, 0.04 for the mantissa table and its interpolation

A uniform distribution over 2^k tokens gives exactly k bits.

Axes: P members (or any batch), V vocabulary.
"""

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import constants, fixed
from int_lm.arithmetic.constants import (
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
    index_shift = 30 - constants.LOG2_INDEX_BITS
    index = (mantissa >> index_shift) & ((1 << constants.LOG2_INDEX_BITS) - 1)
    rest = (mantissa >> (index_shift - LOG2_REST_BITS)) & ((1 << LOG2_REST_BITS) - 1)
    table = jnp.asarray(constants.log2_mantissa())
    low, high = table[index], table[index + 1]
    log2 = low + (((high - low) * rest) >> LOG2_REST_BITS)
    return fixed.shift_down(log2, constants.LOG2_TABLE_BITS - LOG2_FRACTION_BITS)


def _terms(distance_PV: Array) -> Array:
    """round(2^bits 2^(-distance/16)), int32 [P, V]; the vocabulary size determines `bits`."""
    narrow = distance_PV.shape[-1] <= NARROW_VOCABULARY
    return jnp.asarray(constants.exp2(NARROW_BITS if narrow else WIDE_BITS))[distance_PV]


def log2_sum_exp2(distance_PV: Array) -> Array:
    """log2 of sum over v of 2^(-distance/16), in units of 2^-16 bit.

    Args:
      distance_PV: max logit minus logit, int32 in 0..254; every row has a 0. V <= 65 536.

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
    unit_shift = LOG2_FRACTION_BITS - constants.LOGIT_UNIT_BITS
    return -(target_P << unit_shift) - log2_sum_exp2(distance_PV)


def errors(logits_PV: Array, targets_P: Array, scale: int, dither_PV: Array) -> Array:
    """Derivative of log p(target) with respect to the logits: onehot(target) - p, with a dither.

    scale p is computed to 16 fractional bits. A dither, distributed evenly over [0, 1), is added,
    and the result is rounded down. So a p below 1 / scale is sometimes rounded to one unit, and the
    sum over members and tokens has the right mean. With rounding to the nearest, every p below
    1 / (2 scale) would be 0: rare tokens would keep their probability, and training would stall. A
    token whose logit is the lowest possible one has no error, unless it is the target.

    Args:
      logits_PV: int8 or int16 in units of 1/16 bit.
      targets_P: int32 ids below V, or `NO_TARGET`; all errors of such a row are 0.
      scale: the integer that stands for 1, at most 127.
      dither_PV: int32 in [0, 2^`ERROR_BITS`), of `fixed.dither`.

    Returns:
      int8 [P, V] in [-scale, scale]. Before the rounding, the error of p is at most 2^-17 times the
      p of the likeliest token, plus 2^-10 times p itself (2^-9 if `scale` is below 15).
    """
    distance_PV = _distances(logits_PV)
    log2_sum_P1 = log2_sum_exp2(distance_PV)[:, None]
    narrow = distance_PV.shape[-1] <= NARROW_VOCABULARY
    term_PV = fixed.shift_down(
        _terms(distance_PV), (NARROW_BITS if narrow else WIDE_BITS) - ERROR_BITS
    )
    index_P1 = (log2_sum_P1 >> (LOG2_FRACTION_BITS - constants.EXP2_INDEX_BITS)) & (
        (1 << constants.EXP2_INDEX_BITS) - 1
    )
    factor_P1 = scale * jnp.asarray(constants.exp2_fraction())[index_P1]
    factor_P1 = factor_P1 >> (constants.EXP2_FRACTION_BITS - ERROR_FACTOR_BITS)  # below 2^15
    product_PV = term_PV.astype(jnp.uint32) * factor_P1.astype(jnp.uint32)  # below 2^31
    shift_P1 = (ERROR_FACTOR_BITS + (log2_sum_P1 >> LOG2_FRACTION_BITS)).astype(jnp.uint32)
    scaled_PV = (product_PV >> shift_P1).astype(jnp.int32)
    p_PV = (
        scaled_PV + dither_PV
    ) >> ERROR_BITS  # at most scale: a factor is below 256 scale, terms 2^16
    # the lowest logit cannot go down: an error there would push weights on and on without effect
    lowest = -int(jnp.iinfo(logits_PV.dtype).max)
    p_PV = jnp.where((distance_PV == DISTANCE_MAX) | (logits_PV == lowest), 0, p_PV)
    hit_PV = jnp.arange(logits_PV.shape[-1], dtype=jnp.int32)[None] == targets_P[:, None]
    errors_PV = fixed.saturate(jnp.where(hit_PV, scale, 0) - p_PV)
    return jnp.where(targets_P[:, None] == NO_TARGET, jnp.int8(0), errors_PV)
