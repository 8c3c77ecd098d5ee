"""Tasks that measure a model apart from bits per byte, read from JSON lines."""

from typing import Any

import numpy as np
from msgspec import UNSET

from data.documents import Notice
from data.fields import Problem
from data.formats import LAST_WORD, PAIR
from data.json_file import JsonFile
from data.listed import printable
from data.records import Files
from int_lm.config import SourceConfig
from int_lm.errors import UserError
from int_lm.files import digest
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
    for (text,), place in source.texts(["text"], f"a line is {LAST_WORD}"):
        context, space, word = text.rstrip().rpartition(b" ")
        if not context.strip():
            source.tally.add("left out texts of one word", place)
            continue
        before, after = tokenizer.encode_all([context, space + word])
        documents.append(np.concatenate([before, after]))
        firsts.append(len(before))
    source.tally.tell(notice)
    if not documents:
        raise UserError(f"{path} holds no text of two words; a line is {LAST_WORD}")
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
    texts = [text for pair, _ in source.texts(fields, f"a line is {PAIR}") for text in pair]
    source.tally.tell(notice)
    if not texts:
        raise UserError(f"{path} holds no pair of sentences; a line is {PAIR}")
    return tokenizer.encode_all(texts)


def prompts(path: str) -> list[tuple[str, dict[str, Any]]]:
    """(prompt, facts) of every record of a JSON file: its field `prompt`, and its other fields.

    Raises:
      UserError: names file and line: no such file, an empty one, a record without a prompt of text.
    """
    shown = printable(path)
    found = []
    file = JsonFile(path, shown, ["prompt"], None)
    for values in file:
        problem, facts = "", {}
        if isinstance(values, Problem):
            problem = values.why
        elif values[0] is UNSET or not values[0]:
            problem = "the record has no field prompt, or an empty one"
        elif "\0" in values[0]:
            problem = "the prompt holds a zero character"
        else:
            facts = file.record()
            try:
                digest.canonical_json(facts)
            except ValueError:
                problem = "a number in it is not finite"
        if problem:
            raise UserError(f"{file.where()}: {problem}; repair or remove the record")
        found.append((facts.pop("prompt"), facts))
    if not found:
        raise UserError(
            f'{shown} is empty; give prompts as JSON lines, {{"prompt": "...", further facts}}'
        )
    return found
