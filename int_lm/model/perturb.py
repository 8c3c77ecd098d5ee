"""Perturbation (EGGROLL, arXiv 2511.16652): members share one weight and differ by low-rank noise.

For a matrix W [M, N], pair i has A_i [M, R] and B_i [N, R]; with sigma = 2^-sigma_shift

    member 2i   uses W + sigma A_i B_i^T / sqrt(R)
    member 2i+1 uses W - sigma A_i B_i^T / sqrt(R)

W is not copied for each member: x W^T is one int8 matmul over the population, and (x B) A^T is a
low-rank addition (`layers.linear`). A B^T of two q4 factors is q8, so it is shifted right by 4 to
the units of x W^T. 1 / sqrt(R) is replaced by the power of two 2^-round(log2(R) / 2).

Axes: P members, I = P/2 pairs, R rank, M outputs, N inputs, V vocabulary. The population axis is
the leading one of every activation; member 2i is the row before member 2i+1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed, noise
from int_lm.model import params
from int_lm.model.params import Parameters, Role, Spec
from int_lm.settings import StrategySettings

Noise = tuple[Array, Array | None]  # (A, B) of a matrix, (n, None) of a VECTOR: `tensor_noise`


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
        this `Weight` stands for one of them (see `layers.of_layer`). None otherwise.
      shift: right shift of the low-rank product: 4 + sigma_shift + round(log2(R) / 2).
    """

    value: Array
    left: Array | None = None
    right: Array | None = None
    layer: Array | None = None
    shift: int = dataclasses.field(default=0, metadata={"static": True})


def members(pairs_I: Array) -> Array:
    """Numbers of the members of some pairs, int32 [P]."""
    return (2 * pairs_I[:, None] + jnp.arange(2, dtype=jnp.int32)[None]).reshape(-1)


def unperturbed(weights: Parameters) -> Parameters:
    """`Weight`s without a perturbation, to evaluate and to sample. `weights` holds int8 arrays."""
    return Parameters(params.map_leaves(Weight, weights.network), weights.tables)


def tensor_noise(
    es: StrategySettings, spec: Spec, tensor: int, seed: Array, step: Array, pairs: Array
) -> Noise:
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


def perturbed(es: StrategySettings, value: Array, noise: Noise | None) -> Weight:
    """The `Weight` of one tensor with the noise of some pairs.

    Args:
      es: `sigma_shift` and rank.
      value: int8.
      noise: of `tensor_noise`; None for a `Weight` without a perturbation.
    """
    if noise is None:
        return Weight(value)
    left, right = noise
    if right is None:  # v +- n sigma, rounded half up, once per segment
        step = fixed.shift_down(left.astype(jnp.int32), es.sigma_shift)
        both = jnp.stack([step, -step], axis=-2)  # [..., I, 2, N]
        members = both.reshape(*step.shape[:-2], -1, step.shape[-1])
        return Weight(fixed.saturate(value[..., None, :].astype(jnp.int32) + members))
    shift = 4 + es.sigma_shift + round(math.log2(es.rank) / 2)
    return Weight(value, left, right, shift=shift)
