"""Drawing tokens from logits, in integers, with NumPy alone: how the runtime writes text.

`int_lm.runtime` offers these names too, and the runtime.py of an export holds this file's text.

Axes: V vocabulary.
"""

import dataclasses
import decimal
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

FLOOR = 254  # no token is less likely than 2^-(254 / 16) times the likeliest
SEPARATOR = 0  # the token between documents; reading it resets the state
WEIGHT_BITS = 40  # fractional bits of a sampling weight: 65 536 of them sum to at most 2^56
SAMPLING_KEY = 0x53414D50  # keeps these random words apart from those of training
PENALTY_BITS = 8  # a repetition penalty is a multiple of 2^-8

Ids = Sequence[int] | np.ndarray
Reader = Callable[[int], np.ndarray]  # reads a token, returns the logits [V] of the next one


class StateReader:
    """A `Reader` of one document that can be copied.

    Attributes:
      state: where it is, leaves [., 1, ...]. count: tokens that it has read itself.
    """

    def __init__(self, step: Callable[[Any, int], tuple[Any, np.ndarray]], state: Any):
        """`step`: (state, token) -> (next state, logits [V]); it changes no array in place."""
        self._step, self.state, self.count = step, state, 0

    def __call__(self, token: int) -> np.ndarray:
        self.state, logits_V = self._step(self.state, token)
        self.count += 1
        return logits_V

    def copy(self) -> "StateReader":
        """Another reader at the same place."""
        return StateReader(self._step, self.state)


def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> int:
    """Threefry-2x32-20 (Salmon et al., SC 2011), the generator of training, as one 64-bit word."""
    words = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    left, right = (counter[0] + words[0]) % 2**32, (counter[1] + words[1]) % 2**32
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            left = (left + right) % 2**32
            right = ((right << rotation) % 2**32 | right >> (32 - rotation)) ^ left
        left = (left + words[(group + 1) % 3]) % 2**32
        right = (right + words[(group + 2) % 3] + group + 1) % 2**32
    return left << 32 | right


@functools.lru_cache(maxsize=256)  # a server is asked for any temperature
def sampling_weights(temperature: float) -> np.ndarray:
    """round(2^40 * 2^(-d / (16 temperature))) for logit differences d = 0..254: int64 [255]."""
    context = decimal.Context(prec=50)  # its results, unlike exp2's, are the same everywhere
    unit = context.multiply(16, decimal.Decimal(temperature))
    powers = (context.power(2, WEIGHT_BITS - context.divide(d, unit)) for d in range(255))
    return np.array([int(x.to_integral_value(decimal.ROUND_HALF_EVEN)) for x in powers], np.int64)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is drawn: in integers, so that a seed gives the same text everywhere."""

    temperature: float = 0.8  # of the draw; 0 takes the likeliest token (of equals, the lowest id)
    top_k: int = 0  # draw among the k likeliest tokens only (0: all)
    top_p: float = 1.0  # draw among the fewest likeliest tokens that have this probability together
    seed: int = 0
    min_p: float = 0.0  # draw among tokens at least so likely as this times the likeliest
    repetition_penalty: float = 1.0  # tokens read before: logits above 0 over it, others times it
    repetition_window: int = (
        0  # tokens before count for the penalty if among the last so many (0: all)
    )

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**32, "between 0 and 2^32 - 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 1 <= self.repetition_penalty <= 100, "between 1 and 100"),
            ("repetition_window", self.repetition_window >= 0, "at least 0"),
        ):
            if not sound:
                raise ValueError(f"{name} is {getattr(self, name)}, must be {expected}")

    def choose(self, logits_V: np.ndarray, number: int, before: Ids = ()) -> int:
        """The token that draw `number` picks given logits in units of 1/16 bit.

        The order: penalty, temperature, then the cuts `top_k`, `min_p` and `top_p`, each of what
        the one before it left.

        Args:
          before: the ids of the document so far, for the penalty.
        """
        logits_V = self.penalised(logits_V.astype(np.int64), before)
        distance_V = np.minimum(int(logits_V.max()) - logits_V, FLOOR)
        if self.temperature == 0:
            return int(distance_V.argmin())
        order = distance_V.argsort(kind="stable")[: self.top_k or None]
        weights = sampling_weights(self.temperature)[distance_V[order]]  # descending
        if self.min_p:
            numerator, denominator = self.min_p.as_integer_ratio()
            least = -((-numerator << WEIGHT_BITS) // denominator)  # rounded up
            weights = weights[weights >= least]
        cumulated = weights.cumsum()
        top, bottom = self.top_p.as_integer_ratio()
        needed = -(-int(cumulated[-1]) * top // bottom)  # rounded up
        total = int(cumulated[np.searchsorted(cumulated, needed)])
        word = threefry2x32((self.seed, SAMPLING_KEY), (number % 2**32, number >> 32))
        return int(order[np.searchsorted(cumulated, word * total >> 64, side="right")])

    def penalised(self, logits_V: np.ndarray, before: Ids) -> np.ndarray:
        """Logits, int64, with the penalty r of tokens in `before`, as of CTRL (arXiv 1909.05858).

        A logit above 0 becomes floor(logit / r), another one floor(logit r), where r is rounded to
        a multiple of 2^-8. The separator has no penalty.
        """
        units = round(self.repetition_penalty * (1 << PENALTY_BITS))
        if units == 1 << PENALTY_BITS or not len(before):
            return logits_V
        seen = np.unique(np.asarray(before, np.int64)[-self.repetition_window :])
        seen, logits_V = seen[seen != SEPARATOR], logits_V.copy()
        old = logits_V[seen]
        lower = (old << PENALTY_BITS) // units, (old * units) >> PENALTY_BITS
        logits_V[seen] = np.where(old > 0, *lower)
        return logits_V


def generate(
    read: Reader,
    prompt: Ids,
    sampler: Sampler,
    *,
    tokens: int,
    stop: bool = True,
    unread: Ids | None = None,
    first: int = 0,
) -> Iterator[int]:
    """Yield at most `tokens` ids that follow `prompt`; with `stop`, end where a text ends.

    Args:
      unread: what `read` has not read yet, at its end that of `prompt`; None: a separator and all
        of `prompt`.
      first: the number of the first draw.
    """
    before = list(prompt)
    unread = [SEPARATOR, *prompt] if unread is None else unread
    for number in range(first, first + tokens):
        logits_V = [read(token) for token in unread][-1]
        token = sampler.choose(logits_V, number, before)
        if stop and token == SEPARATOR:
            return
        yield token
        unread = [token]
        before.append(token)
