"""`Pendulum`: swing a pendulum up and hold it upright by a torque between -2 and 2.

Constants and rewards are those that Gymnasium documents for Pendulum-v1 (g = 10, m = l = 1):

    w' = clip(w + (3 g / (2 l) sin a + 3 u / (m l^2)) 0.05, -8, 8)
    a' = a + 0.05 w'
    reward = -(a^2 + 0.1 w^2 + 0.001 u^2), with a taken into [-pi, pi), before the step

The observation is (cos a, sin a, w). An episode has 200 steps.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment

GRAVITY, SECONDS, FASTEST, TORQUE = 10.0, 0.05, 8.0, 2.0


def _observed(state: Array) -> Array:
    angle, turning = state
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), turning])


def reset(key: Array) -> tuple[Array, Array]:
    """Angle (0 is upright) and angular speed, float32 [2], uniform; and the observation."""
    most = jnp.array([math.pi, 1.0], jnp.float32)
    state = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0) * most
    return state, _observed(state)


def step(key: Array, state: Array, action: Array) -> tuple[Array, Array, Array, Array]:
    """See `Environment.step`."""
    angle, turning = state
    torque = jnp.clip(action[0], -TORQUE, TORQUE)
    upright = jnp.mod(angle + math.pi, 2 * math.pi) - math.pi
    cost = upright**2 + 0.1 * turning**2 + 0.001 * torque**2
    turning = turning + (1.5 * GRAVITY * jnp.sin(angle) + 3.0 * torque) * SECONDS
    turning = jnp.clip(turning, -FASTEST, FASTEST)
    after = jnp.stack([angle + turning * SECONDS, turning])
    return after, _observed(after), -cost, jnp.bool_(False)


PENDULUM = Environment(reset, step, observations=3, max_steps=200, low=(-TORQUE,), high=(TORQUE,))
