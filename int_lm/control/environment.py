"""An environment is one `Environment` value, in one file, found by name.

    CartPole, Pendulum, Acrobot          in the box
    gymnax:NAME, jumanji:NAME, brax:NAME those of other packages, with the extra `rl`
    my_package.my_module:NAME            one of the user's own, or an installed one's short name

Axes: N numbers of an observation.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import plugins
from int_lm.errors import UserError, nearest, require

PACKAGES = ("gymnax", "jumanji", "brax")  # each has a module from_PACKAGE.py
EXTRA = "pip install 'int-lm[rl]'"


class Environment(NamedTuple):
    """One environment, not batched: pure functions that JAX can trace and `jax.vmap` can batch.

    A key is a typed JAX key. An episode ends when `step` says so, or after `max_steps` steps.

    Attributes:
      reset: (key) -> (state, observation), at the start of an episode. The state is any tree of
        arrays; the observation holds N real numbers.
      step: (key, state, action) -> (state, observation, reward, done). The reward is a real number,
        `done` a bool. It is also called after the end of an episode; then its results are not used.
      observations: N, how many numbers an observation has.
      max_steps: largest number of steps of an episode.
      choices: of discrete actions, for each one the number of its values. The action is an int32
        scalar if there is one, and int32 of this length if there are several. Empty for continuous
        actions.
      low: of continuous actions, the least value of each. The action is a float32 array.
      high: likewise, the largest value of each.
    """

    reset: Callable[[Array], tuple[Any, Array]]
    step: Callable[[Array, Any, Array], tuple[Any, Array, Array, Array]]
    observations: int
    max_steps: int
    choices: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """The number of outputs of a policy: one for each value or continuous action."""
        return sum(self.choices) or len(self.low)


def of(name: str) -> Environment:
    """The environment of this name.

    Raises:
      UserError: nothing has this name (the message has the nearest one), its package is not
        installed (the message says how to install it), or it is not an environment.
    """
    package, _, own_name = name.partition(":")
    if package in PACKAGES and own_name:
        return _checked(name, _of_package(package, own_name))
    if ":" not in name and name not in plugins.names("environment"):
        known = plugins.names("environment")
        others = ", ".join(f"{other}:NAME" for other in PACKAGES)
        raise UserError(
            f"there is no environment {name!r}, expected one of {', '.join(known)}, {others}, or "
            f"module:NAME{nearest(name, known, otherwise='')}"
        )
    return _checked(name, plugins.resolve("environment", name, Environment))


def _of_package(package: str, name: str) -> Environment:
    try:
        adapter = importlib.import_module(f"int_lm.control.from_{package}")
    except ImportError as error:
        raise UserError(
            f"the environment {package}:{name} needs the package {package}, which cannot be "
            f"imported here ({error}); {EXTRA}"
        ) from error
    return adapter.environment(name)


def unknown(package: str, name: str, known: list[str]) -> UserError:
    """The error that says that a package has no such environment, for the adapters."""
    return UserError(
        f"{package} has no environment {name!r}, expected one of {', '.join(sorted(known))}"
        f"{nearest(name, known, otherwise='')}"
    )


def _checked(name: str, environment: Environment) -> Environment:
    """The environment, after a trial of its functions, in which nothing is computed.

    Raises:
      UserError: its attributes contradict each other, or its functions return something else.
    """
    where = f"the environment {name}"
    discrete, low, high = environment.choices, environment.low, environment.high
    require(
        (len(discrete) > 0) != (len(low) > 0) and len(low) == len(high),
        f"{where} must have either choices or low and high, these two of the same length",
    )
    require(
        environment.max_steps > 0, f"{where} has max_steps {environment.max_steps}, not above 0"
    )

    def trial() -> tuple[Any, ...]:
        key = jax.random.key(0, impl="threefry2x32")
        state, first = environment.reset(key)
        if discrete:
            action = jnp.zeros(len(discrete) if len(discrete) > 1 else (), jnp.int32)
        else:
            action = jnp.asarray(low, jnp.float32)
        after, observation, reward, done = environment.step(key, state, action)
        return state, first, after, observation, reward, done

    try:
        state, first, after, observation, reward, done = jax.eval_shape(trial)
    except UserError:
        raise
    except Exception as error:  # an environment of the user's own may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} failed: {type(error).__name__}: {reason}; mend it") from error
    shape = (environment.observations,)
    for what, found in (("reset", first), ("step", observation)):
        require(
            found.shape == shape,
            f"{where} has observations {shape[0]}, but {what} returns the shape {found.shape}",
        )
    require(
        jax.tree.map(lambda x: (x.shape, x.dtype), state)
        == jax.tree.map(lambda x: (x.shape, x.dtype), after),
        f"{where} changes shape or dtype of its state in step; reset must return the same",
    )
    require(
        reward.shape == () and done.shape == () and done.dtype == bool,
        f"{where} must return a reward and a bool, both without axes, in step",
    )
    return environment
