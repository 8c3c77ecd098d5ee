"""Rounding of what votes are made of: to int8, by a dither, so that no small product is lost.

Axes: T tokens of a segment, I pairs, N columns.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX


@dataclasses.dataclass(frozen=True)
class Rounding:
    """The dithers of a segment: over the pair, the token's position in the run, and the column.

    Attributes:
      pairs_I: numbers of the pairs, int32. step: of the run, uint32 scalar.
      spare_bits: by which operands of votes are narrower than int8 (`limits.spare_bits`).
    """

    pairs_I: Array
    step: Array
    spare_bits: int

    def dither(self, length: int, columns: int, bits: int) -> Array:
        """int32 [T, I, columns] in [0, 2^bits)."""
        position_T = jnp.arange(length, dtype=jnp.uint32) + self.step * jnp.uint32(length)
        columns_N = jnp.arange(columns, dtype=jnp.int32)
        return fixed.dither(
            self.pairs_I[None, :, None], columns_N[None, None], position_T[:, None, None], bits
        )

    def narrowed(self, x_TIN: Array, bits: int, most: int = INT8_MAX) -> Array:
        """x / 2^bits, rounded by the dither and clipped to +-most: int8."""
        x_TIN = x_TIN.astype(jnp.int32)
        if bits:
            length, _, columns = x_TIN.shape
            x_TIN = (x_TIN + self.dither(length, columns, bits)) >> bits
        return fixed.saturate(x_TIN, most)

    def operand(self, x_TIN: Array, bits: int) -> Array:
        """`narrowed`, as coarsely as the sum of a whole population's votes asks for."""
        return self.narrowed(x_TIN, bits + self.spare_bits, INT8_MAX >> self.spare_bits)
