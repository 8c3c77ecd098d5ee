"""Rewards as integers, and the fitness of pairs that is made of them.

A reward is a number that a Python function returns. It is rounded to units of 2^-16. Then only
Python's integers are used: they have no largest value, so all results are exact on every machine.
This is fast enough, because there is only one number for each completion.

Axes: P members, I = P/2 pairs, K completions that a member writes of its prompt.
"""

import math
from collections.abc import Sequence

import numpy as np

from int_lm.errors import UserError
from int_lm.limits import FITNESS_MAX, INT8_MAX, LINEAR_LEVELS_AT_MEAN

FRACTION_BITS = 16
REWARD_MAX = 2**14  # in magnitude: a reward in units of 2^-16 fits int32 with room for differences
LEVELS_AT_DEVIATION = 2  # `standard`: fitness of a difference of one standard deviation
KINDS = ("sign", "linear", "rank", "standard")


def fixed_point(reward: float) -> int:
    """A finite reward in units of 2^-16, rounded half to even.

    Raises:
      UserError: the magnitude of the reward exceeds 2^14.
    """
    if abs(reward) > REWARD_MAX:
        raise UserError(
            f"a reward is {reward:g}, rewards lie between -{REWARD_MAX} and {REWARD_MAX}; scale "
            "what the function returns"
        )
    return round(reward * (1 << FRACTION_BITS))


def of_members(rewards_PK: Sequence[Sequence[int]]) -> list[int]:
    """The score of every member: the best of its completions (pass@k for K of them)."""
    return [max(rewards) for rewards in rewards_PK]


def fitness(kind: str, scores_P: Sequence[int], members_per_prompt: int) -> np.ndarray:
    """Fitness of every pair, from the scores of the members of its prompt: int8 [I].

        sign      sign(score+ - score-)
        linear    3 (score+ - score-) / mean |score+ - score-| of the prompt's pairs, at most 7
        rank      7 (rank+ - rank-) / (2 (M - 1)), where the rank of a member is the number of
                  members with lower scores minus the number of those with higher scores
        standard  2 (score+ - score-) / standard deviation of the M scores, at most 7

    Quotients are rounded to the nearest integer, halves away from 0; that of `linear` towards 0, as
    in `fitness.fitness`. If all members of a prompt
    have the same score, the fitness of its pairs is 0.

    Args:
      scores_P: integers; members 2i and 2i+1 are pair i.
      members_per_prompt: M, even; the first M members have the first prompt.
    """
    found: list[int] = []
    for first in range(0, len(scores_P), members_per_prompt):
        scores = list(scores_P[first : first + members_per_prompt])
        if kind == "sign":
            found += [(a > b) - (a < b) for a, b in _pairs(scores)]
        elif kind == "linear":
            found += _linear([a - b for a, b in _pairs(scores)], FITNESS_MAX[kind])
        elif kind == "rank":
            most = FITNESS_MAX[kind]
            ranks = centred_ranks(scores)
            found += [_rounded(most * (a - b), 2 * (len(scores) - 1)) for a, b in _pairs(ranks)]
        else:
            found += _standard(scores, FITNESS_MAX[kind])
    assert all(abs(value) <= INT8_MAX for value in found)
    return np.array(found, np.int8)


def centred_ranks(scores: Sequence[int]) -> list[int]:
    """For every score: the number of scores below it minus the number of scores above it."""
    ordered = sorted(scores)
    below: dict[int, int] = {}
    above: dict[int, int] = {}
    for place, score in enumerate(ordered):
        below.setdefault(score, place)
        above[score] = len(ordered) - 1 - place
    return [below[score] - above[score] for score in scores]


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(values[0::2], values[1::2], strict=True))


def _rounded(dividend: int, divisor: int) -> int:
    """dividend / divisor to the nearest integer, halves away from 0; divisor > 0."""
    whole = (2 * abs(dividend) + divisor) // (2 * divisor)
    return whole if dividend >= 0 else -whole


def _linear(differences: Sequence[int], most: int) -> list[int]:
    """3 difference / mean magnitude, towards 0."""
    whole = max(1, sum(map(abs, differences)))
    scale = LINEAR_LEVELS_AT_MEAN * len(differences)
    levels = [min(scale * abs(x) // whole, most) for x in differences]
    return [level if x >= 0 else -level for x, level in zip(differences, levels, strict=True)]


def _standard(scores: Sequence[int], most: int) -> list[int]:
    """2 (score+ - score-) / deviation. M^2 variance = M sum s^2 - (sum s)^2 =: v, an integer."""
    count = len(scores)
    v = count * sum(score * score for score in scores) - sum(scores) ** 2
    if v == 0:
        return [0] * (count // 2)
    found = []
    for a, b in _pairs(scores):
        # floor(x / sqrt(v) + 1/2) = floor((sqrt(4 x^2 / v) + 1) / 2), by an exact integer root
        x = LEVELS_AT_DEVIATION * count * abs(a - b)
        level = min((math.isqrt(4 * x * x // v) + 1) // 2, most)
        found.append(level if a >= b else -level)
    return found
