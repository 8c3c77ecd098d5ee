"""Fixed-point arithmetic: all narrowings to int8, right shifts, divisions and int8 dot products.

Formats: q4 is int8 holding value x 16 (weights, residual stream, logits); q7 is int8 holding
value x 127 (recurrent state, gates). int8 values lie in [-127, 127]: -128 never occurs.
Axes: N inputs, M outputs, leading axes are free.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.limits import INT8_MAX

# The kernels (`native`) use these constants, too.
Q4_BITS = 4  # fractional bits of q4
CREDIT_BITS = 13  # |credit| < 2^13 into `layers.norm_credit`
CREDIT_FRACTION_BITS = 2  # of what `layers.norm_credit` returns
CREDIT_SUM_BITS = 4  # fractional bits of a sum of credits before it is rounded (`deep`)
CREDIT_TERM_BITS = 20  # |term of such a sum| < 2^20
ALONG_BITS = 2  # low bits that its sum over the width leaves out
DIRECT_STEP_BITS = 8  # fractional bits of a step of a row of `context_tables`
DIRECT_MEAN_BITS = 8  # additional fractional bits of the step divided by the reads of the row
GOLDEN_RATIO = 0x9E3779B1  # 2^32 / 1.618, made odd
DITHER_COLUMN, DITHER_POSITION, DITHER_LAYER = 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F
MIX_FIRST, MIX_SECOND = 0x85EBCA6B, 0xC2B2AE35  # MurmurHash3's finaliser (Appleby, 2011)
DIVIDEND_BITS = 14  # `floor_divide` takes |dividend| < 2^14 (127 * 127 = 16 129)
DIVISOR_MAX = INT8_MAX


def saturate(x: Array, most: int = INT8_MAX) -> Array:
    """Clip an integer array to [-most, most] and narrow it to int8; every narrowing uses this."""
    return jnp.clip(x, -most, most).astype(jnp.int8)


def narrow(x: Array, dtype: type) -> Array:
    """Clip to the largest value of a signed integer `dtype` and its negative; narrow to `dtype`."""
    most = int(jnp.iinfo(dtype).max)
    return jnp.clip(x, -most, most).astype(dtype)


def shift_down(x: Array, bits: int) -> Array:
    """x / 2^bits rounded half up: (x + 2^(bits-1)) >> bits; `bits` = 0 returns x.

    Contract: |x| + 2^(bits-1) < 2^31 for int32 x.
    """
    return x if bits == 0 else (x + (1 << (bits - 1))) >> bits


def shift_floor(x: Array, bits: int) -> Array:
    """x / 2^bits rounded towards minus infinity: the rounding of architectures."""
    return x >> bits


def dither(row: Array, column: Array, position: Array, bits: int) -> Array:
    """Numbers in [0, 2^bits) that spread evenly along every axis: int32, of broadcast shape.

    Weyl sequences: the top bits of multiples of odd constants modulo 2^32, golden ratio first
    (Knuth, "The Art of Computer Programming", vol. 3, 6.4). A pure function of the coordinates.

    Args:
      row: integer coordinates; the three arrays are broadcast against each other.
      column: integer coordinates.
      position: integer coordinates.
      bits: 1 to 31.
    """
    word = (
        row.astype(jnp.uint32) * np.uint32(GOLDEN_RATIO)
        + column.astype(jnp.uint32) * np.uint32(DITHER_COLUMN)
        + position.astype(jnp.uint32) * np.uint32(DITHER_POSITION)
    )
    return (word >> np.uint32(32 - bits)).astype(jnp.int32)


def dot(x_N: Array, weight_MN: Array) -> Array:
    """x W^T with int32 accumulation: int8 [..., N] and int8 [M, N] give int32 [..., M].

    Contract: N * 127 * 127 < 2^31 (checked by `method.bounds`), so the sum is exact.
    """
    return jax.lax.dot_general(
        x_N, weight_MN, (((x_N.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )


def reciprocals() -> tuple[np.ndarray, np.ndarray]:
    """For each divisor d in [0, 127]: a multiplier below 2^15 + 1 and a shift (index 0 unused).

    The method is that of Granlund and Montgomery, "Division by invariant integers using
    multiplication" (1994). Let l = ceil(log2 d) and m = floor(2^(14+l) / d) + 1. Then
    floor(n / d) = (n m) >> (14 + l) for every 0 <= n < 2^14. n m < 2^29 fits int32.
    """
    shifts = [DIVIDEND_BITS + max(0, (d - 1).bit_length()) for d in range(1, DIVISOR_MAX + 1)]
    multipliers = [2**shift // d + 1 for d, shift in enumerate(shifts, start=1)]
    return np.array([0, *multipliers], np.int32), np.array([0, *shifts], np.int32)


def floor_divide(dividend: Array, divisor: Array) -> Array:
    """floor(dividend / divisor) without a division: |dividend| < 2^14, 1 <= divisor <= 127.

    Args:
      dividend: int32, any shape.
      divisor: int32, broadcastable to `dividend`.

    Returns:
      int32 of `dividend`'s shape.
    """
    multipliers, shifts = reciprocals()
    multiplier, shift = jnp.asarray(multipliers)[divisor], jnp.asarray(shifts)[divisor]
    sign = dividend >> 31  # 0 or -1; floor(n / d) = ~floor(~n / d) for negative n
    return (((dividend ^ sign) * multiplier) >> shift) ^ sign


def integer_sqrt(x: Array) -> Array:
    """floor(sqrt(x)) of an int32 scalar x >= 0, bit by bit from the top."""
    root = jnp.zeros_like(x)
    for bit in reversed(range(16)):
        trial = root | (1 << bit)
        # trial^2 can pass 2^31 only for bit 15 and x below 2^31, so compare by division
        root = jnp.where(trial <= x // trial, trial, root)
    return root
