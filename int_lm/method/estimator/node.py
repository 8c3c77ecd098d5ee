"""Node perturbation: the left operand of the votes on a MATRIX (`unit`).

A pair's perturbation adds a number to every output of a MATRIX. The votes compare this number with
the difference that it made to the effect of the output.

Axes: T tokens of a segment, I pairs, J = T I, R rank, M outputs, N inputs, E effects.
"""

import functools
import math

import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.perturb import Weight

UNIT_SHIFT = 10  # right shift of the product of a credit, a difference of effects and a projection


def projection(weight: Weight, x_TIN: Array) -> Array:
    """Projection B x of every pair, scaled to about 32 in magnitude: int8 [T, I, R].

    Args:
      weight: the tensor with the pairs' perturbations; `right` is B.
      x_TIN: inputs of the first member of every pair, int8.
    """
    return _shifted_projection(weight, x_TIN, projection_shift(x_TIN.shape[-1]))


def projection_shift(inputs: int) -> int:
    """Right shift of B x for this number of inputs."""
    return 3 + round(math.log2(inputs) / 2)


def _shifted_projection(weight: Weight, x_TIN: Array, shift: int) -> Array:
    projection_TIR = jnp.einsum(
        "tin,inr->tir", x_TIN, weight.right, preferred_element_type=jnp.int32
    )
    return fixed.saturate(fixed.shift_floor(projection_TIR, shift))


def root_bits(weight: Weight) -> int:
    """round(log2(sqrt(R))) for rank R."""
    assert weight.right is not None
    return round(math.log2(weight.right.shape[-1]) / 2)


def operand(
    weight: Weight, x_TIN: Array, effect_TIE: Array, credit_TIE: Array, rounding: Rounding
) -> Array:
    """r a, the left operand of the votes of `unit`, rounded: int8 [T, I, M].

    The product of credit, effect difference and projection is rounded to int8 by a dither first;
    then it is multiplied by A.

    Args:
      weight: the MATRIX with the pairs' perturbations A and B.
      x_TIN: its inputs, int8.
      effect_TIE: difference of the two members' effects, int8.
      credit_TIE: credit of the effects, int8.
      rounding: the dithers of the segment.
    """
    shifts = shifts_of(weight, x_TIN.shape[-1])
    return rounded_operand(weight, x_TIN, effect_TIE, credit_TIE, rounding, *shifts)


def shifts_of(weight: Weight, inputs: int) -> tuple[int, int, int]:
    """The right shifts of `rounded_operand` for this number of inputs."""
    return projection_shift(inputs), UNIT_SHIFT, 4 + root_bits(weight)


@native.accelerated(cpu="unit")
def rounded_operand(
    weight: Weight,
    x_TIN: Array,
    effect_TIE: Array,
    credit_TIE: Array,
    rounding: Rounding,
    projection_shift: int,
    product_shift: int,
    total_shift: int,
) -> Array:
    """`operand` with its three right shifts as arguments.

    Args:
      projection_shift: of B x.
      product_shift: of the product of credit, effect difference and projection.
      total_shift: of the sum over the rank.
    """
    assert weight.left is not None
    projection_TIR = _shifted_projection(weight, x_TIN, projection_shift).astype(jnp.int32)
    product_TIE = credit_TIE.astype(jnp.int32) * effect_TIE.astype(jnp.int32)
    rank, effects = projection_TIR.shape[-1], product_TIE.shape[-1]
    groups = weight.left.shape[-2] // effects  # output m changes effect m mod E only
    terms = []
    for r in range(rank):
        scaled = rounding.operand(product_TIE * projection_TIR[..., r : r + 1], product_shift)
        scaled_TIM = jnp.concatenate([scaled] * groups, axis=-1).astype(jnp.int32)
        terms.append(scaled_TIM * weight.left[None, ..., r].astype(jnp.int32))
    total_TIM = functools.reduce(jnp.add, terms)
    most = INT8_MAX >> rounding.spare_bits
    total_TIM = fixed.shift_down(total_TIM, total_shift)
    return fixed.saturate(total_TIM, most)
