"""Update: from votes to weights.

`threshold` (arXiv 2511.16652): a weight whose vote is larger than z standard deviations of a vote
of pure noise moves by one unit, 1/16 in q4, in the vote's direction. Under pure noise
Z = sum_i f_i a_i b_i has variance R sum_i f_i^2 times that of one perturbation entry.
"""

import jax.numpy as jnp
from jax import Array

from int_lm import fixed
from int_lm.config import FITNESS_MAX, INT32_MAX
from int_lm.params import Role
from int_lm.tables import THRESHOLD_FRACTION_BITS

_ROOT_FRACTION_BITS = 4  # fewer where the population is so large that the sum needs the bits


def vote_scale(role: Role) -> int:
    """log2 of the standard deviation of one perturbation entry: A B^T has 16 * 16, n has 16."""
    return 4 if role is Role.VECTOR else 8


def threshold(
    role: Role, rank: int, weight: Array, votes: Array, fitness_I: Array, z: Array
) -> Array:
    """The moved weights of one tensor.

    Args:
      weight: int8. votes: int32 of the same shape.
      fitness_I: int8; its squares give the votes' variance.
      z: int32 scalar, the threshold in units of 2^-10 standard deviations (`tables`).

    Returns:
      int8, saturated. A vote equal to the threshold, or of 0, moves nothing.
    """
    squares = jnp.sum(jnp.square(fitness_I.astype(jnp.int32)))
    terms = squares if role is Role.VECTOR else rank * squares
    worst = rank * fitness_I.shape[0] * max(FITNESS_MAX.values()) ** 2
    root_bits = _ROOT_FRACTION_BITS
    while worst << (2 * root_bits) > INT32_MAX:
        root_bits -= 1
    # z < 2^13 and the root < 2^16, so the product fits
    root = fixed.integer_sqrt(terms << (2 * root_bits))
    limit = (z * root) >> (THRESHOLD_FRACTION_BITS + root_bits - vote_scale(role))
    move = jnp.where(jnp.abs(votes) > limit, jnp.sign(votes), 0)
    return fixed.saturate(weight.astype(jnp.int32) + move)
