"""Environments of brax: `brax:NAME`, such as `brax:ant`. Actions are continuous, in [-1, 1]."""

import importlib
from typing import Any

import jax
from jax import Array

from int_lm.control.environment import Environment, unknown

envs: Any = importlib.import_module("brax.envs")

STEPS = 1000  # of an episode at most: the environments have no limit of their own


def environment(name: str) -> Environment:
    """The environment that brax has under this name.

    Raises:
      UserError: it has none.
    """
    known = sorted(envs._envs)
    if name not in known:
        raise unknown("brax", name, known)
    made: Any = envs.get_environment(name)

    def reset(key: Array):
        state = made.reset(jax.random.key_data(key))
        return state, state.obs

    def step(key: Array, state, action: Array):
        state = made.step(state, action)
        return state, state.obs, state.reward, state.done > 0

    size = made.action_size
    return Environment(
        reset,
        step,
        observations=made.observation_size,
        max_steps=STEPS,
        low=(-1.0,) * size,
        high=(1.0,) * size,
    )
