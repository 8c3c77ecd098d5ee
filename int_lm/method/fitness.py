"""Fitness: what the update uses of a pair's two scores. Small integers, so that votes stay int8.

Axes: P members, I = P/2 pairs.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.limits import FITNESS_MAX, INT32_MAX
from int_lm.settings import StrategySettings

LINEAR_LEVELS_AT_MEAN = 3  # a difference of the population's mean magnitude gives +-3


def fitness(es: StrategySettings, scores_P: Array, score_max: int) -> Array:
    """Fitness of every pair from its members' scores: int32 [P] -> int8 [I].

    `sign`: sign(score+ - score-), so a tie votes for nothing. `linear`: the difference in units of
    a third of the population's mean magnitude, rounded towards 0 and clipped to [-7, 7].

    Args:
      score_max: the largest magnitude of a score.
    """
    difference_I = scores_P[0::2] - scores_P[1::2]
    if es.fitness == "sign":
        return jnp.sign(difference_I).astype(jnp.int8)
    pairs, levels = difference_I.shape[0], FITNESS_MAX["linear"]
    coarser = max(0, (score_max * pairs * LINEAR_LEVELS_AT_MEAN // INT32_MAX).bit_length())
    magnitude_I = jnp.abs(difference_I) >> coarser
    mean = jnp.maximum(jnp.sum(magnitude_I) // pairs, 1)
    level_I = jnp.minimum(LINEAR_LEVELS_AT_MEAN * magnitude_I // mean, levels)
    return (jnp.sign(difference_I) * level_I).astype(jnp.int8)
