"""Baselines: code lengths of the same held-out bytes by simple models and compressors.

All are in bits per byte of raw text. The entropies are those of the counts of the held-out bytes
themselves. A unigram or bigram model reaches them only if it knows these counts beforehand; one
that is fitted on other text is worse.
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
    """Bits per byte of all documents, joined to one text.

    Args:
      documents: at least one byte of text.

    Returns:
      unigram: entropy H(b_t) of the bytes.
      bigram: conditional entropy H(b_t | b_t-1) of the pairs of neighbouring bytes.
      gzip: size of gzip -9, with its header, which matters for texts under a few kilobytes.
      xz: size of xz -9e, likewise.
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
    # A window as long as the text finds the same matches as the 64 MB window of `xz -9e`, with a
    # fraction of the memory and time.
    window = min(max(len(text), 4096), XZ_WINDOW_MAX)
    filters = [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window},
    ]
    return len(lzma.compress(text, filters=filters))
