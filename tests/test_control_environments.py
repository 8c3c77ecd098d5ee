"""Environments: ours beside Gymnasium's step by step, those of other packages, and mistakes."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plugins.chase import CHASE

from int_lm import plugins
from int_lm.control import environment as environments, episodes
from int_lm.control.acrobot import ACROBOT
from int_lm.control.cart_pole import CART_POLE
from int_lm.control.environment import Environment
from int_lm.control.pendulum import PENDULUM
from int_lm.errors import UserError

KEY = jax.random.key(0, impl="threefry2x32")


# The documented equations, once more in float64, for where Gymnasium is not installed.


def cart_pole(state: np.ndarray, action: int) -> np.ndarray:
    x, v, a, w = state
    force = 10.0 if action else -10.0
    temp = (force + 0.05 * w * w * np.sin(a)) / 1.1
    turn = (9.8 * np.sin(a) - np.cos(a) * temp) / (0.5 * (4 / 3 - 0.1 * np.cos(a) ** 2 / 1.1))
    push = temp - 0.05 * turn * np.cos(a) / 1.1
    return np.array([x + 0.02 * v, v + 0.02 * push, a + 0.02 * w, w + 0.02 * turn])


def test_cart_pole_keeps_its_equations() -> None:
    """Up to rounding, until it ends, which is where |x| or the angle is too large."""
    step, state = jax.jit(CART_POLE.step), np.array([0.01, -0.3, 0.04, 0.5])
    for t in range(100):
        expected = cart_pole(state, t % 3 == 0)
        found, observation, reward, done = step(KEY, jnp.float32(state), jnp.int32(t % 3 == 0))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(found, observation)
        assert float(reward) == 1.0
        assert bool(done) == (abs(expected[0]) > 2.4 or abs(expected[2]) > np.radians(12))
        state = expected
        if done:
            break
    assert done and t > 3


def test_pendulum_keeps_its_equations() -> None:
    """Its cost is that of the state before the step, with the angle in [-pi, pi)."""
    step, angle, speed = jax.jit(PENDULUM.step), 3.0, 0.5
    for t in range(60):
        torque = [-2.0, 2.0, 0.7][t % 3]
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        cost = wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
        found, observation, reward, done = step(
            KEY, jnp.float32([angle, speed]), jnp.float32([torque])
        )
        speed = np.clip(speed + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
        angle = angle + speed * 0.05
        np.testing.assert_allclose(found, [angle, speed], atol=1e-5)
        np.testing.assert_allclose(observation, [np.cos(angle), np.sin(angle), speed], atol=1e-5)
        np.testing.assert_allclose(reward, -cost, rtol=1e-4)
        assert not done


@pytest.mark.parametrize(
    ("name", "ours", "start"),
    [
        ("CartPole-v1", CART_POLE, [0.01, -0.02, 0.03, 0.04]),
        ("Pendulum-v1", PENDULUM, [2.0, -0.6]),
        ("Acrobot-v1", ACROBOT, [0.05, -0.08, 0.02, 0.07]),
    ],
)
def test_environments_equal_gymnasium(name: str, ours: Environment, start: list[float]) -> None:
    """The same observations, rewards and ends from every state of an episode, in float32."""
    gymnasium: Any = pytest.importorskip("gymnasium")
    theirs, random = gymnasium.make(name).unwrapped, np.random.default_rng(1)
    theirs.reset(seed=0)
    theirs.state = np.array(start)
    step, ended = jax.jit(ours.step), False
    for _ in range(400):
        state = jnp.asarray(theirs.state, jnp.float32)
        if ours.choices:
            action: Any = int(random.integers(ours.choices[0]))
            given = jnp.int32(action)
        else:
            action = random.uniform(-2, 2, 1).astype(np.float32)
            given = jnp.asarray(action)
        observation, reward, done, _, _ = theirs.step(action)
        _, own, own_reward, own_done = step(KEY, state, given)
        np.testing.assert_allclose(own, observation, atol=3e-4)
        np.testing.assert_allclose(own_reward, reward, atol=3e-4)
        assert bool(own_done) == done
        if done:
            ended = True
            break
    assert ended == (name == "CartPole-v1")
    assert gymnasium.spec(name).max_episode_steps == ours.max_steps


@pytest.mark.parametrize(
    ("ours", "limits"),
    [(CART_POLE, 0.05), (ACROBOT, 0.1), (PENDULUM, np.array([np.pi, 1.0]))],
)
def test_episodes_begin_as_documented(ours: Environment, limits: Any) -> None:
    """Uniform within the documented limits, another state for every key."""
    states = np.asarray(jax.vmap(lambda key: ours.reset(key)[0])(jax.random.split(KEY, 300)))
    assert (np.abs(states) <= limits).all()
    assert (np.abs(states).max(axis=0) > 0.95 * np.asarray(limits)).all()
    assert len({tuple(row) for row in states.tolist()}) == 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "gymnax:CartPole-v1",
        "gymnax:MountainCarContinuous-v0",
        "gymnax:Catch-bsuite",
        "gymnax:FrozenLake-misc",
        "gymnax:Breakout-MinAtar",
        "jumanji:Maze-v0",
        "jumanji:Cleaner-v0",
        "brax:inverted_pendulum",
    ],
)
def test_environments_of_packages_can_be_played(name: str) -> None:
    """By chance, to their ends."""
    pytest.importorskip(name.split(":")[0])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = environments.of(name)
        held = episodes.at_random(found, 4, min(found.max_steps, 30), 0)
    assert (held.lengths >= 1).all() and held.lengths.max() <= 30
    assert held.seen.count == held.lengths.sum()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Cartpole", "or module:NAME; did you mean CartPole?"),
        ("gymnax", "expected one of CartPole, Pendulum, Acrobot, gymnax:NAME"),
        ("gymnax:", "is 'gymnax:', expected module:name"),
        ("plugins.chase:CHASES", "plugins.chase has no CHASES"),
        ("plugins.chase:reset", "is of type function, expected Environment"),
        ("plugins.nowhere:CHASE", "cannot be imported from plugins.nowhere"),
    ],
)
def test_unknown_environments_are_refused(name: str, expected: str) -> None:
    plugins.trust(name)
    with pytest.raises(UserError) as caught:
        environments.of(name)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in environments.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"int_lm.control.from_{package}", raising=False)
        with pytest.raises(UserError, match=r"needs the package .*; pip install 'int-lm\[rl\]'"):
            environments.of(f"{package}:NAME")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gymnax:MountianCar-v0", "jumanji:Maze-v1", "brax:anti"])
def test_a_package_names_its_environments(name: str) -> None:
    package, _, own_name = name.partition(":")
    pytest.importorskip(package)
    with pytest.raises(UserError) as caught:
        environments.of(name)
    assert f"{package} has no environment '{own_name}', expected one of" in str(caught.value)
    assert "; did you mean " in str(caught.value) and "\n" not in str(caught.value)


def _raises(key: Any) -> Any:
    raise RuntimeError("no luck\nat all")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"choices": ()}, "must have either choices or low and high"),
        ({"low": (0.0,), "high": (1.0,)}, "must have either choices or low and high"),
        ({"max_steps": 0}, "has max_steps 0, not above 0"),
        ({"observations": 3}, "has observations 3, but reset returns the shape (2,)"),
        ({"reset": _raises}, "failed: RuntimeError: no luck at all; mend it"),
        ({"reset": lambda key: (jnp.float32(0), CHASE.reset(key)[1])}, "failed: "),
        (
            {
                "step": lambda key, state, action: (
                    *CHASE.step(key, state, action)[:3],
                    jnp.int32(0),
                )
            },
            "must return a reward and a bool",
        ),
        (
            {
                "step": lambda key, state, action: (
                    jnp.float32(0),
                    *CHASE.step(key, state, action)[1:],
                )
            },
            "changes shape or dtype of its state",
        ),
    ],
)
def test_what_is_no_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    name = "plugins.chase:CHASE"
    plugins.trust(name)
    monkeypatch.setattr(name.replace(":", "."), CHASE._replace(**changes))
    with pytest.raises(UserError) as caught:
        environments.of(name)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
