"""Rounding of the operands of votes to int8, by a dither.

A dither is a pseudo-random number that is added before the low bits are dropped. Small values are
then rounded to 0 or 1 with the right mean, where plain rounding would always give 0.

One number for each voter, token and column is enough: whatever is rounded there, in any tensor or
layer, uses it; dithers of fewer bits are its top bits. Votes sum over voters and tokens, and over
these the numbers spread evenly, so every rounding has the right mean. Roundings at one voter, token
and column (of a credit, and of the operand made of it; of the terms of rank R) have correlated
errors. Each is below one unit, and so is small beside the noise of the perturbations.

Axes: T tokens of a segment, I voters, N columns.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX


@dataclasses.dataclass(frozen=True)
class Rounding:
    """The dithers of a segment. They depend on the voter, the token's position and the column.

    The position of a token is counted from the start of the run: step * T + t.

    Attributes:
      numbers_I: numbers of the voters, int32: those of their pairs, or of the members if none is
        perturbed.
      step: number of steps done before, uint32 scalar.
      spare_bits: number of bits by which operands of votes are narrower than int8
        (`limits.spare_bits`).
    """

    numbers_I: Array
    step: Array
    spare_bits: int

    def apart(self, number: Array | int) -> "Rounding":
        """Dithers for one more rounding of what was rounded before, at the same entries.

        Numbers that were rounded up by a large dither would be rounded up again by the same one, so
        that small numbers grew from rounding to rounding.

        Args:
          number: of the rounding, 1 and up; below 2^32.
        """
        step = self.step + jnp.uint32(number) * np.uint32(fixed.GOLDEN_RATIO)
        return dataclasses.replace(self, step=step)

    def dither(self, length: int, columns: int, bits: int) -> Array:
        """Dithers in [0, 2^bits): int32 [length, I, columns]."""
        position_T = jnp.arange(length, dtype=jnp.uint32) + self.step * jnp.uint32(length)
        columns_N = jnp.arange(columns, dtype=jnp.int32)
        return fixed.dither(
            self.numbers_I[None, :, None], columns_N[None, None], position_T[:, None, None], bits
        )

    def narrowed(self, x_TIN: Array, bits: int, most: int = INT8_MAX) -> Array:
        """x / 2^bits, rounded by the dither and clipped to [-most, most]: int8 [T, I, N]."""
        x_TIN = x_TIN.astype(jnp.int32)
        if bits:
            length, _, columns = x_TIN.shape
            x_TIN = (x_TIN + self.dither(length, columns, bits)) >> bits
        return fixed.saturate(x_TIN, most)

    def operand(self, x_TIN: Array, bits: int) -> Array:
        """`narrowed` with `spare_bits` bits fewer, so that the sum of all votes fits int32."""
        return self.narrowed(x_TIN, bits + self.spare_bits, INT8_MAX >> self.spare_bits)
