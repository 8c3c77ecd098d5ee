"""`unit`: node perturbation, with credit in place of a scalar score.

Credit is the gradient of the log-likelihood with respect to the residual stream, taken back through
the readout and the norm before it, and no further (`credit`).

A PROJECTION and the EMBEDDING add to the residual stream directly; `skip` votes on them. Between a
MATRIX and the residual stream there is a nonlinearity. Output m of the MATRIX goes through it and
becomes an effect: a number that is added to the residual stream, or an input of the PROJECTION
behind it. The derivative of the effect is not computed; the perturbation measures it:

    Z_mn = sum_it r_itm a_itm x_itn

    a = A_i (B_i x_it)    what the perturbation added to output m
    r                     credit of the effect of output m, times the difference of the two members'
                          effects

docs/method.md derives this and names the literature on node perturbation.

Axes: T tokens of a segment, I pairs, M outputs, N inputs, E effects, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.method.estimator import Estimator, TokenVotes, credit, node, skip
from int_lm.method.estimator.outer import outer, outer_of_layers
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight


def _record(spec: Spec, use: Use) -> tuple[Array, Array | None]:
    """(inputs, effect difference) of one tensor for one token.

    The difference of the two members' effects is int8
    [..., I, E] for a MATRIX, and None for other roles.
    """
    if spec.role is not Role.MATRIX:
        return use.inputs, None
    assert use.effect is not None
    effect = use.effect.astype(jnp.int32)
    return use.inputs, fixed.saturate(effect[..., 0::2, :] - effect[..., 1::2, :])


def _votes(
    spec: Spec,
    weight: Weight,
    records: Any,
    through: Array | None,
    credit_TID: Array,
    rounding: Rounding,
) -> Array:
    inputs, effect_TIE = records
    if spec.role is not Role.MATRIX:
        return skip.votes(spec, inputs, credit_TID, rounding)
    credit_TIE = credit_TID
    if through is not None:
        credit_TIE = credit.through(through, credit_TID, rounding)
    return outer(node.operand(weight, inputs, effect_TIE, credit_TIE, rounding), inputs)


def _of_layers(
    spec: Spec,
    weight: Weight,
    records: Any,
    through: Array | None,
    credit_TID: Array,
    rounding: Rounding,
) -> Array:
    """`_votes` on all layers at once, arrays with L in front: int32 [L, M, N]."""
    inputs_LTIN, effect_LTIE = records
    if spec.role is Role.PROJECTION:
        return outer_of_layers(rounding.operand(credit_TID, 0), inputs_LTIN)
    shift_L = credit.through_shifts(through, len(inputs_LTIN))
    shifts = node.shifts_of(weight, inputs_LTIN.shape[-1])
    return unit_votes(
        *(weight, inputs_LTIN, effect_LTIE, credit_TID, through, shift_L, rounding, *shifts),
        credit.THROUGH_BITS,
    )


@native.accelerated(cpu="unit_votes")
def unit_votes(
    weight: Weight,
    x_LTIN: Array,
    effect_LTIE: Array,
    credit_TID: Array,
    through_LDE: Array | None,
    shift_L: Array,
    rounding: Rounding,
    projection_shift: int,
    product_shift: int,
    total_shift: int,
    through_bits: int,
) -> Array:
    """Votes on the MATRIX of every layer: int32 [L, M, N].

    Args:
      weight: the MATRIX with the pairs' perturbations.
      x_LTIN: inputs, int8.
      effect_LTIE: differences of effects, int8.
      credit_TID: credit of the residual stream, int8; of the effects if `through_LDE` is None.
      through_LDE: weights of the PROJECTION that the effects are inputs of, int8.
      shift_L: of `credit.through_projection`, int32.
      rounding: the dithers of the segment.
      projection_shift, product_shift, total_shift: of `node.rounded_operand`.
      through_bits: of `credit.through_projection`.
    """

    def of_layer(operands: Any) -> Array:
        weight, x_TIN, effect_TIE, through_DE, shift = operands
        credit_TIE = credit_TID
        if through_DE is not None:
            credit_TIE = credit.through_projection(
                credit_TID, through_DE, shift, through_bits, rounding
            )
        shifts = projection_shift, product_shift, total_shift
        left_TIM = node.rounded_operand(weight, x_TIN, effect_TIE, credit_TIE, rounding, *shifts)
        return outer(left_TIM, x_TIN)

    return jax.lax.map(of_layer, (weight, x_LTIN, effect_LTIE, through_LDE, shift_L))


UNIT = Estimator(
    roles=frozenset({Role.MATRIX, Role.PROJECTION, Role.EMBEDDING}),
    perturbed=frozenset({Role.MATRIX}),
    of_fitness=None,
    of_tokens=TokenVotes(
        _record, skip.prepare, _votes, needs_errors=True, needs="effect", of_layers=_of_layers
    ),
    sums=skip.sums,
    operations=skip.operations,
)
