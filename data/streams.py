"""Token streams for training: what each stream reads at each step, as a pure function.

S streams, T tokens per segment, N tokens in the text.

Streams are persistent: a stream reads on at each step where it stopped at the step before, and
the state of the members that read it is carried over. So a member meets long documents whole,
although it reads only T tokens per step, and what it must learn to remember is not bounded by T.
The state is forgotten at a separator only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.sources import Document
from int_lm.errors import UserError
from tokenization.interface import Tokenizer


@dataclass(frozen=True, eq=False)
class Streams:
    """S streams over one circular sequence: separator, document, separator, document, ...

    Stream s starts at token s * N // S, reads T tokens per step and goes round without end; the
    join is a separator like any other. There is no other state, so any step can be asked for, in
    any order, at the same cost. Made by `build`.
    """

    tokenizer: Tokenizer
    tokens: np.ndarray  # [N], read-only, in the tokenizer's dtype
    windows: np.ndarray  # [N, T + 1], a view: the T + 1 tokens from each position on
    starts: np.ndarray  # [S] int64, the position of each stream at step 0

    def at(self, step: int) -> np.ndarray:
        """Tokens [S, T + 1] of `step` >= 0, in the tokenizer's dtype.

        Columns 0 to T - 1 are the inputs and columns 1 to T their targets: the last column is
        the first one of the next step.
        """
        count, segment_length = self.windows.shape[0], self.windows.shape[1] - 1
        positions_S = (self.starts + step * segment_length % count) % count
        return self.windows[positions_S]

    def text_bytes(self, step: int) -> int:
        """Bytes of raw text among the S x T targets of `step`; separators count none."""
        return self.tokenizer.count_bytes(self.at(step)[:, 1:])


def build(
    documents: Sequence[Document], tokenizer: Tokenizer, *, streams: int, segment_length: int
) -> Streams:
    """Encode `documents` in their order and lay `streams` streams over them.

    Args:
      documents: the training documents.
      tokenizer: its separator is put before each document.
      streams: S >= 1, es.population / es.members_per_stream.
      segment_length: T >= 1, tokens read per step.

    Raises:
      UserError: fewer than S x T tokens, so that streams would read the same tokens in one step.
    """
    separator = np.array([tokenizer.separator], dtype=tokenizer.encode(b"").dtype)
    parts = [part for text in documents for part in (separator, tokenizer.encode(text.text))]
    count = sum(map(len, parts))
    needed = streams * segment_length
    if count < needed:
        raise UserError(
            f"the training text has {count} tokens, but {streams} streams of {segment_length} "
            f"tokens read {needed} per step; give more text, or lower es.population or "
            "es.segment_length"
        )
    wrapped = np.concatenate([*parts, np.empty(segment_length, separator.dtype)])
    wrapped[count:] = wrapped[:segment_length]  # a window that starts near the end goes round
    wrapped.flags.writeable = False
    return Streams(
        tokenizer=tokenizer,
        tokens=wrapped[:count],
        windows=np.lib.stride_tricks.sliding_window_view(wrapped, segment_length + 1),
        starts=np.arange(streams, dtype=np.int64) * count // streams,
    )
