"""Noise: Threefry-2x32-20 by (seed, step, tensor, pair, lane)."""

import bisect
import functools
import math

from int_lm.config import EsConfig
from oracle.arithmetic import Matrix, Vector

NOISE_VERSION = 1
MASK = 2**32 - 1


def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 with 20 rounds, as in Salmon et al. (SC 2011)."""
    schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    x0, x1 = (counter[0] + schedule[0]) & MASK, (counter[1] + schedule[1]) & MASK
    for number in range(20):
        rotation = rotations[number % 8]
        x0 = (x0 + x1) & MASK
        x1 = ((x1 << rotation) & MASK | x1 >> (32 - rotation)) ^ x0
        if number % 4 == 3:
            injection = number // 4 + 1
            x0 = (x0 + schedule[injection % 3]) & MASK
            x1 = (x1 + schedule[(injection + 1) % 3] + injection) & MASK
    return x0, x1


@functools.cache
def gaussian_quantiles() -> list[int]:
    """round(16 z) at the (i + 1/2) / 65536 quantile z: how many cells' edges lie below it."""
    edges = [65536 * 0.5 * math.erfc(-(k + 0.5) / 16 / math.sqrt(2)) - 0.5 for k in range(-80, 80)]
    return [bisect.bisect(edges, i) - 80 for i in range(65536)]


def draw(kind: str, seed: int, step: int, tensor: int, pair: int, size: int) -> Vector:
    """Noise of one pair for one tensor."""
    key = threefry2x32((seed, NOISE_VERSION), (step, tensor))
    entries: Vector = []
    lane = 0
    while len(entries) < size:
        for word in threefry2x32(key, (pair, lane)):
            if kind == "rademacher":
                entries += [16 if word >> bit & 1 else -16 for bit in range(32)]
            else:
                entries += [gaussian_quantiles()[word & 0xFFFF], gaussian_quantiles()[word >> 16]]
        lane += 1
    return entries[:size]


def rounding(seed: int, step: int, tensor: int, size: int, bits: int) -> Vector:
    """Random numbers in [0, 2^bits): top bits of the words of a pair that does not exist."""
    key = threefry2x32((seed, NOISE_VERSION), (step, tensor))
    words: Vector = []
    for lane in range((size + 1) // 2):
        words += threefry2x32(key, (2**32 - 1, lane))
    return [word // 2 ** (32 - bits) for word in words[:size]]


def rows(entries: Vector, width: int) -> Matrix:
    """A row-major list as rows of `width` entries."""
    return [entries[start : start + width] for start in range(0, len(entries), width)]


def matrix_noise(
    es: EsConfig, shape: tuple[int, int], seed: int, step: int, tensor: int, pair: int
) -> tuple[Matrix, Matrix]:
    """A [M][R] and B [N][R] of one pair."""
    outputs, inputs = shape
    size = (outputs + inputs) * es.rank
    entries = draw(es.noise, seed, step, tensor, pair, size)
    return rows(entries[: outputs * es.rank], es.rank), rows(entries[outputs * es.rank :], es.rank)


def vector_noise(es: EsConfig, width: int, seed: int, step: int, tensor: int, pair: int) -> Vector:
    """n [N] of one pair."""
    return draw(es.noise, seed, step, tensor, pair, width)
