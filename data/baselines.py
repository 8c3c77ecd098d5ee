"""Baselines: what simple models and compressors need for the same held-out bytes.

All in bits per byte of raw text. The entropies are those of the held-out bytes' own counts: what
a unigram or bigram model reaches that knows these counts beforehand. A model fitted on other text
does worse, so to beat the entropy is the harder test.
"""

import gzip
import lzma
from collections.abc import Sequence

import numpy as np

from data.documents import Document

BYTES = 256
COUNTED_AT_ONCE = 1 << 20
XZ_WINDOW_MAX = 64 << 20  # the window of preset 9


def baselines(documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of the documents' concatenation, by key.

    `unigram`: entropy H(b_t) of its bytes; `bigram`: conditional entropy H(b_t | b_t-1) of its
    pairs of neighbours; `gzip`: gzip -9; `xz`: xz -9e; both with their headers, which weigh on
    texts under a few kilobytes.

    Args:
      documents: at least one byte of text.
    """
    text = b"".join(document.text for document in documents)
    assert text, "baselines need at least one byte"
    unigram, bigram = entropies(text)
    return {
        "unigram": unigram,
        "bigram": bigram,
        "gzip": len(gzip.compress(text, compresslevel=9, mtime=0)) * 8 / len(text),
        "xz": _xz_size(text) * 8 / len(text),
    }


def entropies(text: bytes) -> tuple[float, float]:
    """Empirical entropy of the bytes of `text`, and of a byte given the one before it, in bits."""
    values = np.frombuffer(text, dtype=np.uint8)
    pairs = np.zeros(BYTES * BYTES, dtype=np.int64)
    for start in range(0, len(values) - 1, COUNTED_AT_ONCE):
        chunk = values[start : start + COUNTED_AT_ONCE + 1].astype(np.int64)
        pairs += np.bincount(chunk[:-1] * BYTES + chunk[1:], minlength=BYTES * BYTES)
    before = pairs.reshape(BYTES, BYTES).sum(axis=1)
    every = before.copy()
    every[values[-1]] += 1
    return _entropy(every), max(0.0, _entropy(pairs) - _entropy(before))


def _entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that `counts` (any shape) are proportional to."""
    positive = counts[counts > 0]
    shares = positive / max(1, positive.sum())
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def _xz_size(text: bytes) -> int:
    # A window no longer than the text finds what the 64 MB window of `xz -9e` finds in it, for
    # a fraction of the memory and time.
    window = min(max(len(text), 4096), XZ_WINDOW_MAX)
    filters = [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window},
    ]
    return len(lzma.compress(text, filters=filters))
