"""Fitness, schedules and updates."""

import fractions
import math
from collections.abc import Iterator
from typing import Any

from int_lm.config import Config, EsConfig
from oracle.arithmetic import Vector, saturate, shift_down


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
    """In units of 2^-12."""
    return round(
        config.es.learning_rate * 4096 * decayed(config, step, config.es.learning_rate_halflife)
    )


def vote_threshold(config: Config, step: int) -> int:
    """z with erfc(z / sqrt 2) = alpha, found by bisection, in units of 2^-10."""
    alpha = min(1.0, config.es.alpha * float(decayed(config, step, config.es.alpha_halflife)))
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > alpha else (low, middle)
    return round(low * 1024)
