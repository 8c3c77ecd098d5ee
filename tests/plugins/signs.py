"""An estimator: plain votes made token by token, from the sign of every token's difference.

    Z = sum_it A_i (sign(d_it) sign(B_i x_it)) x_it^T

d_it is the difference of the log-likelihoods that the two members of pair i give token t. B_i x_it
is the product of the perturbation's factor B_i and the inputs. `trace` rounds the product of both;
this estimator uses the product's sign. The votes of embeddings and VECTORs are those of `eggroll`.

Axes: T tokens of a segment, I pairs, R rank, M outputs, N inputs.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from int_lm.limits import INT8_MAX, noise_max
from int_lm.method.estimator import Estimator, Segment, TokenVotes, node
from int_lm.method.estimator.outer import inputs_of, outer, outer_operations
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Weight
from int_lm.settings import StrategySettings

ROLES = frozenset({Role.MATRIX, Role.PROJECTION, Role.READOUT})


def _prepare(segment: Segment) -> Array:
    """The sign of every token's difference: int8 [T, I, 1]."""
    return jnp.sign(segment.difference_TI).astype(jnp.int8)[..., None]


def _votes(
    spec: Spec,
    weight: Weight,
    x_TIN: Any,
    through: Array | None,
    sign_TI1: Array,
    rounding: Rounding,
) -> Array:
    assert weight.left is not None
    sign_TIR = jnp.sign(node.projection(weight, x_TIN)) * sign_TI1
    terms = [
        outer(weight.left[None, ..., r] * sign_TIR[..., r : r + 1], x_TIN)
        for r in range(sign_TIR.shape[-1])
    ]
    return functools.reduce(jnp.add, terms)


def _sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    terms = es.population // 2 * es.segment_length * es.rank
    what = f"the signed votes of {es.population} members over {es.segment_length} tokens"
    return [(what, terms * noise_max(es) * INT8_MAX)]


SIGNS = Estimator(
    roles=ROLES,
    perturbed=ROLES,
    of_fitness=None,
    of_tokens=TokenVotes(inputs_of, _prepare, _votes),
    sums=_sums,
    operations=outer_operations,
)
