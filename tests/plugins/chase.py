"""An environment of its own: move by -1, 0 or 1 to where a target is, which moves once.

All its numbers are small multiples of 1/4, so that floats compute it exactly.
"""

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment

STEPS, FARTHEST = 6, 3


def _observed(state: Array) -> Array:
    at, target, t = state
    return jnp.stack([(target - at).astype(jnp.float32) / 4, t.astype(jnp.float32)])


def reset(key: Array) -> tuple[Array, Array]:
    """The place, that of the target and the time, int32 [3]."""
    target = jax.random.randint(key, (), -3, 4, jnp.int32)
    state = jnp.stack([jnp.int32(0), target, jnp.int32(0)])
    return state, _observed(state)


def step(key: Array, state: Array, action: Array) -> tuple[Array, Array, Array, Array]:
    """Worth 1 minus the distance / 4. It ends far away from the target, too."""
    at, target, t = state
    at, target = at + action - 1, jnp.where(t == 2, -target, target)
    after = jnp.stack([at, target, t + 1])
    distance = jnp.abs(target - at)
    return after, _observed(after), 1 - distance.astype(jnp.float32) / 4, distance > FARTHEST


CHASE = Environment(reset, step, observations=2, max_steps=STEPS, choices=(3,))
