"""Fitness: a small integer made of a pair's two scores.

It is at most 7 in magnitude, so that perturbations weighted by it can fit int8 matmuls.

Axes: P members, I = P/2 pairs.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.limits import FITNESS_MAX, INT32_MAX, LINEAR_LEVELS_AT_MEAN
from int_lm.settings import StrategySettings


def fitness(es: StrategySettings, scores_P: Array, score_max: int) -> Array:
    """Fitness of every pair from its members' scores: int32 [P] -> int8 [I].

        sign      sign(score+ - score-); a tie gives 0
        linear    3 (score+ - score-) / (mean |difference| of the population), rounded towards 0
                  and clipped to [-7, 7]

    Args:
      es: its `fitness` names one of the two.
      scores_P: scores, int32; members 2i and 2i+1 are pair i.
      score_max: the largest possible magnitude of a score.
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
