"""`trace`: plain votes made token by token, so that their noise does not grow with the inputs.

    Z = sum_i A_i (sum_t d_it (B_i x_it) x_it)^T

d: difference of the two members' log-likelihoods of token t, where `eggroll` takes the fitness of
the whole segment; B x is the perturbation's own score, which the forward pass computes anyway.
VECTORs are left to `eggroll`: the score is the sum of its tokens', so that is their trace already.
docs/method.md derives it.

Axes: T tokens of a segment, I pairs, R rank, M outputs, N inputs, K = R N.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX, noise_max
from int_lm.method.estimator import Estimator, Segment, TokenVotes, node
from int_lm.method.estimator.exact import inputs_of, token_sums
from int_lm.method.estimator.outer import scattered
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight
from int_lm.settings import StrategySettings

ROLES = frozenset({Role.MATRIX, Role.PROJECTION, Role.READOUT, Role.EMBEDDING})
DIFFERENCE_SHIFT = 10  # log-likelihood differences in units of 2^-6 bit
TRACE_SHIFT = 5  # of the product of a difference and a perturbation score


def _prepare(segment: Segment) -> Array:
    """Difference of the members' log-likelihoods, units of 2^-6 bit, in int8: int32 [T, I, 1]."""
    difference_TI1 = segment.difference_TI[..., None]
    return segment.rounding.narrowed(difference_TI1, DIFFERENCE_SHIFT).astype(jnp.int32)


def _votes(
    spec: Spec,
    weight: Weight,
    inputs: Any,
    through: Array | None,
    difference_TI1: Array,
    rounding: Rounding,
) -> Array:
    if spec.role is Role.EMBEDDING:
        return scattered(spec.shape, inputs, _rows(weight, inputs, difference_TI1, rounding))
    return _traces(weight, inputs, difference_TI1, rounding)


def _traces(weight: Weight, x_TIN: Array, difference_TI1: Array, rounding: Rounding) -> Array:
    """sum_i A_i u_i^T with u_i = sum_t d (B x) x: int32 [M, N].

    d (B x) is rounded to int8, and so is u: a sum of T products of two numbers of 16 or so, of
    which 8 bits hold five deviations.
    """
    coefficient_TIR = rounding.narrowed(
        difference_TI1 * node.score(weight, x_TIN).astype(jnp.int32), TRACE_SHIFT
    )
    u_IRN = jnp.einsum("tir,tin->irn", coefficient_TIR, x_TIN, preferred_element_type=jnp.int32)
    bits = 3 + round(math.log2(x_TIN.shape[0]) / 2)
    u_IK = rounding.narrowed(u_IRN.reshape(1, len(u_IRN), -1), bits)[0]
    return jnp.einsum(
        "imr,irn->mn", weight.left, u_IK.reshape(u_IRN.shape), preferred_element_type=jnp.int32
    )


def _rows(weight: Weight, tokens_TI: Array, difference_TI1: Array, rounding: Rounding) -> Array:
    """What every token adds to its row of an embedding's votes, d A[token] B^T: int8 [T, I, N]."""
    assert weight.left is not None and weight.right is not None
    left_TIR = jnp.take_along_axis(weight.left[None], tokens_TI[..., None, None], axis=2)[:, :, 0]
    row_TIN = jnp.einsum("tir,inr->tin", left_TIR, weight.right, preferred_element_type=jnp.int32)
    row_TIN = fixed.saturate(fixed.shift_floor(row_TIN, 3 + node.root_bits(weight)))
    return rounding.operand(difference_TI1 * row_TIN.astype(jnp.int32), TRACE_SHIFT)


def _sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    traces = es.population // 2 * es.rank * noise_max(es) * INT8_MAX
    what = f"the traces of {es.population} members at rank {es.rank} ({es.noise})"
    return [*token_sums(es, specs), (what, traces)]


TRACE = Estimator(
    name="trace",
    roles=ROLES,
    perturbed=ROLES,
    of_fitness=None,
    of_tokens=TokenVotes(inputs_of, _prepare, _votes),
    sums=_sums,
    operations=lambda spec: 0,
)
