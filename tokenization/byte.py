"""The byte tokenizer: a token is a byte, and byte 0 separates documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from tokenization.interface import identity_digest, write_identity


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids are byte values (V = 256, separator 0). It is lossless and needs no training.

    A zero byte inside a text would be read as a separator, so text sources refuse such text.
    """

    name: str = field(default="bytes", init=False)
    vocab_size: int = field(default=256, init=False)
    separator: int = field(default=0, init=False)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of ids: uint8."""
        return np.dtype(np.uint8)

    def encode_all(self, texts: Sequence[bytes], threads: int = 1) -> list[np.ndarray]:
        """Ids of every text, as `encode` gives them; `threads` is not used."""
        return [self.encode(text) for text in texts]

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of `text`: uint8 [len(text)], a read-only view of its bytes."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, ids: Any) -> bytes:
        """The bytes whose values are `ids` (any integer array or sequence).

        Raises:
          ValueError: an id outside [0, 255], or ids that are not integers.
        """
        values = np.asarray(ids)
        if values.size == 0:
            return b""
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"token ids are integers, not {values.dtype}")
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"ids lie in [{values.min()}, {values.max()}], bytes in [0, 255]")
        return values.astype(np.uint8).tobytes()

    def count_bytes(self, ids: np.ndarray) -> int:
        """Bytes of raw text among `ids` (any shape): all but the separators."""
        return int(np.count_nonzero(ids != self.separator))

    def digest(self) -> str:
        """Identity: sha256 in hex, the same for all byte tokenizers."""
        return identity_digest(self.name, self.vocab_size, self.separator)

    def save(self, directory: str | Path) -> None:
        """Write `identity.json` into `directory`, which is made if missing."""
        write_identity(self, directory)

    @classmethod
    def load(cls, directory: str | Path, identity: Mapping[str, Any] | None = None) -> Self:
        """A byte tokenizer; its only file is `identity.json`, which `tokenization.load` checks."""
        return cls()
