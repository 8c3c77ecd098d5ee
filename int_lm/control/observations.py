"""Observations as int8: running statistics in integers, and the encoding that follows from them.

Of every number of an observation a run keeps, since its start, how many were seen, their sum and
the sum of their distances from the mean of that time. These are Python's integers, so no sum
overflows and every machine gets the same. Once more than `COUNT_MAX` were seen, all three are
halved: old observations fade.

    mean = sum / count        deviation = sum of distances / count
    encoded x = clip(16 (x - mean) / deviation, -127, 127)          q4: 16 is one mean deviation

One more input is always 16: norms of the network divide by the mean magnitude of what they get, and
without a constant beside it the size of an observation would be lost.

Axes: R episodes that are played together, N numbers of an observation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT32_MAX

COUNT_MAX = 1 << 22
DEVIATION_MIN = 16  # in units of 2^-16: a number that hardly changes is not blown up to noise
ONE = 16  # 1.0 in q4, and the constant input
DEVIATIONS_MAX = 8  # farther than this many deviations is 127
_MULTIPLIER_BITS = 16
_BYTES = 4


class Encoding(NamedTuple):
    """How observations are encoded in one step; of every number, int32 [N].

    Attributes:
      centre: the mean, which is subtracted.
      limit: the difference is clipped to it first.
      shift: right shift of the difference; then it has at most 16 bits.
      multiplier: of the shifted difference; the product, in units of 2^-16, is the result.
    """

    centre: np.ndarray
    limit: np.ndarray
    shift: np.ndarray
    multiplier: np.ndarray


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a run has seen of observations, in units of 2^-16.

    Attributes:
      count: number of observations.
      totals: of every number, the sum.
      distances: of every number, the sum of distances from the mean of that time.
    """

    count: int
    totals: tuple[int, ...]
    distances: tuple[int, ...]

    @classmethod
    def none(cls, size: int) -> "Statistics":
        """Of no observations of `size` numbers."""
        return cls(0, (0,) * size, (0,) * size)

    @property
    def means(self) -> list[int]:
        """The mean of every number, rounded down."""
        return [total // max(1, self.count) for total in self.totals]

    @property
    def deviations(self) -> list[int]:
        """The mean distance from the mean of every number, rounded down, at least 16."""
        found = [total // max(1, self.count) for total in self.distances]
        return [max(DEVIATION_MIN, deviation) for deviation in found]

    def added(self, seen: "Statistics") -> "Statistics":
        """The statistics with those of some more observations."""
        count = self.count + seen.count
        totals = [a + b for a, b in zip(self.totals, seen.totals, strict=True)]
        distances = [a + b for a, b in zip(self.distances, seen.distances, strict=True)]
        while count > COUNT_MAX:
            count >>= 1
            totals = [total >> 1 for total in totals]
            distances = [total >> 1 for total in distances]
        return Statistics(count, tuple(totals), tuple(distances))

    def encoding(self) -> Encoding:
        """The encoding that follows from the statistics."""
        parts = [_encoding(*pair) for pair in zip(self.means, self.deviations, strict=True)]
        return Encoding(*np.array(parts, np.int32).reshape(-1, len(Encoding._fields)).T)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the host data of a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, value: Any) -> "Statistics | None":
        """The inverse of `to_json`; None if the value does not have its form."""
        if not isinstance(value, dict):
            return None
        count, *sums = (value.get(field.name) for field in dataclasses.fields(cls))
        if type(count) is not int or count < 0:
            return None
        lists = [numbers for numbers in sums if isinstance(numbers, list | tuple)]
        if len(lists) < len(sums) or any(type(x) is not int for numbers in lists for x in numbers):
            return None
        return cls(count, *map(tuple, lists))


def _encoding(mean: int, deviation: int) -> tuple[int, int, int, int]:
    """`Encoding` of one number.

    The product of a shifted difference and the multiplier is below 2^25: without a shift the
    difference is at most 8 deviations and the multiplier 2^20 / deviation; with one the deviation
    is at least 2^(11 + shift), so that the multiplier is at most 2^9 and the difference 2^15.
    """
    limit = min(DEVIATIONS_MAX * deviation, INT32_MAX)
    shift = max(0, limit.bit_length() - 15)
    scaled = ONE << (_MULTIPLIER_BITS + shift)
    return mean, limit, shift, (scaled + deviation // 2) // deviation


def encoded(encoding: Encoding, x_RN: Array) -> Array:
    """Observations as the policy's inputs: int32 [R, N] -> int8 q4 [R, N + 1].

    Args:
      x_RN: of `border.observed`. Differences from a mean of such numbers fit int32.
    """
    centre, limit, shift, multiplier = (jnp.asarray(part)[None] for part in encoding)
    difference = jnp.clip(x_RN - centre, -limit, limit) >> jnp.broadcast_to(shift, x_RN.shape)
    scaled = fixed.shift_down(difference * multiplier, _MULTIPLIER_BITS)
    constant = jnp.full((len(x_RN), 1), ONE, jnp.int8)
    return jnp.concatenate([fixed.saturate(scaled), constant], axis=1)


# -- Sums on the device ----------------------------------------------------------------------------
# A sum of many int32 numbers does not fit int32, but the sums of their bytes do.


def no_sums(size: int) -> Array:
    """The sums of no observations: int32 zeros [1 + 8 size]."""
    return jnp.zeros(1 + 2 * _BYTES * size, jnp.int32)


def sums(encoding: Encoding, x_RN: Array, counted_R: Array) -> Array:
    """How many observations are counted, and their sums by bytes, for `of_sums`.

    Args:
      x_RN: of `border.observed`.
      counted_R: bool, whether an observation counts.
    """
    x_RN = jnp.where(counted_R[:, None], x_RN, 0)
    mean = jnp.asarray(encoding.centre)[None]
    distance_RN = jnp.where(counted_R[:, None], jnp.abs(x_RN - mean), 0)
    parts = [jnp.sum(counted_R, dtype=jnp.int32)[None]]
    for numbers_RN in (x_RN, distance_RN):
        for byte in range(_BYTES):
            part_RN = numbers_RN >> (8 * byte)
            if byte < _BYTES - 1:  # the highest byte has the sign
                part_RN = part_RN & 255
            parts.append(jnp.sum(part_RN, axis=0, dtype=jnp.int32))
    return jnp.concatenate(parts)


def sums_bound(count: int) -> int:
    """The largest magnitude that a sum of the bytes of `count` observations can reach."""
    return 255 * count


def of_sums(sums_CK: np.ndarray | Sequence[Sequence[int]], size: int) -> Statistics:
    """The statistics of what was counted by `sums`, in several parts C."""
    whole = [sum(map(int, column)) for column in zip(*sums_CK, strict=True)]
    count, rest = whole[0], np.array(whole[1:], object).reshape(2, _BYTES, size)
    totals, distances = (
        tuple(sum(int(part[byte][n]) << (8 * byte) for byte in range(_BYTES)) for n in range(size))
        for part in rest
    )
    return Statistics(count, totals, distances)
