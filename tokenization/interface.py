"""The interface of a tokenizer, and the file that identifies the tokenizer of a run."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from int_lm.config.command_line import command
from int_lm.errors import UserError, differences
from int_lm.files import atomic, names, untrusted

FORMAT_VERSION = 1

_FIELDS = {"kind": str, "vocab_size": int, "separator": int, "format_version": int, "digest": str}


class Tokenizer(Protocol):
    """Lossless, deterministic map between the bytes of a text and token ids."""

    @property
    def name(self) -> str:
        """The kind of tokenizer, as written in `identity.json`."""
        ...

    @property
    def vocab_size(self) -> int:
        """V; every id lies in [0, V)."""
        ...

    @property
    def separator(self) -> int:
        """The id that stands between documents; it resets the model's state."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of ids: the narrowest unsigned one that holds V - 1."""
        ...

    def encode_all(self, texts: Sequence[bytes], threads: int = 1) -> list[np.ndarray]:
        """Ids of every text, as `encode` gives them, computed by `threads` threads."""
        ...

    def encode(self, text: bytes) -> np.ndarray:
        """Ids [N] of `text`, in the narrowest unsigned dtype that holds V - 1; may be read-only."""
        ...

    def decode(self, ids: Any) -> bytes:
        """The bytes that `ids` (any integer array or sequence) stand for: decode(encode(x)) == x.

        Raises:
          ValueError: an id outside [0, V).
        """
        ...

    def count_bytes(self, ids: np.ndarray) -> int:
        """Bytes of raw text that `ids` (any shape) stand for; a separator stands for none."""
        ...

    def digest(self) -> str:
        """Identity: sha256, in hex, of everything that decides what `encode` and `decode` do."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer into `directory` (made if missing), for `tokenization.load`."""
        ...

    @classmethod
    def load(cls, directory: str | Path, identity: Mapping[str, Any] | None = None) -> Self:
        """Read what `save` wrote; call `tokenization.load`, which also checks the identity.

        Args:
          identity: the contents of `identity.json`, of the right types but not yet trusted.
        """
        ...


def identity_digest(kind: str, vocab_size: int, separator: int, content: bytes = b"") -> str:
    """sha256 in hex of a tokenizer's kind, sizes and `content` (its model file, if it has one)."""
    header = json.dumps([FORMAT_VERSION, kind, vocab_size, separator])
    return hashlib.sha256(header.encode() + b"\n" + content).hexdigest()


def identity(tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields that identify a tokenizer in a checkpoint or an export."""
    return {
        "kind": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "digest": tokenizer.digest(),
    }


def check_own(directory: str | Path, found: dict[str, Any], trained: dict[str, Any]) -> None:
    """Refuse the tokenizer beside weights if they were trained with another one.

    Args:
      directory: where it lies in the run or the export.
      found: its identity.
      trained: the identity of the tokenizer of the training.

    Raises:
      UserError: names the directory, and every entry that differs, with both values.
    """
    if different := differences(found, trained, ", not "):
        raise UserError(
            f"the tokenizer in {directory} is not the one that the weights were trained with: it "
            f"has {'; '.join(different)}; restore it from a copy of the run or the export"
        )


def write_identity(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write `identity.json` into `directory`: whole or not at all, however the process ends.

    The same content under the name that earlier versions used is removed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = {**identity(tokenizer), "format_version": FORMAT_VERSION}
    text = json.dumps(content, indent=2) + "\n"
    atomic.write(directory / names.TOKENIZER, text.encode())
    before = directory / names.TOKENIZER_BEFORE
    with contextlib.suppress(OSError):
        if before.read_bytes() == text.encode():
            before.unlink()


def _is_of_another_library(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return b'"added_tokens"' in file.read(1 << 16)
    return False


def read_identity(directory: str | Path) -> dict[str, Any]:
    """The fields of `identity.json`, each of its proper type; their values are not yet trusted.

    Raises:
      UserError: missing, unreadable or damaged file, or another format version.
    """
    path = names.tokenizer_file(directory)
    if path.name == names.TOKENIZER_BEFORE and path.is_file() and _is_of_another_library(path):
        raise UserError(
            f"{path} is a tokenizer of the library `tokenizers`, which int_lm does not read; name "
            f"a SentencePiece .model file or train one with {command('train-tokenizer')}"
        )
    try:
        identity = untrusted.read_json(path, untrusted.METADATA_BYTES)
    except FileNotFoundError as error:
        raise UserError(
            f"no tokenizer at {path}; name a directory that a run or an export wrote"
        ) from error
    except (OSError, untrusted.MalformedError) as error:
        raise UserError(
            f"cannot read the tokenizer {path}: {untrusted.reason(error)}; restore it from the run "
            "that wrote it"
        ) from error
    version = identity.get("format_version") if isinstance(identity, dict) else None
    if type(version) is int and version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; "
            "use the int_lm version that wrote it"
        )
    for key, kind in _FIELDS.items():
        if not isinstance(identity, dict) or type(identity.get(key)) is not kind:
            raise UserError(
                f"{path} is damaged: it has no valid {key}; restore it from the run that wrote it"
            )
    return identity
