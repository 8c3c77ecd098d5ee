"""Tokenizers: bytes of text to token ids and back, without loss.

Every run and every export holds its tokenizer, described by `identity.json`. The digest in it
identifies the tokenizer: a checkpoint is read only with the tokenizer it was trained with.
"""

from pathlib import Path
from typing import Any

from int_lm.errors import UserError
from int_lm.files import names
from tokenization.byte import ByteTokenizer
from tokenization.interface import Tokenizer, check_own, identity, read_identity
from tokenization.sentence_piece import SentencePieceTokenizer

__all__ = [
    "ByteTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "check_own",
    "identity",
    "load",
    "load_own",
]

KINDS: dict[str, type[ByteTokenizer] | type[SentencePieceTokenizer]] = {
    "bytes": ByteTokenizer,
    "sentencepiece": SentencePieceTokenizer,
}


def load(source: str | Path) -> Tokenizer:
    """The tokenizer that `source` names.

    Args:
      source: `bytes`, a directory that `save` wrote, or a SentencePiece `.model` file; write
        `./bytes`, or give a `Path`, for a directory of that name.

    Raises:
      UserError: no such tokenizer, or an `identity.json` that is missing, damaged, of another
        format version, of an unknown kind, or that does not describe the tokenizer it names.
    """
    if source == ByteTokenizer().name and isinstance(source, str):
        return ByteTokenizer()
    if Path(source).suffix == ".model" and not Path(source).is_dir():
        return SentencePieceTokenizer.load(source)
    saved = read_identity(source)
    path = names.tokenizer_file(source)
    kind = saved["kind"]
    if kind not in KINDS:
        raise UserError(
            f"{path} names the tokenizer kind {kind!r}, known: {', '.join(KINDS)}; "
            "use the int_lm version that wrote it"
        )
    tokenizer = KINDS[kind].load(source, saved)
    actual = {
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "digest": tokenizer.digest(),
    }
    for key, value in actual.items():
        if saved[key] != value:
            raise UserError(
                f"{path} says {key} {saved[key]!r} but the {kind} tokenizer has {value!r}; "
                "the file is damaged or was edited: restore it from the run that wrote it"
            )
    return tokenizer


def load_own(root: str | Path, trained: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a run or an export.

    Args:
      root: the directory of the run or the export.
      trained: the identity of the tokenizer that its weights were trained with.

    Raises:
      UserError: as `load`, or it is another tokenizer.
    """
    directory = Path(root) / "tokenizer"
    tokenizer = load(directory)
    check_own(directory, identity(tokenizer), trained)
    return tokenizer
