"""Environments of gymnax: `gymnax:NAME`, such as `gymnax:MountainCar-v0`."""

import contextlib
import importlib
import math
import sys
from typing import Any

import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment, unknown
from int_lm.errors import UserError

gymnax: Any = importlib.import_module("gymnax")
spaces: Any = importlib.import_module("gymnax.environments.spaces")


def environment(name: str) -> Environment:
    """The environment that gymnax has under this name.

    Raises:
      UserError: it has none, or one whose actions are of another kind than discrete or bounded.
    """
    if name not in gymnax.registered_envs:
        raise unknown("gymnax", name, list(gymnax.registered_envs))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made, params = gymnax.make(name)
    except OSError as error:
        raise UserError(f"gymnax:{name} needs files that cannot be had ({error})") from error
    actions, shown = made.action_space(params), made.observation_space(params)
    choices = (int(actions.n),) if isinstance(actions, spaces.Discrete) else ()
    shape, low, high = (), (), ()
    if not choices:
        if not isinstance(actions, spaces.Box):
            raise UserError(f"gymnax:{name} has actions of the kind {type(actions).__name__}")
        shape = actions.shape
        low, high = (_each(limit, shape) for limit in (actions.low, actions.high))
    scalar = not choices and shape == ()

    def observed(observation: Array) -> Array:
        return jnp.asarray(observation).astype(jnp.float32).reshape(-1)

    def reset(key: Array):
        observation, state = made.reset_env(key, params)
        return state, observed(observation)

    def step(key: Array, state, action: Array):
        given = action if choices else action.reshape(() if scalar else shape)
        observation, state, reward, ended, _ = made.step_env(key, state, given, params)
        done = ended | made.is_truncated(state, params)
        return state, observed(observation), jnp.asarray(reward).astype(jnp.float32), done

    return Environment(
        reset,
        step,
        observations=math.prod(shown.shape),
        max_steps=int(params.max_steps_in_episode),
        choices=choices,
        low=low,
        high=high,
    )


def _each(limit, shape: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(map(float, jnp.broadcast_to(jnp.asarray(limit), shape).reshape(-1)))
