"""`eggroll`: plain votes, the paper's estimator (arXiv 2511.16652).

    Z = sum_i f_i A_i B_i^T          f_i: fitness of pair i

It works with any objective and votes on every tensor of the network. The noise of a vote grows with
the number of weights that are perturbed together.

Axes: I pairs, R rank, M outputs, N inputs; leading axes are free.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.limits import FITNESS_MAX, INT8_MAX, noise_max
from int_lm.method.estimator import Estimator
from int_lm.model.params import Role, Spec
from int_lm.model.perturb import Noise
from int_lm.settings import StrategySettings

ROLES = frozenset(Role) - {Role.TABLE}


def votes(es: StrategySettings, noise: Noise, fitness_I: Array) -> Array:
    """Votes on one tensor: one matmul over (pair, rank), in which no pair's A B^T is formed.

    Args:
      es: rank R, fitness and noise.
      noise: (A [..., I, M, R], B [..., I, N, R]), or (n [..., I, N], None) for a VECTOR; int8.
      fitness_I: int8.

    Returns:
      int32 [..., M, N] or [..., N]. Contract: |Z| <= R I max|A| max|B| max|f| < 2^31, which
      `method.bounds` checks.
    """
    left, right = noise
    # where f A fits int8, an int8 matmul is used, which is faster
    fits = FITNESS_MAX[es.fitness] * noise_max(es) <= INT8_MAX
    dtype = jnp.int8 if fits else jnp.int32
    left, fitness_I = left.astype(dtype), fitness_I.astype(dtype)
    if right is None:
        return jnp.einsum("...in,i->...n", left, fitness_I, preferred_element_type=jnp.int32)
    weighted = left * fitness_I.reshape(*([1] * (left.ndim - 3)), -1, 1, 1)
    return jnp.einsum(
        "...imr,...inr->...mn", weighted, right.astype(dtype), preferred_element_type=jnp.int32
    )


def _sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    entry = es.rank * noise_max(es) ** 2  # the largest entry of A B^T
    what = f"the votes of {es.population} members at rank {es.rank} ({es.noise}, {es.fitness})"
    return [(what, es.population // 2 * entry * FITNESS_MAX[es.fitness])]


EGGROLL = Estimator(
    roles=ROLES,
    perturbed=ROLES,
    of_fitness=votes,
    of_tokens=None,
    sums=_sums,
    operations=lambda spec: 0,
    plain=True,
)
