"""`threshold`: weights whose vote exceeds a threshold move by one unit, 1/16 in q4.

The paper's update (arXiv 2511.16652): a weight moves in the direction of its vote if |vote| is
larger than z standard deviations of a vote of pure noise. This standard deviation is known for
plain votes, Z = sum_i f_i a_i b_i: their variance is R sum_i f_i^2 times that of one perturbation
entry. For other votes it is estimated from the votes: sqrt(pi / 2) times their mean magnitude.

`es.alpha` is the share of weights that would move if all votes were noise. It decays by
`es.schedule` with the half-life `es.alpha_halflife`.
"""

import statistics

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import FITNESS_MAX, INT32_MAX
from int_lm.method import schedules
from int_lm.method.update import Memory, Scalars, Tensor, Update, Values, Votes
from int_lm.method.update.scale import coarse_votes
from int_lm.model.params import Role, Spec
from int_lm.settings import Settings, StrategySettings

FRACTION_BITS = 10  # z-thresholds are in units of 2^-10 standard deviations
LEAST_SHARE = 2.0**-48  # keeps z-thresholds below 8 standard deviations, that is below 2^13 units
VOTE_BITS = 17  # votes are shifted down to at most so many bits before their mean is taken
_ROOT_FRACTION_BITS = 4  # of a square root; fewer for a population whose sum would overflow int32
_ROOT_HALF_PI = 1283  # sqrt(pi / 2) in units of 2^-10


def alpha_at(settings: Settings, step: int) -> float:
    """Share of weights, in [0, 1], that move at `step` if votes are pure noise."""
    es = settings.es
    decay = schedules.decay(es.schedule, step, es.alpha_halflife, settings.run.steps)
    return min(1.0, es.alpha * decay)


def vote_threshold(settings: Settings, step: int) -> int:
    """z-threshold of `step` in units of 2^-10 standard deviations of a vote.

    z = -inverse_normal_cdf(alpha / 2): a share alpha of pure-noise votes exceeds it in magnitude.
    An alpha below `LEAST_SHARE` is raised to it, so that 0 <= z < 2^13 units.
    """
    z = -statistics.NormalDist().inv_cdf(max(alpha_at(settings, step), LEAST_SHARE) / 2.0)
    return round(z * (1 << FRACTION_BITS))


def _values(settings: Settings, step: int) -> Values:
    return {"z": vote_threshold(settings, step)}


def vote_scale(role: Role) -> int:
    """log2 of the standard deviation of one perturbation entry: 16 * 16 for A B^T, 16 for n."""
    return 4 if role is Role.VECTOR else 8


def by_fitness(
    role: Role, rank: int, weight: Array, votes: Array, fitness_I: Array, z: Array
) -> Array:
    """The moved weights of one tensor, from votes whose variance follows from the fitness.

    Args:
      role: role of the tensor.
      rank: rank R of the perturbation.
      weight: int8.
      votes: int32, of the same shape.
      fitness_I: int8; the sum of its squares gives the votes' variance.
      z: int32 scalar, the threshold in units of 2^-10 standard deviations (`vote_threshold`).

    Returns:
      int8, saturated. A vote of 0, or one equal to the threshold, does not move its weight.
    """
    squares = jnp.sum(jnp.square(fitness_I.astype(jnp.int32)))
    terms = squares if role is Role.VECTOR else rank * squares
    worst = rank * fitness_I.shape[0] * max(FITNESS_MAX.values()) ** 2
    root_bits = _ROOT_FRACTION_BITS
    while worst << (2 * root_bits) > INT32_MAX:
        root_bits -= 1
    # z < 2^13 and the root < 2^16, so the product fits
    root = fixed.integer_sqrt(terms << (2 * root_bits))
    limit = (z * root) >> (FRACTION_BITS + root_bits - vote_scale(role))
    return _stepped(weight, votes, limit)


def by_magnitude(weight: Array, votes: Array, z: Array) -> Array:
    """`by_fitness` for votes whose standard deviation must be estimated from the votes."""
    coarse, mean = coarse_votes(votes, VOTE_BITS)
    deviation = (mean * _ROOT_HALF_PI) >> 10  # below 2^18, so that z times it fits
    return _stepped(weight, coarse, (z * deviation) >> FRACTION_BITS)


def _stepped(weight: Array, votes: Array, limit: Array) -> Array:
    """The weights, moved by one unit where |vote| exceeds `limit`."""
    move = jnp.where(jnp.abs(votes) > limit, jnp.sign(votes), 0)
    return fixed.saturate(weight.astype(jnp.int32) + move)


def _memory(spec: Spec) -> Memory:
    return {}


def _move(
    es: StrategySettings,
    tensor: Tensor,
    weight: Array,
    memory: Memory,
    votes: Votes,
    values: Scalars,
) -> tuple[Array, Memory]:
    if votes.fitness_I is None:
        return by_magnitude(weight, votes.sums, values["z"]), memory
    moved = by_fitness(tensor.spec.role, es.rank, weight, votes.sums, votes.fitness_I, values["z"])
    return moved, memory


THRESHOLD = Update(
    memory=_memory,
    values=_values,
    move=_move,
    settings_used=lambda es: {"alpha": f"{es.alpha:g}, half-life {es.alpha_halflife:g} steps"},
)
