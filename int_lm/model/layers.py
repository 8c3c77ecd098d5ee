"""What architectures share: the L1 norm, saturating sums, and the records that votes need.

Axes: P members (or any batch), D width, N inputs, E effects; layers are stacked in front.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.arithmetic.fixed import CREDIT_FRACTION_BITS
from int_lm.model.params import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Use:
    """The inputs and effects of one tensor for one token. Votes made token by token need them.

    Attributes:
      inputs: what the tensor was applied to, int8 [..., P, N]; token ids, int32 [P], for an
        EMBEDDING.
      effect: for a MATRIX, the numbers that its outputs determine, int8 or int32 [..., P, E]: those
        added to the residual stream, or, if `Spec.through` is set, the inputs of the PROJECTION
        that it names. Output m changes effect m mod E and no other.
    """

    inputs: Array
    effect: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activity:
    """Activations of one token. Training makes votes of them; evaluation does not use them.

    Attributes:
      uses: tree of `Use`s, one for every tensor except the VECTORs.
      residual: the residual stream after the last layer, int8 q4 [P, D].
      gain: weight of the norm between the residual stream and the readout, int32 [P, D].
      rows: row of each context table that was read, int32 [P] by name; empty for a model without
        context tables.
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


@native.accelerated(cpu="norm")
def norm(gain_PD: Array, x_PD: Array) -> Array:
    """L1 norm: saturate(floor(x g / max(1, mean|x|))), g int32, x int8 q4 -> int8 q4 [P, D]."""
    x = x_PD.astype(jnp.int32)
    return fixed.saturate(fixed.floor_divide(x * gain_PD, _mean_magnitude(x)))


def norm_credit(gain_PD: Array, x_PD: Array, credit_PD: Array) -> Array:
    """Credit of a norm's input, from that of its output: the transposed derivative of `norm`.

    Let m = mean|x|. The derivative of y = g x / m is

        dy_n / dx_k = (g_n / m) ([n = k] - x_n sign(x_k) / (m D))

    so the credit of x_k, in units of 1/4 (`fixed.CREDIT_FRACTION_BITS`) of that of `credit_PD`, is

        out_k = 4 (c_k - sign(x_k) (sum_n x_n c_n / D) / m) / m        with c = g credit / 16

    Args:
      gain_PD: weight g of the norm, int32, |g| <= 127.
      x_PD: input of the norm, int8.
      credit_PD: credit of the output, int32, |credit| < 2^`fixed.CREDIT_BITS`.

    Returns:
      int32 [P, D], below 2^14 in magnitude. Every quotient is rounded half up, and its dividend is
      clipped to the range of `fixed.floor_divide`. Contract: D 127 2^12 < 2^31 (`method.bounds`).
    """
    x = x_PD.astype(jnp.int32)
    mean_P1 = _mean_magnitude(x)
    c = _clipped(fixed.shift_down(credit_PD * gain_PD, fixed.Q4_BITS))
    along_P1 = (
        jnp.sum(x * fixed.shift_down(c, fixed.ALONG_BITS), axis=-1, keepdims=True) // x.shape[-1]
    )
    across = c - (_rounded_divide(along_P1, mean_P1) << fixed.ALONG_BITS) * jnp.sign(x)
    return _rounded_divide(across << CREDIT_FRACTION_BITS, mean_P1)


def _clipped(x: Array) -> Array:
    """x, clipped to the range of dividends that `fixed.floor_divide` takes."""
    most = (1 << fixed.DIVIDEND_BITS) - 1
    return jnp.clip(x, -most, most)


def _rounded_divide(dividend: Array, divisor: Array) -> Array:
    """dividend / divisor, rounded half up; the dividend is clipped first."""
    return fixed.floor_divide(_clipped(dividend + (divisor >> 1)), divisor)


def constant_gain(value: int, x_PD: Array) -> Array:
    """The same gain for every channel, for a norm without weights: int32, of `x_PD`'s shape."""
    return jnp.full(x_PD.shape, value, jnp.int32)
