"""`exact`: the exact votes on the readout. The readout needs no perturbation.

    Z = sum_it (onehot(target_it) - p_it) x_it^T

The logits are linear in the readout. So this is the derivative of the log-likelihood with respect
to the readout. Plain votes of an infinite population would converge to it (docs/method.md).
The context tables learn from the same errors (`model.context_tables`).

Axes: T tokens of a segment, I pairs, N inputs, V vocabulary.
"""

from typing import Any

from jax import Array

from int_lm.method.estimator import Estimator, Segment, TokenVotes
from int_lm.method.estimator.outer import inputs_of, outer, outer_operations, outer_sums
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight


def _votes(
    spec: Spec,
    weight: Weight,
    inputs_TIN: Array,
    through: Array | None,
    errors_TIV: Any,
    rounding: Rounding,
) -> Array:
    return outer(errors_TIV, inputs_TIN)


def _prepare(segment: Segment) -> Array | None:
    return segment.errors_TIV


EXACT = Estimator(
    roles=frozenset({Role.READOUT}),
    perturbed=frozenset(),
    of_fitness=None,
    of_tokens=TokenVotes(inputs_of, _prepare, _votes, needs_errors=True),
    sums=outer_sums,
    operations=outer_operations,
)
