"""OpenES with floats, by evosax: the baseline of `benchmarks/control.py`.

The policy is that of `int_lm.model.rwkv` in real numbers: the same tensors, the same initial
weights, the same equations without rounding. Every member has weights of its own, W + std Z with Z
of full rank. It sees the same encoded observations and plays the same episodes as ours.

Axes: P members, E episodes of a member, R = P E rows, D width, N inputs, A outputs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from int_lm.control import border, episodes, observations, play
from int_lm.control.environment import Environment
from int_lm.control.observations import Encoding, Statistics
from int_lm.control.policy import Policy
from int_lm.errors import require
from int_lm.limits import INT8_MAX
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import params, rwkv
from int_lm.model.layers import shift_for
from int_lm.model.params import Tree

UNIT = 16.0  # of q4
MOST = INT8_MAX / UNIT  # saturation of the residual stream
GATE = UNIT / INT8_MAX  # a linear's output as a gate: 1.0 in q7 is 127


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of OpenES.

    Attributes:
      std: standard deviation of the perturbations, in real units (1.0 is 16 in q4).
      learning_rate: of Adam; it falls linearly to 0.
      beta1: of Adam.
      beta2: of Adam.
      fitness: what becomes of the members' scores: `rank`, centred, or `standard`, their standard
        scores; as `es.fitness` of ours.
    """

    std: float = 0.1
    learning_rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    fitness: str = "rank"


def _linear(weight: Array, x: Array) -> Array:
    return x @ weight.T * (UNIT / 2.0 ** shift_for(x.shape[-1]))


def _norm(x: Array) -> Array:
    mean = jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
    return jnp.clip(x / jnp.maximum(mean, 1 / UNIT), -MOST, MOST)


def _shifted(h: Array, before: Array) -> Array:
    mu = jnp.asarray(rwkv.shift_weights(h.shape[-1]), jnp.float32)[None] / 128
    return h + mu * (before - h)


def _block(layer: Tree, x: Array, state: Tree) -> tuple[Array, Tree]:
    h, cell = _norm(x), state["cell"]
    both = jnp.concatenate([_shifted(h, state["time_shift"]), cell / GATE], axis=-1)
    rows = jnp.clip(_linear(layer["time_mixing"], both) * GATE, -1, 1)
    forget, candidate, receptance = jnp.split(rows, 3, axis=-1)
    cell = cell + (forget + 1) / 2 * (candidate - cell)
    x = jnp.clip(x + (receptance + 1) / 2 * cell / GATE, -MOST, MOST)
    key = _norm(x)
    mixed = _linear(layer["channel_key"], _shifted(key, state["channel_shift"]))
    squared = jnp.clip(jnp.square(jnp.clip(mixed, 0, MOST)) / 4, 0, MOST)
    x = jnp.clip(x + _linear(layer["channel_value"], squared), -MOST, MOST)
    return x, {"cell": cell, "time_shift": h, "channel_shift": key}


def step(weights: Tree, state: Tree, inputs: Array) -> tuple[Tree, Array]:
    """One step of the policy with one member's weights: (state, [E, N]) -> (state, [E, A])."""
    x, following = _linear(weights["embedding"], inputs), []
    for number in range(len(state["cell"])):
        layer, before = jax.tree.map(lambda leaf, n=number: leaf[n], (weights["layers"], state))
        x, after = _block(layer, x, before)
        following.append(after)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *following)
    return stacked, _linear(weights["head"], _norm(x))


def chosen(environment: Environment, outputs_RA: Array) -> Array:
    """As `policy.chosen`; continuous actions are not rounded to levels."""
    if environment.choices:
        parts = np.cumsum((0, *environment.choices))
        best = [
            jnp.argmax(outputs_RA[:, a:b], axis=1)
            for a, b in zip(parts[:-1], parts[1:], strict=True)
        ]
        return jnp.stack(best, axis=1).astype(jnp.int32)
    most = float(1 << border.LEVEL_BITS)
    return jnp.clip(outputs_RA * UNIT, -most, most)


class OpenEs:
    """A policy in floats that OpenES trains.

    Args:
      recipe: of ours: population, initial weights and seed are the same.
      environment: where it acts.
      count: E.
      held_out: number of held-out episodes.
      max_steps: of an episode.
      settings: of OpenES.
      statistics: of random actions in the held-out episodes, as ours begins with.
    """

    def __init__(
        self,
        recipe: Recipe,
        environment: Environment,
        count: int,
        held_out: int,
        max_steps: int,
        settings: Settings,
        statistics: Statistics,
    ):
        from evosax.algorithms import Open_ES
        from evosax.core import fitness_shaping

        shaping = {
            "rank": fitness_shaping.centered_rank_fitness_shaping_fn,
            "standard": fitness_shaping.standardize_fitness_shaping_fn,
        }
        require(
            settings.fitness in shaping,
            f"--openes fitness is {settings.fitness!r}, expected one of {', '.join(shaping)}",
        )
        rate = optax.linear_schedule(settings.learning_rate, 0.0, recipe.settings.run.steps)
        self.recipe, self.environment, self.statistics = recipe, environment, statistics
        model: Any = recipe.model
        start = params.initialise(model.specs, recipe.settings.run.seed).network
        weights = params.map_leaves(lambda leaf: jnp.asarray(leaf, jnp.float32) / UNIT, start)
        self.strategy = Open_ES(
            population_size=recipe.es.population,
            solution=weights,
            optimizer=optax.adam(rate, settings.beta1, settings.beta2),
            std_schedule=optax.constant_schedule(settings.std),
            fitness_shaping_fn=shaping[settings.fitness],
        )
        self.options = self.strategy.default_params
        self.key = jax.random.key(recipe.settings.run.seed)
        self.state = self.strategy.init(self.key, weights, self.options)
        self._play = jax.jit(functools.partial(self._episodes, count, max_steps))
        self._answer = jax.jit(functools.partial(self._held_out, held_out, max_steps))

    def _act(self, weights_P: Tree) -> play.Act:
        members = len(jax.tree.leaves(weights_P)[0])

        def act(t: Array, inputs_RN: Array, memory: Any) -> tuple[Any, Array]:
            inputs = inputs_RN.astype(jnp.float32).reshape(members, -1, inputs_RN.shape[-1]) / UNIT
            memory, outputs = jax.vmap(step)(weights_P, memory, inputs)
            flat = outputs.reshape(len(inputs_RN), -1)
            return memory, chosen(self.environment, flat)

        return act

    def _memory(self, members: int, count: int) -> Any:
        model: Policy = self.recipe.model  # type: ignore[assignment]
        state = model.initial_state(count)
        return jax.tree.map(lambda leaf: jnp.zeros((members, *leaf.shape), jnp.float32), state)

    def _episodes(
        self, count: int, max_steps: int, weights_P: Tree, encoding: Encoding, clock: Clock
    ) -> play.Played:
        population = self.recipe.es.population
        pairs_I = jnp.arange(population // 2, dtype=jnp.int32)  # members i and i + P/2
        streams_I = pairs_I * 2 // self.recipe.es.members_per_stream
        words_R2 = jnp.tile(episodes.words(clock, streams_I, count).reshape(-1, 2), (2, 1))
        number_R = jnp.arange(len(words_R2), dtype=jnp.int32)
        counted_R = (number_R % count == 0) & (number_R < len(words_R2) // 2)
        return play.play(
            self.environment,
            self._act(weights_P),
            self._memory(population, count),
            encoding,
            words_R2,
            counted_R,
            max_steps,
        )

    def _held_out(
        self, count: int, max_steps: int, mean: Array, encoding: Encoding, seed: Array
    ) -> Array:
        weights = jax.tree.map(lambda leaf: leaf[None], self.strategy._unravel_solution(mean))
        everyone = jnp.ones(count, bool)
        words_R2 = episodes.held_words(seed, count)
        memory = self._memory(1, count)
        return play.play(
            self.environment, self._act(weights), memory, encoding, words_R2, everyone, max_steps
        ).returns

    def step(self, number: int) -> None:
        """One generation."""
        key_ask, key_tell = jax.random.split(jax.random.fold_in(self.key, number))
        weights_P, state = self.strategy.ask(key_ask, self.state, self.options)
        clock = Clock.at(self.recipe.settings.run.seed, number)
        played = self._play(weights_P, self.statistics.encoding(), clock)
        members = self.recipe.es.population
        scores_P = np.asarray(played.returns, np.int64).reshape(members, -1).sum(axis=1)
        losses_P = jnp.asarray(-scores_P, jnp.float32)
        self.state, _ = self.strategy.tell(key_tell, weights_P, losses_P, state, self.options)
        seen = observations.of_sums(np.asarray(played.sums)[None], self.environment.observations)
        self.statistics = self.statistics.added(seen)

    def answer(self) -> np.ndarray:
        """Returns of the mean of the distribution in the held-out episodes, int32 [R]."""
        seed = jnp.uint32(self.recipe.settings.run.seed)
        return np.asarray(self._answer(self.state.mean, self.statistics.encoding(), seed))
