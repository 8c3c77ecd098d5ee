"""What a population does in an environment: episodes, under perturbation, and their returns.

Member p plays `control.episodes` episodes in every step; `es.members_per_stream` members, the two of
a pair among them, play the same ones: they begin in the same states and meet the same random words.
Policy, returns and statistics are integers (`border` has the rounding), the environment is not.

Axes: P members, I pairs, E episodes of a member, S streams of members that play the same episodes, R
episodes that are played together, N numbers of an observation, C chunks, K sums of observations.
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
from int_lm.control.policy import Policy
from int_lm.method import chunks, placement, population
from int_lm.method.clock import Clock
from int_lm.method.placement import AXIS, Placement
from int_lm.method.recipe import Recipe
from int_lm.model import perturb
from int_lm.model.params import Parameters

# in place of a tensor's number, in the keys of random words
_TRAINING, _HELD_OUT, _RANDOM = (np.uint32(2**32 - number) for number in (2, 3, 4))

BLOCK = 256  # episodes whose environments are computed at once

# (step, inputs int8 [R, N + 1], state) -> (state, what to do, int32 [R, number of actions])
Act = Callable[[Array, Array, Any], tuple[Any, Array]]


class Played(NamedTuple):
    """Episodes to their ends.

    Attributes:
      returns: sums of rewards in units of 2^-12, int32 [R].
      lengths: numbers of steps, int32 [R].
      sums: of the observations that were counted, int32 [K] (`observations.sums`).
    """

    returns: Array
    lengths: Array
    sums: Array


def by_blocks(function: Callable[..., Any], t: Array, unknown: Array, *trees: Any) -> Any:
    """`function(t, ...)` of every row of the trees, `BLOCK` rows at once.

    A compiler may compute the floats of one row in different ways, by the number of rows that it is
    given: with other instructions at the end of an array, or with a multiplication and an addition
    made one. So the environment sees blocks of one size, in a loop of which the compiler does not
    know how often it runs; the last block is filled up with copies of its first rows.

    Args:
      function: of a single row.
      t: a step, int32 scalar.
      unknown: random words, uint32 [R, 2]; their values do not matter.
      trees: leaves [R, ...].
    """
    rows = len(jax.tree.leaves(trees)[0])
    count = -(-rows // BLOCK)
    number_R = jnp.arange(count * BLOCK, dtype=jnp.int32) % rows
    filled = jax.tree.map(lambda leaf: leaf[number_R], trees) if count * BLOCK > rows else trees
    of_block = jax.vmap(function, in_axes=(None, *(0 for _ in trees)))

    def block(number: Array, of: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * BLOCK, BLOCK), of
        )

    shapes = jax.eval_shape(lambda: of_block(t, *block(jnp.int32(0), filled)))
    empty = jax.tree.map(
        lambda x: jnp.zeros((count * BLOCK, *x.shape[1:]), x.dtype), shapes
    )

    def one(number: Array, found: Any) -> Any:
        results = of_block(t, *block(number, filled))
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, number * BLOCK, 0),
            found,
            results,
        )

    zero = (unknown[0, 0] >> 2).astype(jnp.int32) >> 30
    several = jnp.int32(count) + zero  # `count`, which the compiler does not know
    found = jax.lax.fori_loop(jnp.int32(0), several, one, empty)
    return jax.tree.map(lambda leaf: leaf[:rows], found) if count * BLOCK > rows else found


def play(
    environment: Environment,
    act: Act,
    memory: Any,
    encoding: Encoding,
    words_R2: Array,
    counted_R: Array,
    max_steps: int,
) -> Played:
    """Play some episodes at once, until the last of them has ended.

    Args:
      environment: its functions are applied to every episode by `jax.vmap`.
      act: says what to do.
      memory: state of `act` before the first step.
      encoding: of the observations.
      words_R2: random words of each episode, uint32 [R, 2]: its key in `environment`.
      counted_R: bool, whether the observations of an episode are counted.
      max_steps: episodes end after so many steps.
    """
    rows, nothing = len(words_R2), jnp.int32(0)

    def key_of(words: Array) -> Array:
        return jax.random.wrap_key_data(words, impl="threefry2x32")

    def begin(t: Array, words: Array) -> tuple[Any, Array]:
        state, observation = environment.reset(key_of(words))
        return state, border.observed(observation)

    def advance(t: Array, words: Array, state: Any, chosen: Array) -> tuple[Any, Array, Array, Array]:
        key = jax.random.fold_in(key_of(words), t + 1)
        action = border.acted(environment, chosen)
        state, observation, reward, ended = environment.step(key, state, action)
        return state, border.observed(observation), border.rewarded(reward, max_steps), ended

    state, x_RN = by_blocks(begin, nothing, words_R2, words_R2)

    def unfinished(carry: Any) -> Array:
        t, done_R = carry[0], carry[1]
        return (t < max_steps) & ~jnp.all(done_R)

    def step(carry: Any) -> Any:
        t, done_R, state, x_RN, memory, returns_R, lengths_R, sums_K = carry
        sums_K = sums_K + observations.sums(encoding, x_RN, counted_R & ~done_R)
        memory, chosen = act(t, observations.encoded(encoding, x_RN), memory)
        state, x_RN, worth_R, ended_R = by_blocks(advance, t, words_R2, words_R2, state, chosen)
        returns_R = returns_R + jnp.where(done_R, 0, worth_R)
        lengths_R = lengths_R + (~done_R).astype(jnp.int32)
        return t + 1, done_R | ended_R, state, x_RN, memory, returns_R, lengths_R, sums_K

    zeros_R = jnp.zeros(rows, jnp.int32)
    start = (
        jnp.int32(0),
        jnp.zeros(rows, bool),
        state,
        x_RN,
        memory,
        zeros_R,
        zeros_R,
        observations.no_sums(environment.observations),
    )
    *_, returns_R, lengths_R, sums_K = jax.lax.while_loop(unfinished, step, start)
    return Played(returns_R, lengths_R, sums_K)


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
    returns_PE, lengths_PE, sums_CK = (placement.gathered(x, axis) for x in flat)
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
