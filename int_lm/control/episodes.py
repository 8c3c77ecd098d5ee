"""What a population does in an environment: episodes, under perturbation, and their returns.

Member p plays `control.episodes` episodes in every step; `es.members_per_stream` members, the two
of a pair among them, play the same ones: they begin in the same states and meet the same random
words. Policy, returns and statistics are integers (`border` has the rounding), the environment is
not.

Axes: P members, I pairs, E episodes of a member, S streams of members that play the same episodes,
R episodes that are played together, N numbers of an observation, C chunks, K sums of observations.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from int_lm.arithmetic import noise
from int_lm.control import border, observations, policy
from int_lm.control.environment import Environment
from int_lm.control.observations import Encoding, Statistics
from int_lm.control.play import Act, Played, play
from int_lm.control.policy import Policy
from int_lm.method import chunks, placement, population
from int_lm.method.clock import Clock
from int_lm.method.placement import AXIS, Placement
from int_lm.method.recipe import Recipe
from int_lm.model import perturb
from int_lm.model.params import Parameters

# in place of a tensor's number, in the keys of random words
_TRAINING, _HELD_OUT, _RANDOM = (np.uint32(2**32 - number) for number in (2, 3, 4))


def _by_policy(model: Policy, environment: Environment, weights: Parameters) -> Act:
    def act(t: Array, inputs_RN: Array, memory: Any) -> tuple[Any, Array]:
        memory, outputs_RA = model.step(weights, memory, inputs_RN)
        return memory, policy.chosen(environment, outputs_RA)

    return act


def words(clock: Clock, streams_I: Array, episodes: int) -> Array:
    """The random words of the episodes of some streams in a step, uint32 [I, E, 2]."""
    key = noise.tensor_key(clock.seed, clock.step, _TRAINING)
    return noise.uniform(key, streams_I, 2 * episodes).reshape(-1, episodes, 2)


def of_members(
    recipe: Recipe,
    environment: Environment,
    episodes: int,
    max_steps: int,
    pairs_CI: Array,
    weights: Parameters,
    encoding: Encoding,
    clock: Clock,
    *,
    axis: str | None = None,
) -> tuple[Array, Array, Array]:
    """Episodes of the members of some chunks. A device plays its own; then all are gathered.

    Args:
      recipe: its model is a `Policy`.
      environment: where the members act.
      episodes: E.
      max_steps: of an episode.
      pairs_CI: indices of the pairs of this device's chunks, int32.
      weights: int8.
      encoding: of the observations.
      clock: seed and step.
      axis: name of the mesh axis of the devices; None for a single device.

    Returns:
      Returns int32 [P, E] and lengths int32 [P, E] of all members, and the sums of the observations
      of the first episode of the first member of every pair, int32 [C, K].
    """
    model: Any = recipe.model

    def of_chunk(pairs_I: Array, _: None) -> tuple[Played, dict[str, Array]]:
        # rows: pair, episode, member of the pair; so a pair of rows is one of `model.layers`
        noises = population.noise_of(recipe, clock, jnp.repeat(pairs_I, episodes))
        members = population.perturbed(recipe, weights, noises)
        streams_I = pairs_I * 2 // recipe.es.members_per_stream
        words_R2 = jnp.repeat(words(clock, streams_I, episodes).reshape(-1, 2), 2, axis=0)
        number_R = jnp.arange(len(words_R2), dtype=jnp.int32)
        played = play(
            environment,
            _by_policy(model, environment, members),
            model.initial_state(len(words_R2)),
            encoding,
            words_R2,
            number_R % (2 * episodes) == 0,
            max_steps,
        )
        by_member = [
            jnp.swapaxes(x_R.reshape(-1, episodes, 2), 1, 2).reshape(-1, episodes)
            for x_R in (played.returns, played.lengths)
        ]
        return Played(by_member[0], by_member[1], played.sums), {}

    played, _ = chunks.over(of_chunk, pairs_CI, None)
    flat = played.returns.reshape(-1, episodes), played.lengths.reshape(-1, episodes), played.sums
    returns_PE, lengths_PE, sums_CK = map(placement.InOrder(axis).gathered, flat)
    return returns_PE, lengths_PE, sums_CK


Player = Callable[[Parameters, Encoding, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def compiled_members(
    recipe: Recipe,
    environment: Environment,
    episodes: int,
    max_steps: int,
    place: Placement | None = None,
) -> Player:
    """`of_members` of the whole population: (weights, encoding, step) -> NumPy arrays.

    It is compiled once. The whole result is on every device.
    """
    run = functools.partial(of_members, recipe, environment, episodes, max_steps)
    if place is not None:
        everywhere, first = PartitionSpec(), PartitionSpec(AXIS)
        run = jax.shard_map(
            functools.partial(run, axis=AXIS),
            mesh=place.mesh,
            in_specs=(first, everywhere, everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )

    @jax.jit
    def jitted(weights: Parameters, encoding: Encoding, clock: Clock):
        pairs_CI = chunks.pairs(recipe.es, place.devices if place else 1)
        return run(pairs_CI, weights, encoding, clock)

    def played(weights: Parameters, encoding: Encoding, step: int):
        found = jitted(weights, encoding, Clock.at(recipe.settings.run.seed, step))
        returns_PE, lengths_PE, sums_CK = (np.asarray(x) for x in found)
        return returns_PE, lengths_PE, sums_CK

    return played


class Held(NamedTuple):
    """Held-out episodes of a bare policy, or of random actions.

    Attributes:
      returns: in units of 2^-12, int32 [R].
      lengths: numbers of steps, int32 [R].
      seen: statistics of their observations.
    """

    returns: np.ndarray
    lengths: np.ndarray
    seen: Statistics


def held_words(seed: Array, count: int) -> Array:
    """The random words of the held-out episodes, uint32 [R, 2]."""
    key = noise.tensor_key(seed, jnp.uint32(0), _HELD_OUT)
    return noise.uniform(key, jnp.arange(count, dtype=jnp.int32), 2)


def compiled_answers(
    model: Policy, environment: Environment, count: int, max_steps: int
) -> Callable[[Parameters, Encoding, int], Held]:
    """(weights, encoding, seed) -> held-out episodes of the unperturbed policy.

    They begin in other states than those of training, and in the same ones at every evaluation.
    """

    @jax.jit
    def jitted(weights: Parameters, encoding: Encoding, seed: Array) -> Played:
        act = _by_policy(model, environment, perturb.unperturbed(weights))
        memory, everyone = model.initial_state(count), jnp.ones(count, bool)
        words_R2 = held_words(seed, count)
        return play(environment, act, memory, encoding, words_R2, everyone, max_steps)

    def answered(weights: Parameters, encoding: Encoding, seed: int) -> Held:
        return _held(jitted(weights, encoding, jnp.uint32(seed)), environment)

    return answered


def at_random(environment: Environment, count: int, max_steps: int, seed: int) -> Held:
    """The held-out episodes, with actions that are drawn evenly; the floor of every figure.

    They are played twice: the first time says what the mean observation is, from which the second
    time measures distances.
    """

    @jax.jit
    def jitted(encoding: Encoding, seed: Array) -> Played:
        key = noise.tensor_key(seed, jnp.uint32(0), _RANDOM)
        rows = jnp.arange(count, dtype=jnp.int32)

        def act(t: Array, inputs_RN: Array, memory: None) -> tuple[None, Array]:
            at_step = noise.tensor_key(*key, t.astype(jnp.uint32))
            numbers = len(environment.choices) or len(environment.low)
            words_RA = noise.uniform(at_step, rows, numbers)
            return None, _evenly(environment, words_RA)

        everyone, words_R2 = jnp.ones(count, bool), held_words(seed, count)
        return play(environment, act, None, encoding, words_R2, everyone, max_steps)

    found = Statistics.none(environment.observations)
    for _ in range(2):
        held = _held(jitted(found.encoding(), jnp.uint32(seed)), environment)
        found = held.seen
    return held


def _evenly(environment: Environment, words_RA: Array) -> Array:
    """Random words as actions, in the form of `policy.chosen`."""
    high_RA = (words_RA >> 16).astype(jnp.int32)  # 16 random bits
    if environment.choices:
        return (high_RA * jnp.array([environment.choices], jnp.int32)) >> 16
    levels = 2 << border.LEVEL_BITS
    return ((high_RA * (levels + 1)) >> 16) - levels // 2


def _held(played: Played, environment: Environment) -> Held:
    seen = observations.of_sums(np.asarray(played.sums)[None], environment.observations)
    return Held(np.asarray(played.returns), np.asarray(played.lengths), seen)
