"""Code lengths of documents, and what they say in bits per byte. NumPy only.

Bits are summed in whole units of 2^-16 bit and divided, once, by the bytes of the raw text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from int_lm.arithmetic import tables


@dataclasses.dataclass(frozen=True)
class CodeLengths:
    """Code lengths of documents; every summary divides sums, it never averages ratios.

    Attributes:
      log2_likelihoods: int64 [documents], units of 2^-16 bit.
      text_bytes, tokens: int64 [documents]; tokens count the separator that ends a document.
    """

    log2_likelihoods: np.ndarray
    text_bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits(self) -> float:
        return tables.bits(int(self.log2_likelihoods.sum()))

    @property
    def bits_per_byte(self) -> float:
        return self.bits / int(self.text_bytes.sum())

    @property
    def interval_95(self) -> tuple[float, float] | None:
        """95 % interval of bits per byte over documents; None for a single document.

        The ratio estimator's linearised variance (Cochran, "Sampling Techniques", 1977, ch. 6).
        """
        count = len(self.text_bytes)
        if count < 2:
            return None
        bits_each = -self.log2_likelihoods / (1 << 16)
        residuals = bits_each - self.bits_per_byte * self.text_bytes
        variance = count / (count - 1) * float(np.square(residuals).sum())
        half = 1.96 * math.sqrt(variance) / int(self.text_bytes.sum())
        return self.bits_per_byte - half, self.bits_per_byte + half

    def of(self, indices: Sequence[int]) -> Self:
        """The code lengths of some of the documents."""
        chosen = np.array(indices, np.int64)
        return dataclasses.replace(
            self,
            log2_likelihoods=self.log2_likelihoods[chosen],
            text_bytes=self.text_bytes[chosen],
            tokens=self.tokens[chosen],
        )

    def summaries(self, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The summary of every group of documents; `groups` has the group of each."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(groups):
            found.setdefault(name, []).append(index)
        return {name: self.of(indices).summary() for name, indices in found.items()}

    def summary(self) -> dict[str, Any]:
        """The figures that `eval.py --json` prints, except baselines."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "interval_95": self.interval_95,
            "documents": len(self.text_bytes),
            "bytes": int(self.text_bytes.sum()),
            "tokens": int(self.tokens.sum()),
            "token_perplexity": perplexity(self.bits / int(self.tokens.sum())),
            "byte_perplexity": perplexity(self.bits_per_byte),
            "log2_likelihood_units": int(self.log2_likelihoods.sum()),
        }


def perplexity(bits: float) -> float:
    """2^bits."""
    return 2.0**bits
