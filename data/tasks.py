"""Tasks that measure a model apart from bits per byte, read from JSON lines."""

import numpy as np

from data.documents import Notice
from data.records import Files
from int_lm.config import SourceConfig
from int_lm.errors import UserError
from tokenization.interface import Tokenizer


def last_words(
    path: str, tokenizer: Tokenizer, *, skip_damaged: int = 0, notice: Notice | None = None
) -> tuple[list[np.ndarray], list[int]]:
    """(texts as ids, index of the first id of the last word of each text).

    The last word, with the space before it, is encoded separately from the text before it. Texts
    of one word are left out and counted.

    Args:
      path: JSON lines with a field `text`, as LAMBADA has them (Paperno et al., ACL 2016).
      skip_damaged: damaged records that may be left out.
      notice: called with one sentence about each kind of thing that is left out.

    Raises:
      UserError: the file is unreadable, without the field, or without any text of two words.
    """
    source = Files(SourceConfig("json", (path,), skip_damaged=skip_damaged))
    documents, firsts = [], []
    for (text,), place in source.texts(["text"]):
        context, space, word = text.rstrip().rpartition(b" ")
        if not context.strip():
            source.tally.add("left out texts of one word", place)
            continue
        before, after = tokenizer.encode_all([context, space + word])
        documents.append(np.concatenate([before, after]))
        firsts.append(len(before))
    source.tally.tell(notice)
    if not documents:
        raise UserError(f"{path} holds no text of two words; each line needs a field text")
    return documents, firsts


def pairs(
    path: str, tokenizer: Tokenizer, *, skip_damaged: int = 0, notice: Notice | None = None
) -> list[np.ndarray]:
    """Sentences as ids: a good one, the bad one beside it, the next good one, ...

    Args:
      path: JSON lines with `sentence_good` and `sentence_bad`, as BLiMP has them (Warstadt et al.,
        TACL 2020).
      skip_damaged: damaged records that may be left out; one damaged field makes a record damaged.
      notice: called with one sentence about each kind of thing that is left out.

    Raises:
      UserError: the file is unreadable, without a field, or without any pair.
    """
    source = Files(SourceConfig("json", (path,), skip_damaged=skip_damaged))
    fields = ["sentence_good", "sentence_bad"]
    texts = [text for pair, _ in source.texts(fields) for text in pair]
    source.tally.tell(notice)
    if not texts:
        raise UserError(f"{path} holds no pair of sentences")
    return tokenizer.encode_all(texts)
