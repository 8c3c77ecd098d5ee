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
    """The dithers of a segment: over the pair, the token's place in the run, and the column."""

    pairs_I: Array
    number: Array
    spare_bits: int

    @property
    def place(self) -> tuple[Array, Array]:
        """What kernels make the dithers of."""
        return self.pairs_I, self.number

    def dither(self, length: int, columns: int, bits: int) -> Array:
        """int32 [T, I, columns] in [0, 2^bits)."""
        place = jnp.arange(length, dtype=jnp.uint32) + self.number * jnp.uint32(length)
        columns_N = jnp.arange(columns, dtype=jnp.int32)
        return fixed.dither(
            self.pairs_I[None, :, None], columns_N[None, None], place[:, None, None], bits
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
