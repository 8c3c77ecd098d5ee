"""`exact`: the exact votes on the readout. The readout needs no perturbation.

    Z = sum_it (onehot(target_it) - p_it) x_it^T

The logits are linear in the readout, so this is the derivative of the log-likelihood with respect
to it, to which plain votes of an infinite population would converge (docs/method.md derives it).
The context tables learn from the same errors (`model.context_tables`).

Axes: T tokens of a segment, I pairs, N inputs, V vocabulary.
"""

from typing import Any

from jax import Array

from int_lm.limits import INT8_MAX, spare_bits
from int_lm.method.estimator import Estimator, Segment, TokenVotes
from int_lm.method.estimator.outer import outer
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight
from int_lm.settings import StrategySettings


def inputs_of(spec: Spec, use: Use) -> Array:
    """Inputs of a tensor for the first member of every pair.

    int8 [..., I, N]; for the EMBEDDING token ids, int32 [I].
    """
    return use.inputs[0::2] if spec.role is Role.EMBEDDING else use.inputs[..., 0::2, :]


def token_sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    """Bound of a sum, over all pairs and tokens, of products of two int8 operands."""
    terms = es.population // 2 * es.segment_length
    what = f"the votes of {es.population} members over {es.segment_length} tokens"
    return [(what, terms * INT8_MAX * (INT8_MAX >> spare_bits(es)))]


def outer_operations(spec: Spec) -> int:
    """Operations per token and member of one M x N outer product for every pair and token."""
    return spec.shape[0] * spec.shape[1]


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
    name="exact",
    roles=frozenset({Role.READOUT}),
    perturbed=frozenset(),
    of_fitness=None,
    of_tokens=TokenVotes(inputs_of, _prepare, _votes, needs_errors=True),
    sums=token_sums,
    operations=outer_operations,
)
