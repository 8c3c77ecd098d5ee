"""Open the text of a configuration: prepared as a whole, or in stages (see `rolling`)."""

from data import make, rolling
from data.corpus import Corpus
from data.documents import Notice
from int_lm import config
from int_lm.config import DataConfig
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
