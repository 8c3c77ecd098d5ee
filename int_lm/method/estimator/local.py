"""`local`: node perturbation of every unit alone, where it is, in place of the whole network.

As `unit`, but no weight is perturbed, and members do not differ: each reads a stream of its own.
Every output of a MATRIX is moved by itself, up and down, and only the function behind it is
computed again (`layers.responses`). What the effect answers is the output's own: no other output,
layer or token adds noise to it.

    Z_mn = sum_it c_it,m mod E q_itm x_itn

    c    credit of the effects, along the skip path, as of `unit`
    q    how the effect of output m answers if output m moves

Of all perturbations of a network, these are the ones that say most of one unit. In 32 segments the
votes come to a cosine of 0.99 with the straight-through gradient of the skip path; those of `unit`
come to 0.1 for a forget gate (docs/log.md, 2026-11-30). Madaline Rule III moves the nodes of a
network one at a time, too (Andes, Widrow, Lehr and Wan, "MRIII: A robust algorithm for training
analog neural networks", IJCNN 1990).

Axes: T tokens of a segment, I voters, M outputs, N inputs, E effects, D width; L layers.
"""

from typing import Any

import jax
from jax import Array

from int_lm import native
from int_lm.method.estimator import Estimator, TokenVotes, credit, skip
from int_lm.method.estimator.outer import outer, outer_of_layers
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight

PRODUCT_SHIFT = 5  # right shift of the product of a credit and a response


def _record(spec: Spec, use: Use) -> tuple[Array, Array | None]:
    """(inputs, responses) of one tensor for one token; responses None for roles without."""
    return use.inputs, use.responses if spec.role is Role.MATRIX else None


def operand(
    responses_TIM: Array,
    credit_TIE: Array,
    rounding: Rounding,
    product_shift: int = PRODUCT_SHIFT,
) -> Array:
    """c q, the left operand of the votes on a MATRIX, rounded: int8 [T, I, M].

    Args:
      responses_TIM: of `layers.responses`, int8.
      credit_TIE: credit of the effects, int8; output m has effect m mod E.
      rounding: the dithers of the segment.
      product_shift: right shift of the product.
    """
    return rounding.operand(credit.answered(credit_TIE, responses_TIM), product_shift)


def _votes(
    spec: Spec,
    weight: Weight,
    records: Any,
    through: Array | None,
    credit_TID: Array,
    rounding: Rounding,
) -> Array:
    if spec.role is not Role.MATRIX:
        return skip.votes(spec, records[0], credit_TID, rounding)
    records, through = jax.tree.map(lambda leaf: leaf[None], (records, through))
    return _of_layers(spec, weight, records, through, credit_TID, rounding)[0]


def _of_layers(
    spec: Spec,
    weight: Weight,
    records: Any,
    through: Array | None,
    credit_TID: Array,
    rounding: Rounding,
) -> Array:
    """`_votes` on all layers at once, arrays with L in front: int32 [L, M, N]."""
    inputs_LTIN, responses_LTIM = records
    if spec.role is Role.PROJECTION:
        return outer_of_layers(rounding.operand(credit_TID, 0), inputs_LTIN)
    shift_L = credit.through_shifts(through, len(inputs_LTIN))
    return local_votes(
        *(responses_LTIM, inputs_LTIN, credit_TID, through, shift_L, rounding),
        *(PRODUCT_SHIFT, credit.THROUGH_BITS),
    )


@native.accelerated(cpu="local_votes")
def local_votes(
    responses_LTIM: Array,
    x_LTIN: Array,
    credit_TID: Array,
    through_LDE: Array | None,
    shift_L: Array,
    rounding: Rounding,
    product_shift: int,
    through_bits: int,
) -> Array:
    """Votes on the MATRIX of every layer: int32 [L, M, N].

    Args:
      responses_LTIM: of `layers.responses`, int8.
      x_LTIN: inputs, int8.
      credit_TID: credit of the residual stream, int8; of the effects if `through_LDE` is None.
      through_LDE: weights of the PROJECTION that the effects are inputs of, int8.
      shift_L: of `credit.through_projection`, int32.
      rounding: the dithers of the segment.
      product_shift: of `operand`.
      through_bits: of `credit.through_projection`.
    """

    def of_layer(operands: Any) -> Array:
        responses_TIM, x_TIN, through_DE, shift = operands
        credit_TIE = credit_TID
        if through_DE is not None:
            credit_TIE = credit.through_projection(
                credit_TID, through_DE, shift, through_bits, rounding
            )
        return outer(operand(responses_TIM, credit_TIE, rounding, product_shift), x_TIN)

    return jax.lax.map(of_layer, (responses_LTIM, x_LTIN, through_LDE, shift_L))


LOCAL = Estimator(
    roles=frozenset({Role.MATRIX, Role.PROJECTION, Role.EMBEDDING}),
    perturbed=frozenset(),
    of_fitness=None,
    of_tokens=TokenVotes(
        _record, skip.prepare, _votes, needs_errors=True, needs="responses", of_layers=_of_layers
    ),
    sums=skip.sums,
    operations=skip.operations,
)
