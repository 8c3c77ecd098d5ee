"""The input of a run: tokens of its steps, held-out documents, and their tokenizer.

Axes: S streams, T segment length.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Streams(Protocol):
    """The source of the tokens of every step. All its methods are pure functions of the step."""

    def at(self, step: int) -> np.ndarray:
        """The tokens of a step, an unsigned dtype [S, T+1]: inputs [:, :-1], targets [:, 1:]."""
        ...

    def text_bytes(self, step: int) -> int:
        """The number of bytes of raw text that the targets of a step stand for."""
        ...

    def shares(self, step: int) -> dict[str, float]:
        """By source of text, its share (0 to 1) of what was read before the step."""
        ...


class Tokenizer(Protocol):
    """The part of a tokenizer that a run needs."""

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of a text, in an unsigned dtype."""
        ...

    def decode(self, ids: Any) -> bytes:
        """The bytes that ids stand for."""
        ...

    def save(self, directory: Path) -> None:
        """Write the tokenizer into a directory."""
        ...


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents to evaluate on.

    Attributes:
      ids: of every document, an array of token ids without separators.
      text_bytes: of every document, the number of bytes of its raw text.
      sources: of every document, the name of its source.
    """

    ids: Sequence[np.ndarray]
    text_bytes: Sequence[int]
    sources: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Text:
    """Everything that a run reads.

    Attributes:
      tokenizer: made the ids; it also encodes prompts and decodes samples.
      identity: of the tokenizer (kind, vocab_size, separator, digest).
      streams: the tokens of every step.
      sha256: digest of the training tokens and their layout; a resumed run must read the same.
      mixture: rounds at which the weights of the sources changed, with the weights (JSON).
      heldout: all held-out documents.
      validation: a fixed part of the held-out text, for evaluation during training.
    """

    tokenizer: Tokenizer
    identity: Mapping[str, Any]
    streams: Streams
    sha256: str
    mixture: Sequence[Any]
    heldout: Documents
    validation: Documents
