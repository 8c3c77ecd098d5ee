"""Update: from votes to weights.

`threshold` (arXiv 2511.16652): a weight whose vote is larger than z standard deviations of a vote
of pure noise moves by one unit, 1/16 in q4, in the vote's direction. Plain votes of pure noise,
Z = sum_i f_i a_i b_i, have variance R sum_i f_i^2 times that of one perturbation entry; for the
other estimators the deviation is taken from the votes: sqrt(pi / 2) times their mean magnitude.

`carry`: a weight moves by learning_rate times its `strength`, rounded to units of 2^-12; whole
units move the weight and the rest is kept in an int16 remainder (error feedback: Seide et al.,
"1-bit stochastic gradient descent", Interspeech 2014), so that steps far below a unit add up and
opposite ones cancel. `stochastic` rounds up or down at random instead of keeping anything.

The strength of a vote is its sign, or with vote_clip > 0 its size as a share of vote_clip times the
tensor's mean magnitude, at most 1. It makes the step independent of the votes' scale.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.arithmetic.tables import LEARNING_RATE_BITS, THRESHOLD_FRACTION_BITS
from int_lm.limits import FITNESS_MAX, INT32_MAX
from int_lm.model.params import Role

_ROOT_FRACTION_BITS = 4  # fewer where the population is so large that the sum needs the bits
STRENGTH_BITS = 7  # a vote's strength is in units of 2^-7
CLIP_FRACTION_BITS = 6  # vote_clip is in units of 2^-6
VOTE_BITS = 18  # of votes whose mean is taken
_ROOT_HALF_PI = 1283  # sqrt(pi / 2) in units of 2^-10


def vote_scale(role: Role) -> int:
    """log2 of the standard deviation of one perturbation entry: A B^T has 16 * 16, n has 16."""
    return 4 if role is Role.VECTOR else 8


def threshold(
    role: Role, rank: int, weight: Array, votes: Array, fitness_I: Array, z: Array
) -> Array:
    """The moved weights of one tensor with plain votes.

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
    return _stepped(weight, votes, limit)


def threshold_by_magnitude(weight: Array, votes: Array, z: Array) -> Array:
    """`threshold` for votes whose deviation under noise is not known beforehand."""
    coarse, mean = _coarse(votes, VOTE_BITS - 1)
    deviation = (mean * _ROOT_HALF_PI) >> 10  # below 2^18, so that z times it fits
    return _stepped(weight, coarse, (z * deviation) >> THRESHOLD_FRACTION_BITS)


def _stepped(weight: Array, votes: Array, limit: Array) -> Array:
    """Weights moved by one unit where |vote| passes a limit."""
    move = jnp.where(jnp.abs(votes) > limit, jnp.sign(votes), 0)
    return fixed.saturate(weight.astype(jnp.int32) + move)


def _coarse(votes: Array, most_bits: int) -> tuple[Array, Array]:
    """Votes of so many bits at most, shifted down together, and their mean magnitude, rounded down.

    Bits are given up where an axis is so long that the sum of the magnitudes needs them.
    """
    bits = min(most_bits, 30 - max(math.ceil(math.log2(size)) for size in votes.shape))
    width = 32 - jax.lax.clz(jnp.max(jnp.abs(votes)))
    shift = jnp.maximum(width - bits, 0)
    coarse = jnp.sign(votes) * (jnp.abs(votes) >> shift)
    mean = jnp.abs(coarse)
    while mean.ndim:
        mean = jnp.sum(mean, axis=-1) // mean.shape[-1]
    return coarse, mean


def strength(votes: Array, vote_clip: float) -> Array:
    """How strongly each weight is to move: int32 in [-128, 128], 128 = a whole learning rate.

    Args:
      votes: int32 with |votes| < 2^31.
      vote_clip: mean magnitudes that count as 1; 0 for the votes' signs.
    """
    if vote_clip == 0:
        return jnp.sign(votes) << STRENGTH_BITS
    coarse, mean = _coarse(votes, VOTE_BITS)
    clip = round(vote_clip * (1 << CLIP_FRACTION_BITS))  # below 2^10
    most = jnp.maximum((mean * clip) >> CLIP_FRACTION_BITS, 1)
    # |coarse| <= most, so the product with 2^24 / most fits
    product = jnp.minimum(jnp.abs(coarse), most) * ((1 << 24) // most)
    return jnp.sign(coarse) * (product >> (24 - STRENGTH_BITS))


def _wanted(strengths: Array, rate: Array) -> Array:
    """Strength times learning rate, in units of 2^-12, rounded half up."""
    return fixed.shift_down(strengths * rate, STRENGTH_BITS)


def carry(weight: Array, remainder: Array, strengths: Array, rate: Array) -> tuple[Array, Array]:
    """The moved weights of one tensor and what remains.

    Args:
      weight: int8. remainder: int16 in [-2^11, 2^11), units of 2^-12. strengths: of `strength`.
      rate: int32 scalar, the learning rate in units of 2^-12 (`tables`).

    Returns:
      int8, saturated, and int16. A weight that is held at +-127 still hands over its whole units.
    """
    total = remainder.astype(jnp.int32) + _wanted(strengths, rate)
    whole = fixed.shift_down(total, LEARNING_RATE_BITS)
    rest = total - (whole << LEARNING_RATE_BITS)
    return fixed.saturate(weight.astype(jnp.int32) + whole), rest.astype(jnp.int16)


def stochastic(weight: Array, strengths: Array, rate: Array, random: Array) -> Array:
    """The moved weights of one tensor, whole units only: up or down with the right mean.

    Args:
      weight, strengths, rate: as for `carry`.
      random: int32 of the weights' shape, uniform in [0, 2^12) (`noise.rounding`).
    """
    whole = (_wanted(strengths, rate) + random) >> LEARNING_RATE_BITS
    return fixed.saturate(weight.astype(jnp.int32) + whole)
