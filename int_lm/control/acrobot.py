"""`Acrobot`: swing the end of two joined links above a line, by a torque on the joint between them.

Constants, equations and rewards are those that Gymnasium documents for Acrobot-v1 (Sutton and
Barto's book): links of length and mass 1, centres of mass at 0.5, moments of inertia 1, g = 9.8,
one fourth-order Runge-Kutta step of 0.2 seconds.

    d1 = 0.25 + (1 + 0.25 + cos b) + 2          d2 = 0.25 + 0.5 cos b + 1
    phi2 = 0.5 g cos(a + b - pi/2)
    phi1 = -0.5 b'^2 sin b - b' a' sin b + 1.5 g cos(a - pi/2) + phi2
    b'' = (u + d2 / d1 phi1 - 0.5 a'^2 sin b - phi2) / (0.25 + 1 - d2^2 / d1)
    a'' = -(d2 b'' + phi1) / d1

Every step is worth -1, the last one 0. An episode ends when -cos a - cos(a + b) > 1, or after 500
steps. The observation is (cos a, sin a, cos b, sin b, a', b').
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment

GRAVITY, SECONDS, SPREAD = 9.8, 0.2, 0.1
FASTEST = (4 * math.pi, 9 * math.pi)


def _observed(state: Array) -> Array:
    a, b, a_speed, b_speed = state
    return jnp.stack([jnp.cos(a), jnp.sin(a), jnp.cos(b), jnp.sin(b), a_speed, b_speed])


def reset(key: Array) -> tuple[Array, Array]:
    """Two angles (0 hangs down) and their speeds, float32 [4], and the observation."""
    state = jax.random.uniform(key, (4,), jnp.float32, -SPREAD, SPREAD)
    return state, _observed(state)


def _derivative(state: Array, torque: Array) -> Array:
    a, b, a_speed, b_speed = state
    sine, cosine = jnp.sin(b), jnp.cos(b)
    d1 = 0.25 + (1.0 + 0.25 + cosine) + 2.0
    d2 = 0.25 + 0.5 * cosine + 1.0
    phi2 = 0.5 * GRAVITY * jnp.cos(a + b - math.pi / 2)
    phi1 = (
        -0.5 * b_speed**2 * sine
        - b_speed * a_speed * sine
        + 1.5 * GRAVITY * jnp.cos(a - math.pi / 2)
        + phi2
    )
    second = (torque + d2 / d1 * phi1 - 0.5 * a_speed**2 * sine - phi2) / (1.25 - d2**2 / d1)
    first = -(d2 * second + phi1) / d1
    return jnp.stack([a_speed, b_speed, first, second])


def _wrapped(angle: Array) -> Array:
    """The angle, taken into [-pi, pi)."""
    return jnp.mod(angle + math.pi, 2 * math.pi) - math.pi


def step(key: Array, state: Array, action: Array) -> tuple[Array, Array, Array, Array]:
    """See `Environment.step`."""
    torque = action.astype(jnp.float32) - 1.0
    k1 = _derivative(state, torque)
    k2 = _derivative(state + SECONDS / 2 * k1, torque)
    k3 = _derivative(state + SECONDS / 2 * k2, torque)
    k4 = _derivative(state + SECONDS * k3, torque)
    a, b, a_speed, b_speed = state + SECONDS / 6 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    a, b = _wrapped(a), _wrapped(b)
    a_speed = jnp.clip(a_speed, -FASTEST[0], FASTEST[0])
    b_speed = jnp.clip(b_speed, -FASTEST[1], FASTEST[1])
    done = -jnp.cos(a) - jnp.cos(a + b) > 1.0
    after = jnp.stack([a, b, a_speed, b_speed])
    return after, _observed(after), jnp.where(done, 0.0, -1.0), done


ACROBOT = Environment(reset, step, observations=6, max_steps=500, choices=(3,))
