"""Open the text of a configuration: prepared as a whole, or in stages (see `rolling`).

The text of a run that exists already is known by a digest. `open_again` is for training that goes
on, `open_trained` for commands that compare with what was trained on.
"""

from collections.abc import Sequence
from pathlib import Path

from data import known, make, rolling
from data.corpus import Corpus
from data.documents import Notice
from int_lm import config
from int_lm.config import DataConfig
from int_lm.errors import UserError
from tokenization.interface import Tokenizer


def open_corpus(data: DataConfig, tokenizer: Tokenizer, *, say: Notice) -> Corpus:
    """Prepare the sources of `data`, or find them prepared.

    Args:
      data: if it sets `window_bytes`, only the first stage is prepared.
      tokenizer: encodes the text.
      say: called with one sentence about what was done or skipped.

    Raises:
      UserError: the errors of `make.prepare`.
    """
    if data.window_bytes:
        return rolling.open_rolling(data, tokenizer, say=say)
    sources = [make.prepare(data, source, tokenizer, say=say) for source in config.sources_of(data)]
    return Corpus(tokenizer, sources)


def open_again(data: DataConfig, tokenizer: Tokenizer, sha256: str, *, say: Notice) -> Corpus:
    """The text of a run that is resumed.

    If a file of the text is gone, or the text was the standard library of another Python, the run's
    own shards are read. Text that was changed is opened as it is now: the caller must refuse it.

    Args:
      data: as for `open_corpus`.
      tokenizer: as for `open_corpus`.
      sha256: digest of the text of the run (`Corpus.sha256`).
      say: as for `open_corpus`.
    """

    def shards_of_the_run(why: str) -> Corpus | None:
        if data.window_bytes:  # stages are made from the text, again and again
            return None
        found = known.find(data, tokenizer, sha256, [Path(data.shards)], say=say)
        if found:
            say(f"{why}; going on with the run's token shards in {data.shards}")
        return found

    gone = known.missing(data)
    if gone and (found := shards_of_the_run(f"{gone} is not there any more")):
        return found
    opened = open_corpus(data, tokenizer, say=say)
    if opened.sha256() != sha256 and "stdlib" in {own.source for own in config.sources_of(data)}:
        why = "the standard library of this Python is not that of the run"
        opened = shards_of_the_run(why) or opened
    return opened


def open_trained(
    data: DataConfig,
    tokenizer: Tokenizer,
    sha256: str,
    *,
    folders: Sequence[Path],
    in_full: bool = False,
    say: Notice,
) -> Corpus:
    """The text that a model was trained on: from its shards, or prepared again.

    Args:
      data: as for `open_corpus`.
      tokenizer: as for `open_corpus`.
      sha256: digest of the text (`Corpus.sha256`).
      folders: directories that may have the shards; empty to look at the text alone.
      in_full: whether every stage is needed, and not only the held-out text.
      say: as for `open_corpus`.

    Raises:
      UserError: there are neither text nor shards, or the text has changed; the errors of
        `open_corpus`.
    """
    staged = in_full and data.window_bytes
    if not staged and (found := known.find(data, tokenizer, sha256, folders, say=say)):
        return found
    remedy = (
        "restore the text or its token shards, say where they are now (--data.path, --data.shards)"
    )
    if gone := known.missing(data):
        names = " or ".join(dict.fromkeys(map(str, folders)))
        shards = f", and no token shards of the text that was trained on are in {names}"
        raise UserError(f"{gone} is not there{shards if folders else ''}; {remedy}")
    opened = open_corpus(data, tokenizer, say=say)
    if opened.sha256() != sha256:
        raise UserError(
            f"the text ({opened.described()}) is not what the model was trained on (sha256 "
            f"{sha256[:16]}, now {opened.sha256()[:16]}): what is held out of it may have been "
            f"trained on; {remedy}, or measure other text (eval.py --text)"
        )
    return opened
