"""Tasks: what a model is asked beside bits per byte, from JSON lines."""

import numpy as np

from data.documents import Notice
from data.records import Files
from int_lm.config import SourceConfig
from int_lm.errors import UserError
from tokenization.interface import Tokenizer


def last_words(
    path: str, tokenizer: Tokenizer, *, notice: Notice | None = None
) -> tuple[list[np.ndarray], list[int]]:
    """Texts as ids, and the place of the first id of each one's last word.

    The word is encoded with the space before it, apart from the text that it ends. Texts of one
    word are left out.

    Args:
      path: JSON lines with a field `text`, as LAMBADA has them (Paperno et al., ACL 2016).

    Raises:
      UserError: unreadable, without the field, or without any text of two words.
    """
    documents, firsts = [], []
    for text in _texts(path, "text", notice):
        context, space, word = text.rstrip().rpartition(b" ")
        if not context.strip():
            continue
        before, after = tokenizer.encode_all([context, space + word])
        documents.append(np.concatenate([before, after]))
        firsts.append(len(before))
    if not documents:
        raise UserError(f"{path} holds no text of two words; each line needs a field text")
    return documents, firsts


def pairs(path: str, tokenizer: Tokenizer, *, notice: Notice | None = None) -> list[np.ndarray]:
    """Sentences as ids: a good one, the bad one beside it, the next good one, ...

    Args:
      path: JSON lines with `sentence_good` and `sentence_bad`, as BLiMP has them (Warstadt et al.,
        TACL 2020).

    Raises:
      UserError: unreadable, without a field, or without any pair.
    """
    good = _texts(path, "sentence_good", notice)
    bad = _texts(path, "sentence_bad", notice)
    texts = [text for pair in zip(good, bad, strict=True) if all(pair) for text in pair]
    if not texts:
        raise UserError(f"{path} holds no pair of sentences")
    return tokenizer.encode_all(texts)


def _texts(path: str, field: str, notice: Notice | None) -> list[bytes]:
    """The values of a field; empty where a record has none."""
    source = Files(SourceConfig("json", (path,), field=field), notice)
    return [document.text for document, _ in source.read() if document.name]
