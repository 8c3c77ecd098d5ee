"""Votes along the skip path: on tensors whose outputs the residual stream adds up.

The EMBEDDING and a PROJECTION need no perturbation. Their gradient along the skip path follows from
the credit of the residual stream:

    Z = sum_it credit_it x_it^T

Axes: T tokens of a segment, I voters, D width, F effects of a PROJECTION.
"""

from typing import Any

from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX
from int_lm.method.estimator import Segment, credit
from int_lm.method.estimator.outer import outer, outer_operations, outer_sums, scattered
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.params import Role, Spec
from int_lm.settings import StrategySettings


def prepare(segment: Segment) -> Array:
    """Credit of the residual stream, `credit.of_stream`: int8 [T, I, D]."""
    assert segment.errors_TIV is not None
    return credit.of_stream(
        segment.gain_TID,
        segment.residual_TID,
        segment.network["head"].value,
        segment.errors_TIV,
        segment.rounding,
    )


def votes(spec: Spec, inputs: Any, credit_TID: Array, rounding: Rounding) -> Array:
    """Votes on the EMBEDDING or a PROJECTION: int32 sums of its shape.

    Args:
      inputs: token ids, int32 [T, I], of the EMBEDDING; int8 [T, I, F] of a PROJECTION.
      credit_TID: of `prepare`.
    """
    if spec.role is Role.EMBEDDING:
        return scattered(spec.shape, inputs, rounding.operand(credit_TID, 0))
    return outer(rounding.operand(credit_TID, 0), inputs)


def sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    """`Estimator.sums` of estimators that vote by credit."""
    width = max(spec.shape[-1] for spec in specs.values() if spec.role is Role.EMBEDDING)
    # of `layers.norm_credit`: over the width, 127 times a dividend of a division, shifted down
    credit_sum = width * INT8_MAX << (fixed.DIVIDEND_BITS - fixed.ALONG_BITS)
    return [*outer_sums(es, specs), (f"the credit of width {width}", credit_sum)]


def operations(spec: Spec) -> int:
    """Operations per token and member of the votes on a tensor, if one member of a pair votes.

    EMBEDDING: credit back through the head, which has as many weights as the EMBEDDING. Others: the
    outer product, and for a MATRIX with `through` as much again for the credit back through that
    PROJECTION.
    """
    if spec.role is Role.EMBEDDING:
        return spec.shape[0] * spec.shape[1]
    return outer_operations(spec) * (2 if spec.through else 1)
