"""Environments of jumanji: `jumanji:NAME`, such as `jumanji:Snake-v1`.

An observation is a tree of arrays; its numbers are put one after another, the mask of legal actions
among them, which the policy thus sees.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control.environment import Environment, unknown
from int_lm.errors import UserError

registration: Any = importlib.import_module("jumanji.registration")
specs: Any = importlib.import_module("jumanji.specs")

STEPS = 1000  # of an episode at most, where the environment names no limit


def environment(name: str) -> Environment:
    """The environment that jumanji has under this name.

    Raises:
      UserError: it has none, or one whose actions or rewards are of another kind.
    """
    known = sorted(registration.registered_environments())
    if name not in known:
        raise unknown("jumanji", name, known)
    made: Any = registration.make(name)
    actions = made.action_spec
    choices, low, high = (), (), ()
    if isinstance(actions, specs.DiscreteArray):
        choices = (int(actions.num_values),)
    elif isinstance(actions, specs.MultiDiscreteArray):
        choices = tuple(int(n) for n in jnp.ravel(actions.num_values))
    elif isinstance(actions, specs.BoundedArray):
        low, high = (
            tuple(map(float, jnp.ravel(jnp.broadcast_to(limit, actions.shape))))
            for limit in (actions.minimum, actions.maximum)
        )
    else:
        raise UserError(f"jumanji:{name} has actions of the kind {type(actions).__name__}")

    def observed(observation) -> Array:
        leaves = jax.tree.leaves(observation)
        return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])

    def reset(key: Array):
        state, timestep = made.reset(_raw(key))
        return state, observed(timestep.observation)

    def step(key: Array, state, action: Array):
        given = action.reshape(actions.shape).astype(actions.dtype)
        state, timestep = made.step(state, given)
        reward = jnp.sum(timestep.reward).astype(jnp.float32)  # of all agents
        return state, observed(timestep.observation), reward, timestep.last()

    key = jax.random.key(0, impl="threefry2x32")
    return Environment(
        reset,
        step,
        observations=jax.eval_shape(reset, key)[1].shape[0],
        max_steps=int(getattr(made, "time_limit", None) or STEPS),
        choices=choices,
        low=low,
        high=high,
    )


def _raw(key: Array) -> Array:
    """The two words of a key: environments of jumanji keep them in their state."""
    return jax.random.key_data(key)
