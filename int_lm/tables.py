"""Tables and schedules: the one place where reals become integers, once, before a run.

Tables are made with `decimal` at 50 digits, whose results do not depend on the machine's
floating-point library, so that every platform gets the same bits.
"""

import decimal
import functools
import math
import statistics
from decimal import Decimal

import numpy as np

from int_lm.config import LOG2_FRACTION_BITS, EsConfig

LOGIT_UNITS_PER_BIT = 16  # logits are in units of 1/16 bit
LOG2_INDEX_BITS = 10  # the mantissa table has 2^10 + 1 entries, interpolated between
LOG2_TABLE_BITS = 22  # fractional bits of its entries
THRESHOLD_FRACTION_BITS = 10  # z-thresholds are in units of 2^-10 standard deviations
LEAST_SHARE = 2.0**-48  # a z-threshold stays below 8 standard deviations: below 2^13 units

_CONTEXT = decimal.Context(prec=50)


def _rounded(value: Decimal) -> int:
    return int(value.to_integral_value(decimal.ROUND_HALF_EVEN))


@functools.cache
def exp2(fraction_bits: int) -> np.ndarray:
    """round(2^fraction_bits * 2^(-d/16)) for the logit differences d = 0..254: int32 [255]."""
    entries = [
        _rounded(_CONTEXT.power(2, Decimal(fraction_bits) - Decimal(d) / LOGIT_UNITS_PER_BIT))
        for d in range(255)
    ]
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


def alpha_at(es: EsConfig, step: int) -> float:
    """Expected share of weights that move at `step` if votes were pure noise.

    Constant below 1; from 1 up it decays as min(1, alpha / (1 + step / alpha_halflife)), the
    paper's 1 / (0.015 step + 1) for alpha 1 and a half-life of 67 steps.
    """
    if es.alpha < 1:
        return es.alpha
    return min(1.0, es.alpha / (1.0 + step / es.alpha_halflife))


def vote_threshold(es: EsConfig, step: int) -> int:
    """z-threshold of `step` in units of 2^-10 standard deviations of a vote.

    z = -inverse_normal_cdf(alpha / 2): a share alpha of pure-noise votes has |z| above it. An
    alpha below `LEAST_SHARE` counts as that, so that 0 <= z < 2^13 units.
    """
    z = -statistics.NormalDist().inv_cdf(max(alpha_at(es, step), LEAST_SHARE) / 2.0)
    return round(z * (1 << THRESHOLD_FRACTION_BITS))


def initial_scale(n_in: int) -> float:
    """Standard deviation, in q4 units, of the initial weights of a matrix with `n_in` inputs.

    16 (1.0 in q4), times what the power-of-two shift of the linear leaves of sqrt(n_in).
    """
    return 16.0 * 2.0 ** round(math.log2(n_in) / 2) / math.sqrt(n_in)


def bits(log_likelihood: int) -> float:
    """An integer log-likelihood in units of 2^-16 bit as bits of code length."""
    return -log_likelihood / 2**LOG2_FRACTION_BITS
