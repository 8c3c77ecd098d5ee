"""SentencePiece tokenizers: BPE or unigram pieces over bytes, lossless for any text.

SentencePiece's own decoder turns the character U+2581 into a space. Bytes that are not UTF-8 have
no pieces. A model of text without spaces has no piece for a space, and would give the bytes of
U+2581 instead. Here all of these are encoded as byte pieces, and ids are decoded by a table of the
bytes of each piece. So decoding gives the same text again. A text for which it does not is refused.
"""

import codecs
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from int_lm.config.command_line import command
from int_lm.errors import UserError
from int_lm.files import atomic, untrusted
from tokenization.interface import identity_digest, write_identity

MODEL_FILE = "tokenizer.model"
MODEL_BYTES = 1 << 26  # the largest model file
SPACE = "\u2581"  # stands for a space in pieces


class SentencePieceTokenizer:
    """Ids of a SentencePiece model with byte fallback; id 0, a control piece, is the separator.

    Attributes:
      vocab_size: V, from 257 to 65 536.
      pieces: the bytes that each id stands for; none for the separator and other control pieces.
    """

    name = "sentencepiece"
    separator = 0

    def __init__(self, model: bytes, where: str = "the model") -> None:
        """Take a serialized model.

        Args:
          model: the contents of a `.model` file.
          where: its name in error messages.

        Raises:
          UserError: not a SentencePiece model, or one that loses text (no byte fallback), or one
            whose id 0 is a piece of text.
        """
        import sentencepiece

        no_model = (
            f"{where} is not a SentencePiece model; name a .model file or train one with "
            f"{command('train-tokenizer')}"
        )
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError, UnicodeDecodeError) as error:
            raise UserError(no_model) from error
        self._model, self._processor, self._where = model, processor, where
        self.vocab_size = int(processor.get_piece_size())
        if self.vocab_size > 1 << 16:
            raise UserError(f"{where} has {self.vocab_size} pieces, int_lm reads up to 65536")
        try:
            names = [processor.id_to_piece(index) for index in range(self.vocab_size)]
        except UnicodeDecodeError as error:
            raise UserError(no_model) from error
        of_byte = {
            int(name[1:-1], 16): index
            for index, name in enumerate(names)
            if processor.is_byte(index)
        }
        if len(of_byte) < 256:
            raise UserError(
                f"{where} has no byte fallback, so that characters it does not know would be lost; "
                f"train one with {command('train-tokenizer')}"
            )
        if not (processor.is_control(0) or processor.is_unknown(0)):
            raise UserError(
                f"{where} has the piece {names[0]!r} at id 0, which int_lm needs "
                f"for the separator between documents; train one with {command('train-tokenizer')}"
            )
        # characters that are encoded as bytes, because their pieces would stand for other text
        self._alone = re.compile(f"([{SPACE}{'' if SPACE in names else ' '}])")
        self._of_byte = np.array([of_byte[value] for value in range(256)], self.dtype)
        self.pieces = tuple(self._bytes_of(index, name) for index, name in enumerate(names))
        self._lengths = np.array([len(piece) for piece in self.pieces], np.int64)
        self._begins = np.cumsum(self._lengths) - self._lengths
        self._flat = np.frombuffer(b"".join(self.pieces), np.uint8)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of ids: the narrowest unsigned one that holds V - 1."""
        return np.min_scalar_type(self.vocab_size - 1)

    def _bytes_of(self, index: int, piece: str) -> bytes:
        processor = self._processor
        if processor.is_control(index) or processor.is_unknown(index):
            return b""
        if processor.is_byte(index):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()

    def encode(self, text: bytes) -> np.ndarray:
        """Ids [N] of `text`, in `dtype`.

        Raises:
          UserError: the model changes the text (its normalisation is not the identity).
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[bytes], threads: int = 1) -> list[np.ndarray]:
        """Ids of every text, as `encode` gives them, computed by `threads` threads.

        Raises:
          UserError: the model changes a text.
        """
        parts = [_parts(text, self._alone) for text in texts]
        plain = [part for text in parts for part in text if isinstance(part, str)]
        encoded = iter(self._processor.encode(plain, out_type=int, num_threads=threads))
        results = []
        for text, split in zip(texts, parts, strict=True):
            runs = [
                np.array(next(encoded), self.dtype)
                if isinstance(part, str)
                else self._of_byte[np.frombuffer(part, np.uint8)]
                for part in split
            ]
            ids = np.concatenate(runs) if len(runs) != 1 else runs[0]
            if self.decode(ids) != text:
                raise UserError(self._loss(text, self.decode(ids)))
            results.append(ids)
        return results

    def _loss(self, text: bytes, changed: bytes) -> str:
        """The sentence that says where a model changes a text."""
        pairs = zip(text, changed, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(changed)))
        while same > 0 and same < len(text) and text[same] & 0xC0 == 0x80:
            same -= 1
        character = text[same : same + 4].decode("utf-8", "ignore")[:1]
        code = f"the character U+{ord(character):04X} there" if character else "its end"
        return (
            f"{self._where} does not keep text: it changes {code}, at byte offset {same}; use a "
            f"model trained with {command('train-tokenizer')}, which normalises nothing"
        )

    def decode(self, ids: Any) -> bytes:
        """The bytes that `ids` (any integer array or sequence) stand for.

        Raises:
          ValueError: an id outside [0, V), or ids that are not integers.
        """
        values = np.asarray(ids)
        if values.size == 0:
            return b""
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"token ids are integers, not {values.dtype}")
        if values.min() < 0 or values.max() >= self.vocab_size:
            raise ValueError(
                f"ids lie in [{values.min()}, {values.max()}], tokens in [0, {self.vocab_size - 1}]"
            )
        flat = values.ravel()
        lengths = self._lengths[flat]
        shifts = self._begins[flat] - (np.cumsum(lengths) - lengths)
        return self._flat[np.repeat(shifts, lengths) + np.arange(lengths.sum())].tobytes()

    def count_bytes(self, ids: np.ndarray) -> int:
        """Bytes of raw text that `ids` (any shape) stand for; separators stand for none."""
        return int(self._lengths[ids].sum())

    @functools.cached_property
    def _digest(self) -> str:
        return identity_digest(self.name, self.vocab_size, self.separator, self._model)

    def digest(self) -> str:
        """Identity: sha256 in hex of the kind, the sizes and the model file."""
        return self._digest

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.model` and then `identity.json` into `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        atomic.write(directory / MODEL_FILE, self._model)
        write_identity(self, directory)

    @classmethod
    def load(cls, directory: str | Path, identity: Mapping[str, Any] | None = None) -> Self:
        """Read what `save` wrote, or a `.model` file from elsewhere.

        Args:
          identity: what identity.json says. Its digest is compared before the library, which is
            native code, sees the model.

        Raises:
          UserError: unreadable, or not a model that keeps text.
        """
        path = Path(directory)
        path = path / MODEL_FILE if path.is_dir() else path
        try:
            model = untrusted.read_bytes(path, MODEL_BYTES)
        except (OSError, untrusted.MalformedError) as error:
            raise UserError(
                f"cannot read the tokenizer {path}: {untrusted.reason(error)}; name a directory "
                f"that {command('train-tokenizer')} wrote, or a .model file"
            ) from error
        if identity is not None:
            found = identity_digest(cls.name, identity["vocab_size"], identity["separator"], model)
            if found != identity["digest"]:
                raise UserError(
                    f"{path} is not the model that the .json file beside it describes: one of "
                    "the two is damaged or was edited; restore them from the run that wrote them"
                )
        return cls(model, str(path))


def _parts(text: bytes, alone: re.Pattern[str]) -> list[str | bytes]:
    """Split a text: strings that the model encodes, and bytes that are encoded one by one.

    The bytes are those that are not UTF-8, and those of the characters that `alone` finds.
    """
    parts: list[str | bytes] = []
    rest = memoryview(text)
    while rest:
        try:
            read, fault = str(rest, "utf-8"), b""
            rest = rest[len(rest) :]
        except UnicodeDecodeError as error:
            read = codecs.utf_8_decode(rest[: error.start], "strict", True)[0]
            fault = bytes(rest[error.start : error.end])
            rest = rest[error.end :]
        for number, run in enumerate(alone.split(read)):
            if run:
                parts.append(run.encode() if number % 2 else run)
        if fault:
            parts.append(fault)
    return parts or [""]
