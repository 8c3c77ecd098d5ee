"""Fixed point, the norm and its credit, and trees as nested lists."""

import math
from collections.abc import Callable
from typing import Any

from int_lm.config import EsConfig

Vector = list[int]
Matrix = list[Vector]


def plain(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict of arrays as a flat dict of nested lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= plain(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value.tolist()
    return flat


def saturate(x: int) -> int:
    """Clip to [-127, 127]."""
    return max(-127, min(127, x))


def shift_floor(x: int, bits: int) -> int:
    """floor(x / 2^bits)."""
    return x // 2**bits


def shift_down(x: int, bits: int) -> int:
    """floor(x / 2^bits + 1/2)."""
    return (2 * x + 2**bits) // 2 ** (bits + 1)


def rounded_log2_root(n: int) -> int:
    """round(log2(n) / 2)."""
    return round(math.log2(n) / 2)


def dither(row: int, column: int, position: int, bits: int) -> int:
    """The top bits of a sum of multiples of three odd constants modulo 2^32."""
    word = row * 0x9E3779B1 + column * 0x85EBCA77 + position * 0xC2B2AE3D
    return word % 2**32 // 2 ** (32 - bits)


def mean_magnitude(x: Vector) -> int:
    """max(1, floor(mean|x|))."""
    return max(1, sum(abs(entry) for entry in x) // len(x))


def norm(weight: Vector, x: Vector) -> Vector:
    """saturate(floor(x w / max(1, mean|x|))), the mean rounded down."""
    mean = mean_magnitude(x)
    return [saturate(entry * w // mean) for entry, w in zip(x, weight, strict=True)]


def clipped_dividend(x: int) -> int:
    """Into the range that divisions take."""
    return max(1 - 2**14, min(2**14 - 1, x))


def rounded_quotient(dividend: int, divisor: int) -> int:
    """dividend / divisor rounded half up, the dividend clipped."""
    return clipped_dividend(dividend + divisor // 2) // divisor


def norm_credit(gain: Vector, x: Vector, credit: Vector) -> Vector:
    """4 (c_k - sign(x_k) (sum_n x_n c_n / D) / m) / m with c = g credit / 16, in integers.

    The sum is over c / 4, rounded half up, and what is divided fits 14 bits and a sign.
    """
    mean = mean_magnitude(x)
    c = [clipped_dividend(shift_down(g * d, 4)) for g, d in zip(gain, credit, strict=True)]
    along = sum(entry * shift_down(entry_c, 2) for entry, entry_c in zip(x, c, strict=True))
    radial = 4 * rounded_quotient(along // len(x), mean)
    signs = [(entry > 0) - (entry < 0) for entry in x]
    return [
        rounded_quotient(4 * (entry_c - sign * radial), mean)
        for entry_c, sign in zip(c, signs, strict=True)
    ]


def answer(effect: Callable[[int], int], output: int) -> int:
    """The effect of an output 16 higher less that of one 16 lower, none beyond [-127, 127]."""
    return saturate(effect(saturate(output + 16)) - effect(saturate(output - 16)))


# -- Bits that sums over a population ask for ------------------------------------------------------


def numbers(es: EsConfig) -> list[int]:
    """Of those whose tokens vote: pairs, by their first members, or members that read alone."""
    return list(range(es.population if es.members_per_stream == 1 else es.population // 2))


def spare_bits(es: EsConfig) -> int:
    """The least b up to 4 for which (number of voters) T 127 (127 >> b) < 2^31."""
    for bits in range(4):
        if len(numbers(es)) * es.segment_length * 127 * (127 >> bits) < 2**31:
            return bits
    return 4
