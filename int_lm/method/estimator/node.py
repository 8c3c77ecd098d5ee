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
    score_TIR = jnp.einsum("tin,inr->tir", x_TIN, weight.right, preferred_element_type=jnp.int32)
    return fixed.saturate(fixed.shift_floor(score_TIR, _shift(x_TIN)))


def _shift(x_TIN: Array) -> int:
    """Of B x, for so many inputs."""
    return 3 + round(math.log2(x_TIN.shape[-1]) / 2)


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
    return native.either(
        lambda: _by_kernel(weight, x_TIN, effect_TIE, credit_TIE, rounding),
        lambda: _by_jax(weight, x_TIN, effect_TIE, credit_TIE, rounding),
    )


def _by_kernel(
    weight: Weight, x_TIN: Array, effect_TIE: Array, credit_TIE: Array, rounding: Rounding
) -> Array:
    """`operand` by the kernel."""
    assert weight.left is not None and weight.right is not None
    x, effect, credit = (a.reshape(-1, a.shape[-1]) for a in (x_TIN, effect_TIE, credit_TIE))
    operand_JM = native.unit(
        *(*rounding.place, x, weight.left, weight.right, effect, credit),
        score_shift=_shift(x_TIN),
        bits=UNIT_SHIFT,
        spare=rounding.spare_bits,
        down=4 + root_bits(weight),
    )
    return operand_JM.reshape(*x_TIN.shape[:-1], -1)


def _by_jax(
    weight: Weight, x_TIN: Array, effect_TIE: Array, credit_TIE: Array, rounding: Rounding
) -> Array:
    """`operand` without kernels."""
    assert weight.left is not None
    score_TIR = score(weight, x_TIN).astype(jnp.int32)
    product_TIE = credit_TIE.astype(jnp.int32) * effect_TIE.astype(jnp.int32)
    rank, effects = score_TIR.shape[-1], product_TIE.shape[-1]
    groups = weight.left.shape[-2] // effects  # output m acts on effect m mod E
    terms = []
    for r in range(rank):
        scaled = rounding.operand(product_TIE * score_TIR[..., r : r + 1], UNIT_SHIFT)
        scaled_TIM = jnp.concatenate([scaled] * groups, axis=-1).astype(jnp.int32)
        terms.append(scaled_TIM * weight.left[None, ..., r].astype(jnp.int32))
    total_TIM = functools.reduce(jnp.add, terms)
    most = INT8_MAX >> rounding.spare_bits
    total_TIM = fixed.shift_down(total_TIM, 4 + root_bits(weight))
    return fixed.saturate(total_TIM, most)
