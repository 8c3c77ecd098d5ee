"""Units under perturbation: what theirs added to every output of a MATRIX, and what became of it.

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

UNIT_SHIFT = 10  # of the product of a credit, an effect and a perturbation


def score(weight: Weight, x_TIN: Array) -> Array:
    """B x of every pair, about 32 in magnitude: int8 [T, I, R]."""
    return _shifted_score(weight, x_TIN, score_shift(x_TIN.shape[-1]))


def score_shift(inputs: int) -> int:
    """Right shift of B x, for so many inputs."""
    return 3 + round(math.log2(inputs) / 2)


def _shifted_score(weight: Weight, x_TIN: Array, shift: int) -> Array:
    score_TIR = jnp.einsum("tin,inr->tir", x_TIN, weight.right, preferred_element_type=jnp.int32)
    return fixed.saturate(fixed.shift_floor(score_TIR, shift))


def root_bits(weight: Weight) -> int:
    """log2 of the root of the rank, rounded."""
    assert weight.right is not None
    return round(math.log2(weight.right.shape[-1]) / 2)


def operand(
    weight: Weight, x_TIN: Array, effect_TIE: Array, credit_TIE: Array, rounding: Rounding
) -> Array:
    """r a of `votes`, rounded: int8 [T, I, M].

    The product of credit, difference and score is rounded first, A then brings in its sign and, if
    it is gaussian, its size.
    """
    shifts = score_shift(x_TIN.shape[-1]), UNIT_SHIFT, 4 + root_bits(weight)
    return rounded_operand(weight, x_TIN, effect_TIE, credit_TIE, rounding, *shifts)


@native.accelerated(cpu="unit")
def rounded_operand(
    weight: Weight,
    x_TIN: Array,
    effect_TIE: Array,
    credit_TIE: Array,
    rounding: Rounding,
    score_shift: int,
    product_shift: int,
    total_shift: int,
) -> Array:
    """`operand` with its right shifts: of B x, of the product, and of the sum over the rank."""
    assert weight.left is not None
    score_TIR = _shifted_score(weight, x_TIN, score_shift).astype(jnp.int32)
    product_TIE = credit_TIE.astype(jnp.int32) * effect_TIE.astype(jnp.int32)
    rank, effects = score_TIR.shape[-1], product_TIE.shape[-1]
    groups = weight.left.shape[-2] // effects  # output m acts on effect m mod E
    terms = []
    for r in range(rank):
        scaled = rounding.operand(product_TIE * score_TIR[..., r : r + 1], product_shift)
        scaled_TIM = jnp.concatenate([scaled] * groups, axis=-1).astype(jnp.int32)
        terms.append(scaled_TIM * weight.left[None, ..., r].astype(jnp.int32))
    total_TIM = functools.reduce(jnp.add, terms)
    most = INT8_MAX >> rounding.spare_bits
    total_TIM = fixed.shift_down(total_TIM, total_shift)
    return fixed.saturate(total_TIM, most)
