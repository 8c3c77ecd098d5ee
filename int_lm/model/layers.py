"""The operations of a network, of which architectures are made, and the records that votes need.

    through_layers               the blocks of all layers, one after another
    embed, linear, readout       an EMBEDDING and matrices, with the perturbation of every member
    responses                    how effects answer if an output moves
    vector, constant_gain        norm weights and biases; a gain without weights
    norm, plus                   the L1 norm, saturating sums
    Use, Activity                what an architecture records of a token

Axes: P members (or any batch), I = P/2 pairs, R rank, M outputs, N inputs, D width, E effects, V
vocabulary; layers are stacked in front. Member 2i is the row before member 2i+1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.arithmetic.fixed import CREDIT_FRACTION_BITS
from int_lm.limits import INT8_MAX
from int_lm.model.document_cache import Reading
from int_lm.model.params import Tree
from int_lm.model.perturb import Weight

RESPONSE_STEP = 16  # by which `responses` moves an output: 1.0 in q4, an eighth in q7
State = TypeVar("State")  # an array or a tree of arrays


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
      responses: for a MATRIX, of `responses`, int8 [..., P, M].
      stream: for a MATRIX, the residual stream whose norm the inputs were made of, int8 q4
        [..., P, D]. `Architecture.credit` may need it, and what follows.
      state_responses: `responses` of the next state in place of the effect, int8 [..., P, M'] for
        the first M' outputs, which change it.
      outputs: for a MATRIX, what it gave, int8 [..., P, M]: which outputs are at an end of their
        range.
    """

    inputs: Array
    effect: Array | None = None
    responses: Array | None = None
    stream: Array | None = None
    state_responses: Array | None = None
    outputs: Array | None = None


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
      cache: what the document cache said of the next token, of every stream that is read; None for
        a model without it.
      held: whether the document is held back (`context_tables.held_back`), int32 [P]; None but for
        a model that is read apart.
    """

    uses: Tree
    residual: Array
    gain: Array
    rows: dict[str, Array] = dataclasses.field(default_factory=dict)
    cache: Reading | None = None
    held: Array | None = None


# -- Operations of a network -----------------------------------------------------------------------


def through_layers(
    block: Callable[[Tree, Array, State], tuple[Array, State, Tree]],
    weights: Tree,
    x_PD: Array,
    state: State,
) -> tuple[Array, State, Tree]:
    """Apply the blocks of all layers, one after another.

    Args:
      block: (weights of one layer, x, state of the layer) -> (x, next state, uses).
      weights: tree of stacked `Weight`s.
      x_PD: residual stream before the first layer, int8 q4.
      state: leaves [L, ...].

    Returns:
      x after the last layer, and next states and uses of all layers, stacked along L.
    """

    def step(x_PD: Array, numbered: tuple[Array, State]) -> tuple[Array, tuple[State, Tree]]:
        layer, state = numbered
        x_PD, state, uses = block(of_layer(weights, layer), x_PD, state)
        return x_PD, (state, uses)

    layers = len(jax.tree.leaves(state)[0])
    x_PD, (state, uses) = jax.lax.scan(step, x_PD, (jnp.arange(layers, dtype=jnp.int32), state))
    return x_PD, state, uses


def embed(weight: Weight, tokens_P: Array) -> Array:
    """Rows of an EMBEDDING [V, N] plus their perturbation: int32 [P] -> int8 [P, N].

    row = saturate(E[token] + ((+-A[token] B^T) >> shift)), rounded down.

    A policy sees numbers in place of tokens, int8 [P, K]: its `weight` is a MATRIX [N, K], and the
    result is their `linear`.
    """
    if tokens_P.ndim > 1:
        return linear(weight, tokens_P)
    row_PN = weight.value[tokens_P].astype(jnp.int32)
    if weight.left is None or weight.right is None:
        return fixed.saturate(row_PN)
    tokens_I2 = _pairwise(tokens_P)
    inner_I2R = jnp.take_along_axis(weight.left, tokens_I2[:, :, None], axis=1).astype(jnp.int32)
    delta_I2N = fixed.shift_floor(_low_rank(weight.right, _signs(3) * inner_I2R), weight.shift)
    return fixed.saturate(row_PN + delta_I2N.reshape(row_PN.shape))


def linear(weight: Weight, x_PN: Array) -> Array:
    """x W^T plus its perturbation, narrowed: int8 [P, N] -> int8 [P, M].

    y = saturate((x W^T + ((+-(x B) A^T) >> shift)) >> (4 + round(log2(N) / 2))), rounded down.
    `method.bounds` checks that the int32 sums cannot overflow.
    """
    return narrowed(weight, x_PN, shift_for(x_PN.shape[-1]), jnp.int8)


def readout(weight: Weight, x_PN: Array) -> Array:
    """`linear` with 16-bit results, for logits: int8 [P, N] -> int16 [P, V], at most +-32767."""
    return narrowed(weight, x_PN, shift_for(x_PN.shape[-1]), jnp.int16)


def vector(weight: Weight, x_PN: Array) -> Array:
    """A VECTOR as int32 [P, N], one row for every row of `x_PN`."""
    return jnp.broadcast_to(_alone(weight).value, x_PN.shape).astype(jnp.int32)


def _mean_magnitude(x_PD: Array) -> Array:
    """max(1, floor(mean|x|)), int32 [P, 1]."""
    mean_P1 = jnp.sum(jnp.abs(x_PD), axis=-1, keepdims=True) // x_PD.shape[-1]
    return jnp.maximum(mean_P1, 1)


@native.accelerated(cpu="norm")
def norm(gain_PD: Array, x_PD: Array) -> Array:
    """L1 norm: saturate(floor(x g / max(1, mean|x|))), g int32, x int8 q4 -> int8 q4 [P, D]."""
    x = x_PD.astype(jnp.int32)
    return fixed.saturate(fixed.floor_divide(x * gain_PD, _mean_magnitude(x)))


def plus(*terms: Array) -> Array:
    """saturate(sum) of int8 or int32 arrays of one shape."""
    return fixed.saturate(functools.reduce(jnp.add, [term.astype(jnp.int32) for term in terms]))


def constant_gain(value: int, x_PD: Array) -> Array:
    """The same gain for every channel, for a norm without weights: int32, of `x_PD`'s shape."""
    return jnp.full(x_PD.shape, value, jnp.int32)


# -- Effects ---------------------------------------------------------------------------------------


def responses(effect: Callable[..., Array], *outputs: Array) -> Array:
    """How the effect of each output answers if that output alone moves: int8 [P, M].

    It is the effect with the output `RESPONSE_STEP` higher, minus that with the output as much
    lower: two values of the function that the network itself computes, and no derivative. An output
    does not leave [-127, 127], so that the answer is smaller at the ends.

    Args:
      effect: (outputs [P, E] each) -> effects [P, E]. Every effect depends on its own outputs only.
      outputs: of one MATRIX, int8 or int32 in [-127, 127], in the order of its rows.
    """

    def moved(k: int, by: int) -> Array:
        shifted = list(outputs)
        shifted[k] = jnp.clip(outputs[k].astype(jnp.int32) + by, -INT8_MAX, INT8_MAX)
        return effect(*shifted).astype(jnp.int32)

    def response(k: int) -> Array:
        return fixed.saturate(moved(k, RESPONSE_STEP) - moved(k, -RESPONSE_STEP))

    return jnp.concatenate([response(k) for k in range(len(outputs))], axis=-1)


# -- Linears and their perturbation ----------------------------------------------------------------


def shift_for(n_in: int) -> int:
    """Right shift of a linear with `n_in` inputs: 4 (weights are q4) + round(log2(n_in) / 2)."""
    return 4 + round(math.log2(n_in) / 2)


@native.accelerated(cpu="linear", gpu="linear")
def narrowed(weight: Weight, x_PN: Array, high: int, dtype: type) -> Array:
    """(x W^T + ((+-(x B) A^T) >> shift)) >> high, clipped to +-the largest value of `dtype`.

    Args:
      weight: the tensor, with `shift`.
      x_PN: int8.
      high: right shift of the sum.
      dtype: dtype of the result [P, M], int8 or int16.
    """
    weight = _alone(weight)
    acc_PM = fixed.dot(x_PN, weight.value)
    if weight.left is not None and weight.right is not None:
        # elementwise, because XLA on CPUs would compute a dot for each pair in int32
        x_I2N1 = _pairwise(x_PN)[..., None].astype(jnp.int16)
        right_I1NR = weight.right[:, None].astype(jnp.int16)  # |x B| < 2^14
        inner_I2R = jnp.sum(x_I2N1 * right_I1NR, axis=2, dtype=jnp.int32)
        delta_I2M = fixed.shift_floor(_low_rank(weight.left, _signs(3) * inner_I2R), weight.shift)
        acc_PM = acc_PM + delta_I2M.reshape(acc_PM.shape)
    return fixed.narrow(fixed.shift_floor(acc_PM, high), dtype)


def _pairwise(x_P: Array) -> Array:
    """Reshape [P, ...] to [I, 2, ...]."""
    return x_P.reshape(-1, 2, *x_P.shape[1:])


def _signs(ndim: int) -> Array:
    """+1 for member 2i, -1 for member 2i+1: int32 [1, 2, 1...] with `ndim` axes."""
    return jnp.array([1, -1], jnp.int32).reshape(1, 2, *([1] * (ndim - 2)))


def _low_rank(factor_IMR: Array, inner_I2R: Array) -> Array:
    """sum over r of factor[m, r] inner[r]: int32 [I, 2, M], unrolled because the rank is small."""
    factor = factor_IMR.astype(jnp.int32)[:, None]
    inner = inner_I2R[:, :, None, :]
    terms = [factor[..., r] * inner[..., r] for r in range(factor.shape[-1])]
    return functools.reduce(jnp.add, terms)


def of_layer(weights: Tree, layer: Array) -> Tree:
    """`Weight`s of one layer: the arrays still hold all layers, and `layer` is set.

    Slices would be copied for every token. For the noise these are as many bytes as the linear
    reads and writes.
    """
    return jax.tree.map(
        lambda weight: dataclasses.replace(weight, layer=layer),
        weights,
        is_leaf=lambda node: isinstance(node, Weight),
    )


def _alone(weight: Weight) -> Weight:
    """The `Weight` with the arrays of its layer only; `weight` itself if `layer` is None."""
    if weight.layer is None:
        return weight
    arrays = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, weight.layer, keepdims=False),
        (weight.value, weight.left, weight.right),
    )
    return Weight(*arrays, shift=weight.shift)


# -- Credit of a norm ------------------------------------------------------------------------------


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
