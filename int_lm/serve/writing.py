"""One text of a response: ids become characters, stop strings and likelihoods as OpenAI has them.

Axes: V vocabulary.
"""

import codecs
import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from int_lm import runtime
from int_lm.runtime import SEPARATOR, Model
from int_lm.sample.stops import Cut

NATS = math.log(2) / (1 << 16)  # a unit of log2-likelihoods, 2^-16 bit, as a natural logarithm
SEPARATOR_TEXT = "<|endoftext|>"


@dataclasses.dataclass
class Piece:
    """What a text has grown by.

    Attributes:
      text: characters.
      tokens, offsets, token_logprobs, top_logprobs: one entry for each token: its text, the place
        of its first character in the text, its natural log-probability, and that of the likeliest.
    """

    text: str = ""
    tokens: list[str] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    token_logprobs: list[float] = dataclasses.field(default_factory=list)
    top_logprobs: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def add(self, other: "Piece") -> None:
        """Append what came after."""
        self.text += other.text
        for name in ("tokens", "offsets", "token_logprobs", "top_logprobs"):
            getattr(self, name).extend(getattr(other, name))

    def logprobs(self) -> dict[str, Any]:
        """The object `logprobs` of a choice."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.offsets,
        }


class Spelling:
    """How tokens are shown, and how likely they are.

    Args:
      model: of the tokens.
      decode: bytes of ids.
    """

    def __init__(self, model: Model, decode: Callable[[Sequence[int]], bytes]) -> None:
        self.model, self.decode = model, decode
        self.shown = functools.lru_cache(maxsize=1 << 16)(self._shown)

    def _shown(self, token: int) -> str:
        r"""A token as text; one that is not UTF-8 as OpenAI shows it, such as `bytes:\xe2\x80`."""
        if token == SEPARATOR:
            return SEPARATOR_TEXT
        data = self.decode([token])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in data)

    def logprobs(
        self, logits_V: np.ndarray, token: int, top: int
    ) -> tuple[float, dict[str, float]]:
        """Natural log-probabilities, of the exact log2-likelihoods.

        Args:
          logits_V: what the token was drawn from, in units of 1/16 bit.
          token: the token.
          top: how many of the likeliest tokens are wanted.

        Returns:
          that of the token, and by their texts those of the likeliest and of the token.
        """
        likeliest = (-logits_V.astype(np.int64)).argsort(kind="stable")[:top]
        ids = np.array([token, *likeliest[likeliest != token]])
        units = runtime.log2_likelihood(self.model, np.tile(logits_V, (len(ids), 1)), ids)
        of_texts: dict[str, float] = {}
        for each in np.lexsort((ids, -units)):  # of tokens with one text, the likeliest counts
            of_texts.setdefault(self.shown(int(ids[each])), float(units[each]) * NATS)
        return float(units[0]) * NATS, of_texts


class Text:
    """A text that grows token by token.

    One thread calls `echo`, `add` and `end`; another one may call `taken`.

    Attributes:
      seed: of its draws.
      count: tokens that were drawn.
      finish_reason: "stop" or "length" when it has ended.
    """

    def __init__(self, spelling: Spelling, seed: int, stops: Sequence[bytes]) -> None:
        self.seed, self.count = seed, 0
        self.finish_reason: str | None = None
        self._spelling, self._cut = spelling, Cut(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._place = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0  # of all tokens
        self._bytes, self._sure = 0, 0  # of all tokens; of those that no stop string cuts away
        self._held: collections.deque[tuple[int, Piece]] = collections.deque()  # by first byte
        self._ready: collections.deque[Piece] = collections.deque()

    def echo(self, prompt: Sequence[int], scores: Sequence[tuple[float, dict[str, float]]]) -> None:
        """Begin with the prompt.

        Args:
          prompt: ids.
          scores: of each of them, what `Spelling.logprobs` gives; empty if not wanted.
        """
        piece = Piece()
        for token, score in zip(prompt, scores, strict=False):
            piece.add(self._token(token, score))
        data = self._spelling.decode(prompt)
        self._bytes = self._sure = len(data)
        piece.text = self._decoder.decode(data)
        self._ready.append(piece)

    def add(self, token: int, score: tuple[float, dict[str, float]] | None) -> None:
        """Append a token; a stop string that it completes ends the text.

        Args:
          token: id.
          score: what `Spelling.logprobs` gives; None if not wanted.
        """
        data, self.count = self._spelling.decode([token]), self.count + 1
        if score is not None:
            self._held.append((self._bytes, self._token(token, score)))
        self._bytes += len(data)
        self._release(self._cut.feed(data))
        if self._cut.found:
            self.end("stop")

    def end(self, reason: str) -> None:
        """End the text; what was held back belongs to it unless a stop string was found."""
        if not self._cut.found:
            self._release(self._cut.end())
            self._sure = self._bytes + 1  # tokens without bytes too
        self._release(b"", final=True)
        self.finish_reason = reason

    @property
    def ready(self) -> bool:
        """Whether `taken` would give something."""
        return bool(self._ready)

    def taken(self) -> Piece:
        """What has become ready since the last call."""
        whole = Piece()
        while self._ready:
            whole.add(self._ready.popleft())
        return whole

    def _token(self, token: int, score: tuple[float, dict[str, float]]) -> Piece:
        data, place = self._spelling.decode([token]), self._place
        self._characters += len(place.decode(data[:1]))
        # the first byte stands in a character that is not whole yet, or ends one
        inside = bool(data) and not place.getstate()[0]
        offset = self._characters - inside
        self._characters += len(place.decode(data[1:]))
        return Piece("", [self._spelling.shown(token)], [offset], [score[0]], [score[1]])

    def _release(self, data: bytes, final: bool = False) -> None:
        self._sure += len(data)
        piece = Piece(self._decoder.decode(data, final))
        while self._held and self._held[0][0] < self._sure:
            piece.add(self._held.popleft()[1])
        if piece.text or piece.tokens:
            self._ready.append(piece)
