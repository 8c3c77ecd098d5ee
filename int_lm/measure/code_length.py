"""Code lengths of documents, and bits per byte. NumPy only.

Code lengths are summed as integers, in units of 2^-16 bit. The sum is divided once, by the bytes
of the raw text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from int_lm.arithmetic import constants


@dataclasses.dataclass(frozen=True)
class CodeLengths:
    """Code lengths of documents. Every figure is a ratio of sums, never a mean of ratios.

    Attributes:
      log2_likelihoods: int64 [documents], at most 0, in units of 2^-16 bit.
      text_bytes: int64 [documents], bytes of the raw text.
      tokens: int64 [documents], with the separator that ends each document.
    """

    log2_likelihoods: np.ndarray
    text_bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits(self) -> float:
        """The code length of all documents in bits."""
        return constants.bits(int(self.log2_likelihoods.sum()))

    @property
    def bits_per_byte(self) -> float:
        """The code length of all documents, divided by the bytes of their raw text."""
        return self.bits / int(self.text_bytes.sum())

    @property
    def interval_95(self) -> tuple[float, float] | None:
        """(low, high) of the 95 % interval of bits per byte over documents; None for one document.

        It uses the linearised variance of the ratio estimator (Cochran, "Sampling Techniques",
        1977, chapter 6).
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
        """The code lengths of the documents with these indices."""
        chosen = np.array(indices, np.int64)
        return dataclasses.replace(
            self,
            log2_likelihoods=self.log2_likelihoods[chosen],
            text_bytes=self.text_bytes[chosen],
            tokens=self.tokens[chosen],
        )

    def summaries(self, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The summary of every group of documents, by the name of the group.

        Args:
          groups: for every document, the name of its group.
        """
        found: dict[str, list[int]] = {}
        for index, name in enumerate(groups):
            found.setdefault(name, []).append(index)
        return {name: self.of(indices).summary() for name, indices in found.items()}

    def summary(self) -> dict[str, Any]:
        """The figures that `eval.py --json` prints, without baselines."""
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
    """The perplexity of a mean code length in bits: 2^bits."""
    return 2.0**bits
