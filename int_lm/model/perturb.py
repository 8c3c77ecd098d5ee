"""Perturbation (EGGROLL, arXiv 2511.16652): members share one weight and differ by low-rank noise.

For a matrix W [M, N], pair i has A_i [M, R] and B_i [N, R]; with sigma = 2^-sigma_shift

    member 2i   uses W + sigma A_i B_i^T / sqrt(R)
    member 2i+1 uses W - sigma A_i B_i^T / sqrt(R)

W is not copied for each member: x W^T is one int8 matmul over the population, and (x B) A^T is a
low-rank addition. A B^T of two q4 factors is q8, so it is shifted right by 4 to the units of
x W^T. 1 / sqrt(R) is replaced by the power of two 2^-round(log2(R) / 2).

Axes: P members, I = P/2 pairs, R rank, M outputs, N inputs, V vocabulary. The population axis is
the leading one of every activation; member 2i is the row before member 2i+1.
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
from int_lm.arithmetic import fixed, noise
from int_lm.model import params
from int_lm.model.params import Parameters, Role, Spec, Tree
from int_lm.settings import StrategySettings

State = TypeVar("State")  # an array or a tree of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor with the perturbations of some pairs, or without any.

    Attributes:
      value: int8, shared by all members. A perturbed VECTOR is [..., P, N]: each member's own,
        with its perturbation already added.
      left: A, int8 [..., I, M, R] ([..., I, V, R] for an EMBEDDING); None without a low-rank
        perturbation.
      right: B, int8 [..., I, N, R]; None without a low-rank perturbation.
      layer: index of a layer, int32 scalar: the arrays hold all layers of a stacked tensor, and
        this `Weight` stands for one of them (see `of_layer`). None otherwise.
      shift: right shift of the low-rank product: 4 + sigma_shift + round(log2(R) / 2).
    """

    value: Array
    left: Array | None = None
    right: Array | None = None
    layer: Array | None = None
    shift: int = dataclasses.field(default=0, metadata={"static": True})


def unperturbed(weights: Parameters) -> Parameters:
    """`Weight`s without a perturbation, to evaluate and to sample. `weights` holds int8 arrays."""
    return Parameters(params.map_leaves(Weight, weights.network), weights.tables)


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


def _alone(weight: Weight) -> Weight:
    """The `Weight` with the arrays of its layer only; `weight` itself if `layer` is None."""
    if weight.layer is None:
        return weight
    arrays = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, weight.layer, keepdims=False),
        (weight.value, weight.left, weight.right),
    )
    return Weight(*arrays, shift=weight.shift)


def tensor_noise(
    es: StrategySettings, spec: Spec, tensor: int, seed: Array, step: Array, pairs: Array
):
    """The noise of one tensor for the given pairs: (A, B), or (n, None) for a VECTOR.

    Args:
      es: rank R and distribution of the noise.
      spec: spec of the tensor; the noise of a stacked tensor has a leading axis L.
      tensor: number of the tensor (`params.tensor_ids`).
      seed: seed of the run, uint32 scalar.
      step: number of steps done before, uint32 scalar.
      pairs: indices of the pairs, int32 [I].

    Returns:
      A int8 [..., I, M, R] and B int8 [..., I, N, R], or n int8 [..., I, N] and None. A and B are
      one draw of (M + N) R entries, A first, each in row-major order. Layer l of a stacked tensor
      has the tensor number `tensor` + l.
    """
    layers = jnp.arange(spec.layers, dtype=jnp.uint32) if spec.layers else jnp.uint32(0)
    key = noise.tensor_key(seed, step, jnp.uint32(tensor) + layers)
    if spec.role is Role.VECTOR:
        return noise.draw(es.noise, key, pairs, spec.shape[0]), None
    outputs, inputs = spec.shape
    both = noise.draw(es.noise, key, pairs, (outputs + inputs) * es.rank)
    left, right = both[..., : outputs * es.rank], both[..., outputs * es.rank :]
    return (
        left.reshape(*left.shape[:-1], outputs, es.rank),
        right.reshape(*right.shape[:-1], inputs, es.rank),
    )


def perturbed(
    es: StrategySettings, value: Array, noises: tuple[Array, Array | None] | None
) -> Weight:
    """The `Weight` of one tensor with the noise of some pairs.

    Args:
      es: `sigma_shift` and rank.
      value: int8.
      noises: of `tensor_noise`; None for a `Weight` without a perturbation.
    """
    if noises is None:
        return Weight(value)
    left, right = noises
    if right is None:  # v +- n sigma, rounded half up, once per segment
        step = fixed.shift_down(left.astype(jnp.int32), es.sigma_shift)
        both = jnp.stack([step, -step], axis=-2)  # [..., I, 2, N]
        members = both.reshape(*step.shape[:-2], -1, step.shape[-1])
        return Weight(fixed.saturate(value[..., None, :].astype(jnp.int32) + members))
    shift = 4 + es.sigma_shift + round(math.log2(es.rank) / 2)
    return Weight(value, left, right, shift=shift)


def _pairwise(x_P: Array) -> Array:
    """Reshape [P, ...] to [I, 2, ...]."""
    return x_P.reshape(-1, 2, *x_P.shape[1:])


def _signs(ndim: int) -> Array:
    """+1 for member 2i, -1 for member 2i+1: int32 [1, 2, 1...] with `ndim` axes."""
    return jnp.array([1, -1], jnp.int32).reshape(1, 2, *([1] * (ndim - 2)))


def _low_rank(left_IMR: Array, score_I2R: Array) -> Array:
    """sum over r of A[m, r] score[r]: int32 [I, 2, M]. The sum is unrolled: the rank is small."""
    left = left_IMR.astype(jnp.int32)[:, None]
    score = score_I2R[:, :, None, :]
    terms = [left[..., r] * score[..., r] for r in range(left.shape[-1])]
    return functools.reduce(jnp.add, terms)


def shift_for(n_in: int) -> int:
    """Right shift of a linear with `n_in` inputs: 4 (weights are q4) + round(log2(n_in) / 2)."""
    return 4 + round(math.log2(n_in) / 2)


def linear(weight: Weight, x_PN: Array) -> Array:
    """x W^T plus its perturbation, narrowed: int8 [P, N] -> int8 [P, M].

    y = saturate((x W^T + ((+-(x B) A^T) >> shift)) >> (4 + round(log2(N) / 2))), rounded down.
    `method.bounds` checks that the int32 sums cannot overflow.
    """
    return narrowed(weight, x_PN, shift_for(x_PN.shape[-1]), jnp.int8)


def readout(weight: Weight, x_PN: Array) -> Array:
    """`linear` with 16-bit results, for logits: int8 [P, N] -> int16 [P, V], at most +-32767."""
    return narrowed(weight, x_PN, shift_for(x_PN.shape[-1]), jnp.int16)


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
        score_I2R = jnp.sum(x_I2N1 * right_I1NR, axis=2, dtype=jnp.int32)
        delta_I2M = fixed.shift_floor(_low_rank(weight.left, _signs(3) * score_I2R), weight.shift)
        acc_PM = acc_PM + delta_I2M.reshape(acc_PM.shape)
    return fixed.narrow(fixed.shift_floor(acc_PM, high), dtype)


def embed(weight: Weight, tokens_P: Array) -> Array:
    """Rows of an EMBEDDING [V, N] plus their perturbation: int32 [P] -> int8 [P, N].

    row = saturate(E[token] + ((+-A[token] B^T) >> shift)), rounded down.
    """
    row_PN = weight.value[tokens_P].astype(jnp.int32)
    if weight.left is None or weight.right is None:
        return fixed.saturate(row_PN)
    tokens_I2 = _pairwise(tokens_P)
    score_I2R = jnp.take_along_axis(weight.left, tokens_I2[:, :, None], axis=1).astype(jnp.int32)
    delta_I2N = fixed.shift_floor(_low_rank(weight.right, _signs(3) * score_I2R), weight.shift)
    return fixed.saturate(row_PN + delta_I2N.reshape(row_PN.shape))


def vector(weight: Weight, x_PN: Array) -> Array:
    """A VECTOR as int32 [P, N], one row for every row of `x_PN`."""
    return jnp.broadcast_to(_alone(weight).value, x_PN.shape).astype(jnp.int32)
