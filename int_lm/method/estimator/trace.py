"""`trace`: plain votes made token by token. Their noise does not grow with the number of inputs.

    Z = sum_i A_i (sum_t d_it (B_i x_it) x_it)^T

    d_it        log-likelihood of token t under the first member of pair i, minus that under the
                second; `eggroll` uses the fitness of the whole segment instead
    B_i x_it    projection, as in the forward pass

`eggroll` votes on VECTORs: their perturbation is the same for all tokens, and the score of a
segment is already the sum over its tokens. docs/method.md derives this estimator.

Axes: T tokens of a segment, I pairs, R rank, M outputs, N inputs, K = R N.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX, noise_max
from int_lm.method.estimator import Estimator, Segment, TokenVotes, node
from int_lm.method.estimator.outer import inputs_of, outer_sums, scattered
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight
from int_lm.settings import StrategySettings

ROLES = frozenset({Role.MATRIX, Role.PROJECTION, Role.READOUT, Role.EMBEDDING})
DIFFERENCE_SHIFT = 10  # right shift of log-likelihood differences: to units of 2^-6 bit
TRACE_SHIFT = 5  # right shift of the product of a difference and a projection


def _prepare(segment: Segment) -> Array:
    """Differences d in units of 2^-6 bit, clipped to [-127, 127]: int32 [T, I, 1]."""
    assert segment.difference_TI is not None
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

    d (B x) is rounded to int8, and then u is. u is a sum of T products of two numbers of about 16;
    after the shift, int8 holds about five standard deviations of it.
    """
    coefficient_TIR = rounding.narrowed(
        difference_TI1 * node.projection(weight, x_TIN).astype(jnp.int32), TRACE_SHIFT
    )
    u_IRN = jnp.einsum("tir,tin->irn", coefficient_TIR, x_TIN, preferred_element_type=jnp.int32)
    bits = 3 + round(math.log2(x_TIN.shape[0]) / 2)
    u_IK = rounding.narrowed(u_IRN.reshape(1, len(u_IRN), -1), bits)[0]
    return jnp.einsum(
        "imr,irn->mn", weight.left, u_IK.reshape(u_IRN.shape), preferred_element_type=jnp.int32
    )


def _rows(weight: Weight, tokens_TI: Array, difference_TI1: Array, rounding: Rounding) -> Array:
    """d A[token] B^T: every token adds it to its row of the EMBEDDING's votes. int8 [T, I, N]."""
    assert weight.left is not None and weight.right is not None
    left_TIR = jnp.take_along_axis(weight.left[None], tokens_TI[..., None, None], axis=2)[:, :, 0]
    row_TIN = jnp.einsum("tir,inr->tin", left_TIR, weight.right, preferred_element_type=jnp.int32)
    row_TIN = fixed.saturate(fixed.shift_floor(row_TIN, 3 + node.root_bits(weight)))
    return rounding.operand(difference_TI1 * row_TIN.astype(jnp.int32), TRACE_SHIFT)


def _sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    traces = es.population // 2 * es.rank * noise_max(es) * INT8_MAX
    what = f"the traces of {es.population} members at rank {es.rank} ({es.noise})"
    return [*outer_sums(es, specs), (what, traces)]


TRACE = Estimator(
    roles=ROLES,
    perturbed=ROLES,
    of_fitness=None,
    of_tokens=TokenVotes(inputs_of, _prepare, _votes),
    sums=_sums,
    operations=lambda spec: 0,
)
