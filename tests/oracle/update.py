"""Fitness, schedules and updates."""

import fractions
import math
from collections.abc import Iterator
from typing import Any

from int_lm.config import Config, EsConfig
from oracle.arithmetic import Vector, saturate, shift_down
from oracle.noise import rounding


def fitness(es: EsConfig, scores: Vector) -> Vector:
    """Fitness of every pair: see `int_lm.fitness`."""
    differences = [plus - minus for plus, minus in zip(scores[::2], scores[1::2], strict=True)]
    signs = [(d > 0) - (d < 0) for d in differences]
    if es.fitness == "sign":
        return signs
    # differences are coarsened by as many bits as keep three times their sum within int32
    worst = es.segment_length * 32 * 2**16 * len(differences) * 3
    bits = 0
    while worst >> bits > 2**31 - 1:
        bits += 1
    magnitudes = [abs(d) >> bits for d in differences]
    mean = max(1, sum(magnitudes) // len(magnitudes))
    return [s * min(7, 3 * m // mean) for s, m in zip(signs, magnitudes, strict=True)]


def vote_limit(kind: str, es: EsConfig, fitnesses: Vector, z: int) -> int:
    """z standard deviations of a pure-noise vote, rounded down; the root has 4 fractional bits."""
    squares = sum(f * f for f in fitnesses)
    root = math.isqrt((squares if kind == "vector" else es.rank * squares) * 256)
    return z * root * (16 if kind == "vector" else 256) // (2**10 * 2**4)


def moved(weight: int, vote: int, limit: int) -> int:
    """A weight after its vote."""
    return saturate(weight + ((vote > 0) - (vote < 0) if abs(vote) > limit else 0))


def entries(nested: Any) -> Vector:
    """All numbers of nested lists."""
    return [n for item in nested for n in entries(item)] if isinstance(nested, list) else [nested]


def like(nested: Any, flat: Iterator[int]) -> Any:
    """Numbers in the shape of nested lists."""
    return [like(item, flat) for item in nested] if isinstance(nested, list) else next(flat)


def mean_of_means(nested: Any) -> int:
    """Mean magnitude, axis by axis from the last, rounded down each time."""
    if not isinstance(nested, list):
        return abs(nested)
    return sum(mean_of_means(item) for item in nested) // len(nested)


def longest_axis(nested: Any) -> int:
    """The largest number of items on any axis."""
    return max(len(nested), longest_axis(nested[0])) if isinstance(nested, list) else 1


def coarse(votes: Any, bits: int) -> Any:
    """Votes shifted down together, towards 0, to `bits` bits or so few that an axis's sum fits."""
    flat = entries(votes)
    bits = min(bits, 30 - math.ceil(math.log2(longest_axis(votes))))
    shift = max(0, max(abs(n) for n in flat).bit_length() - bits)
    return like(votes, iter([(abs(n) >> shift) * (1 if n > 0 else -1) for n in flat]))


def magnitude_limit(votes: Any, z: int) -> tuple[Any, int]:
    """Coarse votes of 17 bits, and z sqrt(pi / 2) times their mean magnitude: 1283 / 1024 of it."""
    rough = coarse(votes, 17)
    return rough, z * (mean_of_means(rough) * 1283 // 1024) // 1024


def carried(weight: int, remainder: int, vote: int, rate: int) -> tuple[int, int]:
    """A weight and what remains after a move by the rate, in 1 / 4096, the way of the vote."""
    total = remainder + ((vote > 0) - (vote < 0)) * rate
    whole = shift_down(total, 12)
    return saturate(weight + whole), total - 4096 * whole


def eight_bits(x: int, word: int) -> int:
    """x / 128 in four significant bits, rounded up if the rest passes `word` / 2^32: as a code.

    Codes count the numbers 0, 1, ..., 15, 16, 18, ..., 30, 32, 36, ... from 0.
    """
    step = 128
    while x >= 16 * step:
        step *= 2
    lower, rest = divmod(x, step)
    return lower + (rest + word * step // 2**32 >= step) + 8 * (step // 128).bit_length() - 8


def of_eight_bits(code: int) -> int:
    """The number of a code: a sum of steps of 1 up to 16, of 2 up to 32, and so on."""
    return code if code < 16 else sum(2 ** max(0, k // 8 - 1) for k in range(code))


def normalised(votes: Any) -> Vector:
    """Votes in 128ths of their mean magnitude, by a reciprocal of 14 bits; at most 4000."""
    rough = coarse(votes, 16)
    mean = max(1, mean_of_means(rough))
    bits = mean.bit_length()
    reciprocal = 2**27 // (mean * 2**14 // 2**bits)
    units = [shift_down(vote * reciprocal, 6 + bits) for vote in entries(rough)]
    return [max(-4000, min(4000, unit)) for unit in units]


def dither_words(shape: tuple[int, ...], step: int) -> Vector:
    """A word of 32 bits for every entry: multiples of constants, of the last axis first."""
    words = [step * 0x9E3779B1]
    constants = [0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F][: len(shape)]
    for size, constant in zip(shape, reversed(constants), strict=True):
        words = [word + index * constant for word in words for index in range(size)]
    return [word % 2**32 for word in words]


Moments = tuple[int, int]  # signed code of m, code of v


def adapted(
    weight: int,
    remainder: int,
    moments: Moments,
    unit: int,
    word: int,
    rate: int,
    betas: tuple[int, int],
) -> tuple[int, int, Moments]:
    """A weight, its remainder and its moments after a vote of `unit` / 128 mean magnitudes.

    Args:
      word: of `dither_words`. rate: in 1 / 4096. betas: both decays in 1 / 128.
    """
    code, square = moments
    sign = -1 if code < 0 else 1
    m = betas[0] * sign * of_eight_bits(abs(code)) + (128 - betas[0]) * 8 * unit
    v = betas[1] * of_eight_bits(square) + (128 - betas[1]) * unit**2
    sign = -1 if m < 0 else 1
    code, square = sign * eight_bits(abs(m), word), eight_bits(v, 2**32 - 1 - word)
    inverse = math.isqrt(2**28 // max(1, of_eight_bits(square)))
    ratio = shift_down(sign * of_eight_bits(abs(code)) * inverse, 10)
    total = remainder + shift_down(max(-1024, min(1024, ratio)) * rate, 7)
    whole = shift_down(total, 12)
    return saturate(weight + whole), total - 4096 * whole, (code, square)


def randomly_moved(weight: int, vote: int, rate: int, random: int) -> int:
    """A weight after the same move, rounded up where the fraction and `random` / 4096 pass 1."""
    return saturate(weight + (((vote > 0) - (vote < 0)) * rate + random) // 4096)


def decayed(config: Config, step: int, halflife: float) -> fractions.Fraction | float:
    """What is left of a scheduled value: 1 at first."""
    halflives = fractions.Fraction(step) / fractions.Fraction(halflife)
    done = min(fractions.Fraction(1), fractions.Fraction(step, max(1, config.run.steps)))
    return {
        "constant": 1,
        "linear": 1 - done,
        "cosine": math.sin(math.pi / 2 * (1 - done)) ** 2,
        "inverse": 1 / (1 + halflives),
        "inverse_sqrt": float(1 + halflives) ** -0.5,
        "inverse_sqrt_to_zero": float(1 - done) * float(1 + halflives) ** -0.5,
    }[config.es.schedule]


def learning_rate(config: Config, step: int) -> int:
    """In units of 2^-12: a part of the warm-up times what is left of the rate."""
    es = config.es
    part = float(fractions.Fraction(step + 1, max(es.warmup, step + 1)))
    return round(es.learning_rate * part * decayed(config, step, es.learning_rate_halflife) * 4096)


def betas(config: Config) -> tuple[int, int]:
    """Decays of both moments in units of 2^-7."""
    first, second = (max(1, min(127, round(b * 128))) for b in (config.es.beta1, config.es.beta2))
    return first, second


def adaptive_rate(config: Config, step: int) -> int:
    """The learning rate times sqrt(1 - beta2^n) / (1 - beta1^n) at the nth step, in 2^-12."""
    first, second = (fractions.Fraction(beta, 128) for beta in betas(config))
    root = math.sqrt(1 - second ** (step + 1))
    return round(learning_rate(config, step) * root / float(1 - first ** (step + 1)))


def vote_threshold(config: Config, step: int) -> int:
    """z with erfc(z / sqrt 2) = alpha, found by bisection, in units of 2^-10."""
    alpha = min(1.0, config.es.alpha * float(decayed(config, step, config.es.alpha_halflife)))
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > alpha else (low, middle)
    return round(low * 1024)


# -- Pulls -----------------------------------------------------------------------------------------


def pulled(
    share: float, seed: int, weight: Vector, place: Vector, tensor: int, step: int
) -> Vector:
    """Weights of one tensor after a pull by a share of the distance, at a constant rate."""
    rate = round(share * 2**16)
    random = rounding(seed, step, tensor, len(weight), 16)
    moved = []
    for w, p, r in zip(weight, place, random, strict=True):
        back = (rate * abs(w - p) + r) // 2**16
        moved.append(w - back if w > p else w + back)
    return moved
