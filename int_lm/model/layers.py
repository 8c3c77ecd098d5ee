"""What architectures share: the L1 norm, saturating sums, and what a token leaves for votes.

Axes: P members (or any batch), D width, N inputs, E effects; layers are stacked in front.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.model.params import Tree

CREDIT_BITS = 13  # |credit| < 2^13 into `norm_credit`
CREDIT_FRACTION_BITS = 2  # of what `norm_credit` returns


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Use:
    """How members used one tensor for one token: what votes other than plain ones are made of.

    Attributes:
      inputs: what the tensor was applied to, int8 [..., P, N]; tokens int32 [P] for an EMBEDDING.
      effect: of a MATRIX, what its outputs led to: int8 or int32 [..., P, E], the numbers added to
        the residual stream, or the inputs of the PROJECTION that `Spec.through` names. Output m of
        the tensor acts on effect m mod E and on no other.
    """

    inputs: Array
    effect: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activity:
    """What reading one token left behind. Training uses it; evaluation drops it unread.

    Attributes:
      uses: tree of `Use`, one for every tensor but the VECTORs.
      residual: the residual stream at its end, int8 q4 [P, D].
      gain: weight of the norm between it and the readout, int32 [P, D].
      rows: of the context tables that were read, int32 [P] by name; empty without tables.
    """

    uses: Tree
    residual: Array
    gain: Array
    rows: dict[str, Array] = dataclasses.field(default_factory=dict)


def plus(*terms: Array) -> Array:
    """saturate(sum) of int8 or int32 arrays of one shape."""
    return fixed.saturate(functools.reduce(jnp.add, [term.astype(jnp.int32) for term in terms]))


def _mean_magnitude(x_PD: Array) -> Array:
    """max(1, floor(mean|x|)), int32 [P, 1]."""
    mean_P1 = jnp.sum(jnp.abs(x_PD), axis=-1, keepdims=True) // x_PD.shape[-1]
    return jnp.maximum(mean_P1, 1)


def norm(gain_PD: Array, x_PD: Array) -> Array:
    """L1 norm: saturate(floor(x g / max(1, mean|x|))), g int32, x int8 q4 -> int8 q4 [P, D]."""

    def by_jax() -> Array:
        x = x_PD.astype(jnp.int32)
        return fixed.saturate(fixed.floor_divide(x * gain_PD, _mean_magnitude(x)))

    return native.either(
        lambda: native.norm(x_PD, gain_PD.astype(jnp.int8), *fixed.reciprocals()), by_jax
    )


def norm_credit(gain_PD: Array, x_PD: Array, credit_PD: Array) -> Array:
    """Credit of a norm's input from that of its output: the transposed derivative of `norm`.

    With m = mean|x|, y = g x / m has the derivative dy_n / dx_k = (g_n / m) ([n = k] -
    x_n sign(x_k) / (m D)), hence, in units of 1/4 (`CREDIT_FRACTION_BITS`) of `credit_PD`,

        out_k = 4 (c_k - sign(x_k) (sum_n x_n c_n / D) / m) / m        with c = g credit / 16

    Args:
      gain_PD: int32, |g| <= 127. x_PD: int8. credit_PD: int32, |credit| < 2^CREDIT_BITS.

    Returns:
      int32 [P, D], below 2^14. Every quotient is rounded half up and clipped to what
      `fixed.floor_divide` takes. Contract: D 127 2^12 < 2^31 (`method.bounds`).
    """
    x = x_PD.astype(jnp.int32)
    mean_P1 = _mean_magnitude(x)
    c = _clipped(fixed.shift_down(credit_PD * gain_PD, 4))
    along_P1 = jnp.sum(x * fixed.shift_down(c, 2), axis=-1, keepdims=True) // x.shape[-1]
    across = c - 4 * jnp.sign(x) * _rounded_divide(along_P1, mean_P1)
    return _rounded_divide(across << CREDIT_FRACTION_BITS, mean_P1)


def _clipped(x: Array) -> Array:
    """Into the range of dividends of `fixed.floor_divide`."""
    most = (1 << fixed.DIVIDEND_BITS) - 1
    return jnp.clip(x, -most, most)


def _rounded_divide(dividend: Array, divisor: Array) -> Array:
    """dividend / divisor, rounded half up and clipped."""
    return fixed.floor_divide(_clipped(dividend + (divisor >> 1)), divisor)


def constant_gain(value: int, x_PD: Array) -> Array:
    """A gain that is no weight: int32, of `x_PD`'s shape."""
    return jnp.full(x_PD.shape, value, jnp.int32)
