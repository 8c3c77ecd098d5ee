"""`CartPole`: keep a pole upright on a cart by pushing it left or right (Barto, Sutton, Anderson).

Constants, limits and rewards are those that Gymnasium documents for CartPole-v1:

    F       = +-10                                 action 1 or 0
    temp    = (F + m l w^2 sin a) / M
    a''     = (g sin a - cos a temp) / (l (4/3 - m cos^2 a / M))
    x''     = temp - m l a'' cos a / M
    x, x', a, w  each move by 0.02 times their derivative before the step (Euler)

Every step is worth 1. An episode ends beyond |x| = 2.4 or |a| = 12 degrees, or after 500 steps.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment

GRAVITY, PUSH, SECONDS = 9.8, 10.0, 0.02
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5  # kg, kg, m
FARTHEST, STEEPEST = 2.4, 12 * 2 * math.pi / 360
SPREAD = 0.05  # of the four numbers at the start, uniform


def reset(key: Array) -> tuple[Array, Array]:
    """Position, speed, angle, angular speed: float32 [4], and the same as the observation."""
    state = jax.random.uniform(key, (4,), jnp.float32, -SPREAD, SPREAD)
    return state, state


def step(key: Array, state: Array, action: Array) -> tuple[Array, Array, Array, Array]:
    """See `Environment.step`."""
    x, speed, angle, turning = state
    total, moment = CART + POLE, POLE * HALF_LENGTH
    force = jnp.where(action == 1, PUSH, -PUSH)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    temp = (force + moment * turning**2 * sine) / total
    angular = (GRAVITY * sine - cosine * temp) / (
        HALF_LENGTH * (4.0 / 3.0 - POLE * cosine**2 / total)
    )
    linear = temp - moment * angular * cosine / total
    change = jnp.stack([speed, linear, turning, angular])
    after = state + SECONDS * change
    done = (jnp.abs(after[0]) > FARTHEST) | (jnp.abs(after[2]) > STEEPEST)
    return after, after, jnp.float32(1.0), done


CART_POLE = Environment(reset, step, observations=4, max_steps=500, choices=(2,))
