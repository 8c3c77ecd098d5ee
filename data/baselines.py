"""Baselines: code lengths of the same held-out bytes by simple models and compressors.

All are in bits per byte of raw text. gzip, xz, zstd and PPMd go on learning to the end of the text,
over the ends of documents; a model is the same at its end as at its beginning, and reads every
document from a fresh state. `told` gives figures of compressors that have read the training text
before, as the model has.

 The entropies are those of the counts of the held-out bytes
themselves. A unigram or bigram model reaches them only if it knows these counts beforehand; one
that is fitted on other text is worse.
"""

import gzip
import importlib
import lzma
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from data.documents import Document

try:
    pyppmd: Any = importlib.import_module("pyppmd")
except ImportError:  # an optional package; PPMd is left out without it
    pyppmd = None

BYTES = 256
COUNTED_AT_ONCE = 1 << 20
XZ_WINDOW_MAX = 64 << 20  # the window of preset 9
ZSTD_LEVEL = 19
PPMD_ORDER, PPMD_MEMORY = 12, 512 << 20  # of PPMd, variant H; memory is taken as it is needed
TOLD_BYTES = 64 << 20  # of the training text that `told` reads, at most


def baselines(documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of all documents, joined to one text.

    Args:
      documents: at least one byte of text.

    Returns:
      unigram: entropy H(b_t) of the bytes.
      bigram: conditional entropy H(b_t | b_t-1) of the pairs of neighbouring bytes.
      gzip: size of gzip -9, with its header, which matters for texts under a few kilobytes.
      xz: size of xz -9e, likewise.
      zstd: size of zstd -19, likewise.
      ppmd: size of PPMd, variant H, order 12; absent if the package pyppmd is not installed.
    """
    text = _joined(documents)
    unigram, bigram = entropies(text)
    sizes = {"zstd": _zstd_size(text)}
    if pyppmd:
        sizes["ppmd"] = _ppmd_size(text)
    return {
        "unigram": unigram,
        "bigram": bigram,
        "gzip": len(gzip.compress(text, compresslevel=9, mtime=0)) * 8 / len(text),
        "xz": _xz_size(text) * 8 / len(text),
        **{name: size * 8 / len(text) for name, size in sizes.items()},
    }


def told(documents: Sequence[Document], training: bytes) -> dict[str, float]:
    """Bits per byte of all documents, joined, by compressors that have read other text before.

    Args:
      documents: at least one byte of text.
      training: the text that they read before, at most `TOLD_BYTES`.

    Returns:
      zstd_told: size of zstd -19 with the training text as its dictionary.
      ppmd_told: by how much PPMd's code of the training text and the documents is longer than that
        of the training text alone; absent if the package pyppmd is not installed.
    """
    text = _joined(documents)
    sizes = {"zstd_told": _zstd_size(text, training)}
    if pyppmd:
        sizes["ppmd_told"] = _ppmd_size(training + text) - _ppmd_size(training)
    return {name: size * 8 / len(text) for name, size in sizes.items()}


def _joined(documents: Sequence[Document]) -> bytes:
    text = b"".join(document.text for document in documents)
    assert text, "baselines need at least one byte"
    return text


def _zstd_size(text: bytes, before: bytes = b"") -> int:
    """The size of zstd -19, its window as long as both texts."""
    options: dict[str, Any] = {}
    if before:
        kind = zstandard.DICT_TYPE_RAWCONTENT
        options["dict_data"] = zstandard.ZstdCompressionDict(before, dict_type=kind)
    window = max(10, min(27, (len(before) + len(text)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, window_log=window)
    options["compression_params"] = parameters
    return len(zstandard.ZstdCompressor(**options).compress(text))


def _ppmd_size(text: bytes) -> int:
    encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)
    return len(encoder.encode(text)) + len(encoder.flush())


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
