"""The border between an environment, whose numbers are floats, and the policy's integers.

Each number crosses it once: observations and rewards are rounded to fixed point on their way in,
and continuous actions are levels between their limits on the way out. Everything that follows from
the rounded numbers is integer arithmetic.

Axes: R episodes that are played together, N numbers of an observation, A outputs of the policy.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment
from int_lm.limits import INT32_MAX

OBSERVATION_BITS = 16  # observations are in units of 2^-16
OBSERVATION_MAX = (1 << 30) - 64  # in these units; a float32
REWARD_BITS = 12  # rewards and returns are in units of 2^-12
LEVEL_BITS = 6  # an output of +-2^6 (4.0 in q4) is the largest or least continuous action


def observed(observation: Array) -> Array:
    """Observations in units of 2^-16, rounded half to even: int32, at most `OBSERVATION_MAX`.

    Larger numbers count as the largest, and what is no number as 0.
    """
    real = jnp.nan_to_num(jnp.asarray(observation, jnp.float32), nan=0.0)
    units = jnp.round(real * float(1 << OBSERVATION_BITS))
    most = float(OBSERVATION_MAX)
    return jnp.clip(units, -most, most).astype(jnp.int32)


def reward_max(max_steps: int) -> int:
    """The largest magnitude of a reward in units of 2^-12, so that no return overflows int32."""
    return min(INT32_MAX // max_steps, 1 << 30)


def rewarded(reward: Array, max_steps: int) -> Array:
    """Rewards in units of 2^-12, rounded half to even: int32, at most `reward_max`."""
    real = jnp.nan_to_num(jnp.asarray(reward, jnp.float32), nan=0.0)
    units = jnp.round(real * float(1 << REWARD_BITS))
    most = reward_max(max_steps)
    limit = float(most)
    return jnp.clip(jnp.clip(units, -limit, limit).astype(jnp.int32), -most, most)


def real(returns: int, episodes: int) -> float:
    """The mean return of some episodes, from its integer sum."""
    return returns / (episodes << REWARD_BITS)


def acted(environment: Environment, chosen: Array) -> Array:
    """What `Environment.step` takes of one episode, from `policy.chosen` (int32).

    Discrete actions are those that were chosen. A continuous action is

        low + (high - low) (level + 2^6) / 2^7            level in [-2^6, 2^6]
    """
    if environment.choices:
        return chosen if len(environment.choices) > 1 else chosen[0]
    low, high = (jnp.asarray(x, jnp.float32) for x in (environment.low, environment.high))
    share = (chosen + (1 << LEVEL_BITS)).astype(jnp.float32) / float(2 << LEVEL_BITS)
    return low + (high - low) * share
