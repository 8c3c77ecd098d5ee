"""Texts that a model writes after prompts, many side by side, each as `int_lm.sample` writes it.

Axes: P lanes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from int_lm.harness import likelihoods
from int_lm.harness.lanes import MOST, Lanes
from int_lm.limits import SEPARATOR
from int_lm.runtime import Sampler
from int_lm.sample.stops import until


class Wish(NamedTuple):
    """A text that is asked for.

    Attributes:
      prompt: ids.
      sampler: settings of the draws.
      tokens: the largest number of tokens.
      stops: the text ends before the first of these that occurs in it; none of them is empty.
    """

    prompt: np.ndarray
    sampler: Sampler
    tokens: int
    stops: tuple[bytes, ...]


class _Lane:
    """A text while it is written."""

    def __init__(self, number: int, wish: Wish) -> None:
        self.number, self.wish, self.last = number, wish, likelihoods.last_token(wish.prompt)
        self.before, self.text, self.count = wish.prompt.tolist(), b"", 0
        self.longest = max(map(len, wish.stops), default=0)

    def ended(self, logits_V: np.ndarray, decode: Callable[[list[int]], bytes]) -> bool:
        """Draw the next token; whether the text is complete."""
        token = self.wish.sampler.choose(logits_V, self.count, self.before)
        if token == SEPARATOR:
            return True
        piece = decode([token])
        self.text += piece
        self.before.append(token)
        self.last, self.count = token, self.count + 1
        recent = self.text[-(len(piece) + self.longest) :]
        return self.count == self.wish.tokens or any(stop in recent for stop in self.wish.stops)


def texts(
    lanes: Lanes,
    wishes: Sequence[Wish],
    decode: Callable[[list[int]], bytes],
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[tuple[int, bytes]]:
    """Yield (index of the wish, its text without the prompt) of every wish, as they are complete.

    Args:
      lanes: the model.
      wishes: what is asked for; at least one token each.
      decode: turns ids into bytes.
      progress: called with the number of tokens just read or written.
    """
    order = likelihoods.longest_first([len(wish.prompt) for wish in wishes])
    for first in range(0, len(order), MOST):
        active = [_Lane(number, wishes[number]) for number in order[first : first + MOST]]
        prompts = [lane.wish.prompt for lane in active]
        state = likelihoods.states_before_last(lanes, prompts, progress)
        have = lanes.rows(len(active))
        while active:
            tokens_P = np.full(have, SEPARATOR, np.int64)
            tokens_P[: len(active)] = [lane.last for lane in active]
            state, logits_PV = lanes.step(state, tokens_P)
            progress(len(active))
            ended_P = np.array(
                [lane.ended(logits_PV[place], decode) for place, lane in enumerate(active)]
            )
            if not ended_P.any():
                continue
            for place in np.flatnonzero(ended_P):
                lane = active[place]
                yield lane.number, b"".join(until([lane.text], lane.wish.stops))
            active = [lane for lane, ended in zip(active, ended_P, strict=True) if not ended]
            if active:
                state = likelihoods.taken(lanes, state, np.flatnonzero(~ended_P))
                have = lanes.rows(len(active))
