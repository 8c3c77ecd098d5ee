"""Texts side by side in one batch of the NumPy runtime. Every lane has a state of its own.

Axes: P lanes, V vocabulary.
"""

import collections
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from int_lm.runtime import SEPARATOR, Model, Sampler
from int_lm.serve.refusal import RefusalError
from int_lm.serve.request import Wanted
from int_lm.serve.writing import Spelling, Text


class Job:
    """The texts of one request.

    Attributes:
      wanted: the request.
      texts: those of the first prompt, then those of the next one.
      given_up: nobody waits for it any more.
      refusal: why it ended before its texts did.
    """

    def __init__(self, wanted: Wanted, spelling: Spelling) -> None:
        self.wanted, self.spelling = wanted, spelling
        self.texts = [
            Text(spelling, sampler.seed, wanted.stops)
            for _ in wanted.prompts
            for sampler in wanted.samplers
        ]
        self.given_up = False
        self.refusal: RefusalError | None = None

    @property
    def left(self) -> int:
        """The number of texts that have not ended."""
        return sum(text.finish_reason is None for text in self.texts)

    def streams(self) -> bool:
        """Whether there is something new to be sent before the end."""
        return self.wanted.stream and any(text.ready for text in self.texts)

    def lanes(self) -> list["Lane"]:
        """What reads its prompts."""
        n = len(self.wanted.samplers)
        return [
            Reading(self, prompt, self.texts[n * i : n * (i + 1)])
            for i, prompt in enumerate(self.wanted.prompts)
        ]


class Lane(Protocol):
    """A place in the batch.

    Attributes:
      job: whose it is.
      token: that it reads next.
    """

    job: Job
    token: int

    def take(self, logits_V: np.ndarray) -> Sequence["Lane"]:
        """Take the logits after `token`; the lanes that go on from here, none at the end."""
        ...


class Reading:
    """A lane that reads a prompt, once for all texts that go on with it."""

    def __init__(self, job: Job, prompt: list[int], texts: Sequence[Text]) -> None:
        self.job, self.token = job, SEPARATOR
        self._prompt, self._texts, self._place = prompt, texts, 0
        self._scored = job.wanted.echo and job.wanted.logprobs is not None
        self._scores: list[tuple[float, dict[str, float]]] = []

    def take(self, logits_V: np.ndarray) -> Sequence[Lane]:
        """As of `Lane`."""
        if self._place < len(self._prompt):
            self.token, self._place = self._prompt[self._place], self._place + 1
            if self._scored:
                top = self.job.wanted.logprobs or 0
                self._scores.append(self.job.spelling.logprobs(logits_V, self.token, top))
            return [self]
        lanes: list[Lane] = []
        for text, sampler in zip(self._texts, self.job.wanted.samplers, strict=True):
            if self.job.wanted.echo:
                text.echo(self._prompt, self._scores)
            if self.job.wanted.tokens == 0:
                text.end("length")
            else:
                lanes += Writing(self.job, text, sampler, self._prompt).take(logits_V)
        return lanes


class Writing:
    """A lane that writes a text: the loop of `runtime.generate`, from the side of the reader."""

    def __init__(self, job: Job, text: Text, sampler: Sampler, prompt: Sequence[int]) -> None:
        self.job, self.token = job, SEPARATOR
        self._text, self._sampler = text, sampler
        self._before = _Before(sampler)
        for token in prompt if sampler.repetition_penalty != 1 else ():
            self._before.append(token)

    def take(self, logits_V: np.ndarray) -> Sequence[Lane]:
        """As of `Lane`."""
        wanted, text = self.job.wanted, self._text
        self.token = self._sampler.choose(logits_V, text.count, self._before.ids())
        if self.token == SEPARATOR:
            text.end("stop")
            return []
        score = None
        if wanted.logprobs is not None:
            score = self.job.spelling.logprobs(logits_V, self.token, wanted.logprobs)
        text.add(self.token, score)
        if text.finish_reason is None and text.count == wanted.tokens:
            text.end("length")
        self._before.append(self.token)
        return [] if text.finish_reason else [self]


class _Before:
    """The ids that a repetition penalty is for, each once where all of the text counts."""

    def __init__(self, sampler: Sampler) -> None:
        self._all: dict[int, None] = {}
        self._last: collections.deque[int] | None = None
        if sampler.repetition_window:
            self._last = collections.deque(maxlen=sampler.repetition_window)
        self._needed = sampler.repetition_penalty != 1

    def append(self, token: int) -> None:
        """The next token of the text."""
        if not self._needed:
            return
        if self._last is not None:
            self._last.append(token)
        else:
            self._all[token] = None

    def ids(self) -> list[int]:
        """What `Sampler.choose` takes."""
        return list(self._all if self._last is None else self._last)


class Batch:
    """All lanes and their states.

    Args:
      model: reads the tokens.

    Attributes:
      lanes: P of them.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Give up all lanes."""
        self.lanes: list[Lane] = []
        self._state = self._model.initial_state(0)

    def add(self, lanes: Sequence[Lane]) -> None:
        """Begin lanes, each at the beginning of a document."""
        fresh = self._model.initial_state(len(lanes))
        self._state = {
            name: np.concatenate([leaf, fresh[name]], axis=1) for name, leaf in self._state.items()
        }
        self.lanes += lanes

    def step(self) -> None:
        """Let every lane read a token; those of jobs that were given up end before."""
        self._keep([p for p, lane in enumerate(self.lanes) if not lane.job.given_up])
        if not self.lanes:
            return
        tokens_P = np.array([lane.token for lane in self.lanes], np.int64)
        self._state, logits_PV = self._model.step(self._state, tokens_P, owned=True)
        places, lanes = [], []
        for p, lane in enumerate(self.lanes):
            for following in lane.take(logits_PV[p]):
                places.append(p)
                lanes.append(following)
        self._keep(places)
        self.lanes = lanes

    def _keep(self, places: list[int]) -> None:
        """Go on with lanes and states at `places`, which may name one several times."""
        if places != list(range(len(self.lanes))):
            self.lanes = [self.lanes[p] for p in places]
            self._state = {name: leaf[:, places] for name, leaf in self._state.items()}
