"""Constants: real numbers rounded to integers, once, before a run (schedules: `method.schedules`).

Lookup tables of the likelihood and of roots are computed with `decimal` at 50 digits. Its results
do not depend on the machine's floating-point library, so every platform gets the same bits.
Quantiles of the gaussian are computed with floats. None of them is close to a number at which its
rounding changes, so they are the same with every library, too (a test checks the distance).
"""

import decimal
import functools
import math
import statistics
from decimal import Decimal

import numpy as np

from int_lm.limits import LOG2_FRACTION_BITS

# The kernels (`native`) use these constants, too, except the last three.
LOGIT_UNIT_BITS = 4  # logits are in units of 2^-4 bit
DISTANCE_MAX = 254  # no token is less likely than 2^-(254 / 16) times the likeliest
NARROW_VOCABULARY = 256  # up to here one int32 holds the sum of all terms
NARROW_BITS = 22  # of a term: 256 * 2^22 = 2^30
WIDE_BITS = 28  # above, terms are split in two limbs of 14 bits: 65 536 * 2^14 = 2^30
OCTAVE_BITS = 30  # of an entry of `exp2_octave`
LOG2_INDEX_BITS = 10  # the mantissa table has 2^10 + 1 entries, interpolated between
LOG2_TABLE_BITS = 22  # fractional bits of its entries
LOG2_REST_BITS = 12  # low bits of a mantissa, which interpolate between two entries
EXP2_INDEX_BITS = 10  # the table of 2^-x, 0 <= x < 1, has 2^10 entries
EXP2_FRACTION_BITS = 15  # fractional bits of its entries
ERROR_BITS = 16  # fractional bits of an error before it is rounded
ERROR_FACTOR_BITS = 8  # additional fractional bits of the factor of a term
ROOT_INDEX_BITS = 12  # the table of 1 / sqrt(i) has 2^12 entries
ROOT_BITS = 15  # fractional bits of an entry of `reciprocal_root`

_CONTEXT = decimal.Context(prec=50)


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(decimal.ROUND_HALF_EVEN))


@functools.cache
def exp2(fraction_bits: int) -> np.ndarray:
    """round(2^fraction_bits * 2^(-d/16)) for the logit differences d = 0..254: int32 [255]."""
    entries = [
        _rounded(_CONTEXT.power(2, Decimal(fraction_bits) - Decimal(d) / (1 << LOGIT_UNIT_BITS)))
        for d in range(DISTANCE_MAX + 1)
    ]
    return np.array(entries, np.int32)


@functools.cache
def exp2_octave() -> np.ndarray:
    """floor(2^30 2^(-d/16)) for d = 0..15: int32 [16].

    Every entry of `exp2` with up to 29 fractional bits is one of these entries, shifted right and
    rounded half up. That the entries here are rounded down does not change the result.
    """
    size = 1 << LOGIT_UNIT_BITS
    entries = [int(_CONTEXT.power(2, OCTAVE_BITS - Decimal(d) / size)) for d in range(size)]
    return np.array(entries, np.int32)


@functools.cache
def log2_mantissa() -> np.ndarray:
    """round(2^22 * log2(1 + i / 2^10)) for i = 0..2^10: int32 [1025]."""
    size = 1 << LOG2_INDEX_BITS
    log2 = _CONTEXT.ln(Decimal(2))
    entries = [
        _rounded((1 << LOG2_TABLE_BITS) * _CONTEXT.ln(1 + Decimal(i) / size) / log2)
        for i in range(size + 1)
    ]
    return np.array(entries, np.int32)


@functools.cache
def gaussian_quantiles() -> np.ndarray:
    """Quantiles of a normal distribution with standard deviation 16: int8 [65536], |entry| <= 69.

    Entry i is round(16 z) with z the (i + 1/2) / 65536 quantile: indexed by 16 random bits it
    yields int8 noise. Odd by construction: entry[65535 - i] = -entry[i].
    """
    normal = statistics.NormalDist()
    upper = [round(16 * normal.inv_cdf((i + 0.5) / 65536)) for i in range(32768, 65536)]
    half = np.array(upper, np.int8)
    return np.concatenate([-half[::-1], half])


@functools.cache
def exp2_fraction() -> np.ndarray:
    """round(2^15 * 2^(-(i + 1/2) / 2^10)) for i = 0..2^10 - 1: int32, 2^14 < entry < 2^15."""
    entries = [
        _rounded(
            _CONTEXT.power(2, EXP2_FRACTION_BITS - (i + Decimal(0.5)) / (1 << EXP2_INDEX_BITS))
        )
        for i in range(1 << EXP2_INDEX_BITS)
    ]
    return np.array(entries, np.int32)


@functools.cache
def reciprocal_root() -> np.ndarray:
    """round(2^15 / sqrt(i)) for i = 1..2^12 - 1, and 0 for i = 0: int32."""
    entries = [
        _rounded(_CONTEXT.divide(1 << ROOT_BITS, _CONTEXT.sqrt(Decimal(i))))
        for i in range(1, 1 << ROOT_INDEX_BITS)
    ]
    return np.array([0, *entries], np.int32)


def initial_scale(n_in: int) -> float:
    """Standard deviation, in q4 units, of the initial weights of a matrix with `n_in` inputs.

    It is 16 (1.0 in q4), times the factor between sqrt(n_in) and the power of two by which the
    linear divides.
    """
    return 16.0 * 2.0 ** round(math.log2(n_in) / 2) / math.sqrt(n_in)


def bits(log_likelihood: int) -> float:
    """An integer log-likelihood in units of 2^-16 bit as bits of code length."""
    return -log_likelihood / 2**LOG2_FRACTION_BITS
