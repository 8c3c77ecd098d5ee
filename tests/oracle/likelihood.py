"""Log-likelihood and errors, of one row of logits."""

import functools
import math

from oracle.arithmetic import Vector, shift_down


def real_log2_likelihood(logits: Vector, target: int) -> float:
    """log2 p(target) in float64, logits in 1/16 bit."""
    largest = max(logits)
    total = math.fsum(2.0 ** ((logit - largest) / 16) for logit in logits)
    return (logits[target] - largest) / 16 - math.log2(total)


@functools.cache
def exp2_table(bits: int) -> list[int]:
    """round(2^(bits - d/16)), d = 0..254."""
    return [round(2.0 ** (bits - d / 16)) for d in range(255)]


@functools.cache
def log2_table() -> list[int]:
    """round(2^22 log2(1 + i/1024)), i = 0..1024."""
    return [round(2**22 * math.log2(1 + i / 1024)) for i in range(1025)]


def distances(logits: Vector) -> Vector:
    """Largest logit minus logit, at most 254."""
    largest = max(logits)
    return [min(254, largest - logit) for logit in logits]


def term_bits(vocab_size: int) -> int:
    """Bits of the exp2 terms."""
    return 22 if vocab_size <= 256 else 28


def log2_sum_exp2(distance: Vector) -> int:
    """log2 of the sum of 2^(-distance/16) in units of 2^-16: exp2 terms of 22 bits (28 above 256
    tokens), summed; the position of the leading one; 10 bits of index and 12 to interpolate."""
    bits = term_bits(len(distance))
    total = sum(exp2_table(bits)[d] for d in distance)
    exponent = total.bit_length() - 1
    mantissa = total << 30 >> exponent  # in [2^30, 2^31)
    index, rest = mantissa - 2**30 >> 20, mantissa >> 8 & 0xFFF
    low, high = log2_table()[index], log2_table()[index + 1]
    fraction = shift_down(low + ((high - low) * rest >> 12), 6)
    return (exponent - bits) * 2**16 + fraction


def log2_likelihood(logits: Vector, target: int) -> int:
    """log2 p(target) in units of 2^-16 bit."""
    distance = distances(logits)
    return -distance[target] * 2**12 - log2_sum_exp2(distance)


@functools.cache
def exp2_fraction_table() -> list[int]:
    """round(2^15 2^(-(i + 1/2) / 1024)), i = 0..1023."""
    return [round(2.0 ** (15 - (i + 0.5) / 1024)) for i in range(1024)]


def scaled_probabilities(logits: Vector, scale: int) -> Vector:
    """p scale in units of 2^-16, of the terms in 16 bits and a factor of 8 fractional ones."""
    distance = distances(logits)
    log2_sum = log2_sum_exp2(distance)
    factor = scale * exp2_fraction_table()[log2_sum % 2**16 // 2**6] // 2**7
    bits = term_bits(len(logits))
    terms = [shift_down(exp2_table(bits)[d], bits - 16) for d in distance]
    return [term * factor // 2 ** (8 + log2_sum // 2**16) for term in terms]


def errors(logits: Vector, target: int, scale: int, dithers: Vector, lowest: int = -127) -> Vector:
    """onehot(target) - p in units of 1 / scale, p rounded by a dither; 0 for p at the floor."""
    largest, result = max(logits), []
    for v, p in enumerate(scaled_probabilities(logits, scale)):
        units = (p + dithers[v]) // 2**16
        if logits[v] == lowest or largest - logits[v] >= 254:
            units = 0
        result.append((scale if v == target else 0) - units)
    return result
