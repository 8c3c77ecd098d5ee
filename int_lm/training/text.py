"""What a run reads: tokens of its steps, held-out documents, and the tokenizer that made them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Streams(Protocol):
    """Where the tokens of a step come from: pure functions of the step."""

    def at(self, step: int) -> np.ndarray:
        """Tokens [S, T+1]."""
        ...

    def text_bytes(self, step: int) -> int:
        """Bytes of raw text among the step's targets."""
        ...

    def shares(self, step: int) -> dict[str, float]:
        """The share that each source of text has had before the step."""
        ...


class Tokenizer(Protocol):
    """The part of a tokenizer that a run needs."""

    def encode(self, text: bytes) -> np.ndarray: ...

    def decode(self, ids: Any) -> bytes: ...

    def save(self, directory: Path) -> None: ...


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents to evaluate on: ids, the bytes of raw text they stand for, and their source."""

    ids: Sequence[np.ndarray]
    text_bytes: Sequence[int]
    sources: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Text:
    """Everything a run reads.

    Attributes:
      identity: of the tokenizer (kind, vocab_size, separator, digest).
      sha256: of the training tokens and their layout; a resumed run must read the same.
      mixture: rounds at which the weights of the sources changed, with the weights (JSON).
      validation: a fixed part of the held-out text, for evaluation while training.
    """

    tokenizer: Tokenizer
    identity: Mapping[str, Any]
    streams: Streams
    sha256: str
    mixture: Sequence[Any]
    heldout: Documents
    validation: Documents
