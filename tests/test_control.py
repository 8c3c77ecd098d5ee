"""A step of control: what members do in episodes, statistics, votes; integers, and the oracle's.

The environment of most tests has numbers that floats hold exactly (plugins/chase.py), so whole
episodes are compared number for number. What a user sees of it is in test_control_command.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest
from oracle import policy as expected, tuning as fitnesses
from plugins.chase import CHASE
from test_evolve import inexact

from int_lm import config as configuration
from int_lm.config import Config, ControlConfig, DistributedConfig, RunConfig
from int_lm.control import border, episodes, observations, policy
from int_lm.control.__main__ import recipe_of
from int_lm.control.acrobot import ACROBOT
from int_lm.control.cart_pole import CART_POLE
from int_lm.control.environment import Environment
from int_lm.control.observations import COUNT_MAX, Statistics
from int_lm.control.pendulum import PENDULUM
from int_lm.errors import UserError
from int_lm.method import chunks, evolve, placement, rewards, tuning
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, params
from int_lm.model.params import Parameters

SEEN = Statistics(100, (-3_000_000, 17_000_000), (2_500_000, 9_000_000))
EXTREMES = [0, 1, -1, 15, -16, 2**16, -(2**16), border.OBSERVATION_MAX, -border.OBSERVATION_MAX]


def tiny(
    environment: Environment = CHASE, architecture: str = "rwkv", control: Any = None, **es: Any
) -> Recipe:
    """A small recipe; keyword arguments are fields of `es`."""
    sizes = {"architecture": architecture, "width": 8, "layers": 1, "ffn_multiple": 2}
    fields = {"population": 8, "members_per_stream": 4, "sigma_shift": 1, "fitness": "rank"}
    fields |= {"update": "carry", "learning_rate": 2.0, "schedule": "constant"} | es
    settings = Config(
        model=presets.egg(**sizes),
        es=presets.paper_es(objective="reward", **fields),
        run=RunConfig(seed=3, steps=100),
        control=ControlConfig(env="none", **({"episodes": 3} | (control or {}))),
    )
    return recipe_of(configuration.validate(settings), environment)


def random_weights(recipe: Recipe, most: int = 127) -> Parameters:
    """Weights of any size, those at the limits among them."""
    random = np.random.default_rng(5)

    def drawn(spec: params.Spec) -> np.ndarray:
        entries = random.integers(-most, most + 1, spec.full_shape)
        return np.where(random.random(spec.full_shape) < 0.1, np.sign(entries) * most, entries)

    specs = recipe.model.specs.by_path()
    leaves = {path: jnp.asarray(drawn(spec), jnp.int8) for path, spec in specs.items()}
    return Parameters.of_paths(leaves)


# -- Observations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0, 16, 4095, 4096, 65536, 2**28 + 1, 2**31 - 128])
def test_encoded_observations_equal_the_oracle(deviation: int) -> None:
    """Number for number, up to the extremes of int32; near the exact quotient, and never -128."""
    random = np.random.default_rng(deviation)
    means = [0, border.OBSERVATION_MAX, -border.OBSERVATION_MAX, 12345]
    for mean in means:
        far = 9 * max(deviation, 16)
        near = [mean + int(difference) for difference in random.integers(-far, far, 40)]
        numbers = [x for x in [*EXTREMES, *near] if abs(x) <= border.OBSERVATION_MAX]
        encoding = Statistics(1, (mean,), (deviation,)).encoding()
        found = jax.jit(observations.encoded)(encoding, jnp.array(numbers, jnp.int32)[:, None])
        assert found.dtype == jnp.int8 and found[:, 1].tolist() == [16] * len(numbers)
        assert found[:, 0].tolist() == [expected.encoded(mean, deviation, x) for x in numbers]
        for x, z in zip(numbers, found[:, 0].tolist(), strict=True):
            exact = 16 * (x - mean) / max(deviation, 16)
            assert abs(z - min(max(exact, -127), 127)) < 1


def test_sums_of_observations_are_exact() -> None:
    """Of the largest numbers there are, in several parts; those not counted are not in them."""
    random = np.random.default_rng(0)
    most = border.OBSERVATION_MAX
    x = random.integers(-most, most + 1, (2, 500, 3))
    x[0, :200], x[1, :200, 0] = most, -most
    counted = random.random((2, 500)) < 0.8
    means = [-most, 5, most]
    encoding = Statistics(1, tuple(means), (16,) * 3).encoding()
    sums = jax.jit(observations.sums)
    parts = [
        np.asarray(sums(encoding, jnp.asarray(part, jnp.int32), jnp.asarray(own)))
        for part, own in zip(x, counted, strict=True)
    ]
    found = observations.of_sums(parts, 3)
    whole = [[int(v) for v in row] for row in x[counted]]
    assert found.count == len(whole)
    assert found.totals == tuple(sum(column) for column in zip(*whole, strict=True))
    assert found.distances == tuple(
        sum(abs(v - mean) for v in column)
        for mean, column in zip(means, zip(*whole, strict=True), strict=True)
    )
    for part, own in zip(parts, counted, strict=True):
        assert np.abs(part.astype(np.int64)).max() <= observations.sums_bound(int(own.sum()))


def test_statistics_fade_and_are_kept() -> None:
    many = Statistics(COUNT_MAX, (7, -7), (8, 9))
    both = many.added(Statistics(2, (1, -2), (3, 4)))
    assert both == Statistics(COUNT_MAX // 2 + 1, (4, -5), (5, 6))
    assert many.added(Statistics.none(2)) == many
    assert Statistics.of_json(both.to_json()) == both
    assert SEEN.means == [-30000, 170000] and SEEN.deviations == [25000, 90000]
    whole = both.to_json()
    for wrong in (
        None,
        {},
        whole | {"count": -1},
        whole | {"totals": ["1"]},
        whole | {"totals": 1},
    ):
        assert Statistics.of_json(wrong) is None


def test_floats_become_integers_at_the_border() -> None:
    """Halves to even; too large numbers and what is no number have a place; no sum overflows."""
    numbers = [1.5 / 65536, 2.5 / 65536, -0.25, 1e30, -jnp.inf, jnp.nan, 20000.0]
    given = jnp.array(numbers, jnp.float32)
    most = border.OBSERVATION_MAX
    assert border.observed(given).tolist() == [2, 2, -16384, most, -most, 0, most]
    worth = border.rewarded(jnp.array([0.5, -1e30, jnp.inf, jnp.nan], jnp.float32), 1000)
    assert worth.tolist() == [2048, -2147483, 2147483, 0]
    assert all(border.reward_max(steps) * steps < 2**31 for steps in (1, 3, 200, 10**6))
    levels = jnp.array([[-64], [0], [64]], jnp.int32)
    assert [border.acted(PENDULUM, level).tolist() for level in levels] == [[-2.0], [0.0], [2.0]]


# -- The policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["rwkv", "egg"])
@pytest.mark.parametrize("most", [40, 127])
def test_steps_of_members_equal_the_oracle(architecture: str, most: int) -> None:
    """Three steps of all members, with inputs and weights at the extremes of int8."""
    recipe = tiny(architecture=architecture, rank=2)
    config, model = recipe.settings, recipe.model
    weights, sizes = random_weights(recipe, most), (2, 3)
    noises = evolve.population.noise_of(recipe, Clock.at(3, 4), jnp.arange(4, dtype=jnp.int32))
    members = evolve.population.perturbed(recipe, weights, noises)
    inputs = np.random.default_rng(1).integers(-127, 128, (3, 8, 3))
    inputs[0], inputs[1, :4] = 127, -127
    plain, state, run = oracle.plain(weights.by_path()), model.initial_state(8), jax.jit(model.step)  # type: ignore[attr-defined]
    states = [expected.start(config) for _ in range(8)]  # type: ignore[arg-type]
    trees = [expected.member(config, sizes, plain, 4, p) for p in range(8)]  # type: ignore[arg-type]
    for x in inputs:
        state, outputs = run(members, state, jnp.asarray(x, jnp.int8))
        for p in range(8):
            states[p], own = expected.policy_step(config, trees[p], states[p], x[p].tolist())  # type: ignore[arg-type]
            assert outputs[p].tolist() == own


def test_outputs_become_actions() -> None:
    several = CHASE._replace(choices=(2, 3))
    outputs = jnp.array([[1, 1, -5, 7, 7], [-3, 2, 0, -1, 4]], jnp.int16)
    assert policy.chosen(several, outputs).tolist() == [[0, 1], [1, 2]]
    levels = policy.chosen(PENDULUM, jnp.array([[300], [-65], [5]], jnp.int16))
    assert levels.tolist() == [[64], [-64], [5]]


# -- Episodes --------------------------------------------------------------------------------------


def played_by_oracle(recipe: Recipe, weights: Any, seen: Statistics, step: int) -> Any:
    """Returns and lengths [P][E] of all members, and what the statistics count."""
    config: Any = recipe.settings
    counted, returns, lengths = [], [], []
    for p in range(config.es.population):
        tree = expected.member(config, (2, 3), weights, step, p)
        stream = p // config.es.members_per_stream
        returns.append([])
        lengths.append([])
        for e, words in enumerate(expected.words(config, step, stream, config.control.episodes)):
            key = jax.random.wrap_key_data(jnp.array(words, jnp.uint32), impl="threefry2x32")
            target, at, worth = int(CHASE.reset(key)[0][1]), 0, 0
            memory, t, done = expected.start(config), 0, False
            while t < CHASE.max_steps and not done:
                numbers = [(target - at) * 2**14, t * 2**16]
                if e == 0 and p % 2 == 0:
                    counted.append(numbers)
                inputs = [
                    expected.encoded(*parts)
                    for parts in zip(seen.means, seen.deviations, numbers, strict=True)
                ]
                memory, outputs = expected.policy_step(config, tree, memory, [*inputs, 16])
                at += outputs.index(max(outputs)) - 1
                target = -target if t == 2 else target
                worth += 2**12 - abs(target - at) * 2**10
                t, done = t + 1, abs(target - at) > 3
            returns[-1].append(worth)
            lengths[-1].append(t)
    return returns, lengths, counted


@pytest.mark.parametrize(
    ("architecture", "es"),
    [("rwkv", {"chunk": 4}), ("egg", {"rank": 2, "members_per_stream": 2, "fitness": "standard"})],
)
def test_a_step_equals_the_oracle(architecture: str, es: dict[str, Any]) -> None:
    """Returns and lengths of all episodes, statistics, fitness and votes."""
    recipe = tiny(architecture=architecture, **es)
    weights, config = random_weights(recipe, 60), recipe.settings
    play = episodes.compiled_members(recipe, CHASE, 3, CHASE.max_steps)
    returns_PE, lengths_PE, sums_CK = play(weights, SEEN.encoding(), 7)
    plain = oracle.plain(weights.by_path())
    returns, lengths, counted = played_by_oracle(recipe, plain, SEEN, 7)
    assert returns_PE.tolist() == returns
    assert lengths_PE.tolist() == lengths
    assert len({length for row in lengths for length in row}) > 1, "some end early"
    found = observations.of_sums(sums_CK, 2)
    columns = list(zip(*counted, strict=True))
    assert found.count == len(counted)
    assert found.totals == tuple(map(sum, columns))
    assert found.distances == tuple(
        sum(abs(x - mean) for x in column) for mean, column in zip(SEEN.means, columns, strict=True)
    )
    scores = [sum(row) for row in returns]
    fitness_I = rewards.fitness(recipe.es.fitness, scores, 8)
    assert fitness_I.tolist() == fitnesses.fitness(recipe.es.fitness, scores, 8)
    assert fitness_I.any()
    votes = tuning.votes(recipe, chunks.pairs(recipe.es), jnp.asarray(fitness_I), Clock.at(3, 7))
    own = expected.votes(config, (2, 3), fitness_I.tolist(), 7)  # type: ignore[arg-type]
    assert votes.keys() == own.keys()
    for path, sums in votes.items():
        np.testing.assert_array_equal(sums, own[path])


def test_no_two_streams_play_the_same_episodes() -> None:
    """Nor are held-out episodes among those of training."""
    clock = Clock.at(3, 0)
    words = np.asarray(episodes.words(clock, jnp.arange(8, dtype=jnp.int32), 2)).reshape(-1, 2)
    assert len({tuple(row) for row in words.tolist()}) == 16
    held = np.asarray(episodes.held_words(jnp.uint32(3), 16))
    assert not {tuple(row) for row in held.tolist()} & {tuple(row) for row in words.tolist()}


def test_random_actions_are_even() -> None:
    """Of all values and levels; the mean observation is known where distances are measured."""
    several = CHASE._replace(choices=(2, 5))
    words = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, (4000, 2)), jnp.uint32)
    chosen = np.asarray(episodes._evenly(several, words))
    assert np.bincount(chosen[:, 0], minlength=2).min() > 1900
    assert np.bincount(chosen[:, 1], minlength=5).min() > 700 and chosen.max() == 4
    levels = np.asarray(episodes._evenly(PENDULUM, words[:, :1]))
    assert (levels.min(), levels.max()) == (-64, 64) and abs(levels.mean()) < 2
    held = episodes.at_random(CHASE, 50, CHASE.max_steps, 1)
    again = episodes.at_random(CHASE, 50, CHASE.max_steps, 1)
    assert held.seen == again.seen and held.returns.tolist() == again.returns.tolist()
    mean, deviation = held.seen.means[1] / 2**16, held.seen.deviations[1] / 2**16
    assert 1 < mean < 2.6 and 1 < deviation < 2  # of the time, from 0 to 5


# -- Integers alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["rwkv", "egg"])
@pytest.mark.parametrize("environment", [CHASE, PENDULUM])
def test_policy_votes_and_update_are_integers(architecture: str, environment: Environment) -> None:
    recipe = tiny(environment, architecture)
    state, size = evolve.initial(recipe), environment.observations
    encoding = Statistics.none(size).encoding()

    def looked(weights: Parameters, memory: Any, x_RN: jax.Array, counted_R: jax.Array) -> Any:
        noises = evolve.population.noise_of(recipe, Clock.at(3, 0), jnp.arange(4, dtype=jnp.int32))
        members = evolve.population.perturbed(recipe, weights, noises)
        sums = observations.sums(encoding, x_RN, counted_R)
        inputs = observations.encoded(encoding, x_RN)
        memory, outputs = recipe.model.step(members, memory, inputs)  # type: ignore[misc]
        return sums, memory, policy.chosen(environment, outputs)

    x_RN = jnp.zeros((8, size), jnp.int32)
    memory = recipe.model.initial_state(8)
    found = jax.make_jaxpr(looked)(state.weights, memory, x_RN, jnp.ones(8, bool))
    assert inexact(found.jaxpr) == []

    def learnt(scores_P: jax.Array, fitness_I: jax.Array) -> Any:
        clock, values = Clock.at(3, 0), evolve.values(recipe, 0)

        def vote(pairs: jax.Array, fitness: jax.Array, clock: Clock) -> Any:
            return tuning.votes(recipe, pairs, fitness, clock)

        return tuning.learn(recipe, vote, None, state, scores_P, fitness_I, clock, values)

    found = jax.make_jaxpr(learnt)(jnp.zeros(8, jnp.int32), jnp.zeros(4, jnp.int8))
    assert inexact(found.jaxpr) == []


# -- The same bits ---------------------------------------------------------------------------------


def trained(recipe: Recipe, environment: Environment, devices: int) -> tuple[str, Statistics, list]:
    """Hash, statistics and returns after three steps on so many devices."""
    place = None
    if devices > 1:
        distributed = DistributedConfig(devices=devices, update="replicated")
        place = placement.choose(distributed, recipe.es, 1)
    state = evolve.placed(recipe, evolve.initial(recipe), place)
    count = recipe.settings.control.episodes  # type: ignore[attr-defined]
    play = episodes.compiled_members(recipe, environment, count, environment.max_steps, place)
    learn = tuning.compiled_learner(recipe, place)
    seen, returns = episodes.at_random(environment, 8, environment.max_steps, 3).seen, []
    for step in range(3):
        returns_PE, _, sums_CK = play(state.weights, seen.encoding(), step)
        scores_P = returns_PE.astype(np.int64).sum(axis=1)
        fitness_I = rewards.fitness("rank", scores_P.tolist(), len(scores_P))
        state, _ = learn(state, scores_P, fitness_I, step)
        seen = seen.added(observations.of_sums(sums_CK, environment.observations))
        returns.append(returns_PE.tolist())
    return hashing.weights_hash(placement.on_host(state).weights), seen, returns


# As users have it, where there are floats: LLVM without optimisation computes them in several ways.
OF_FLOATS = [pytest.mark.slow, pytest.mark.optimised]
APART = ((2, 0), (4, 0), (1, 4))  # devices, chunk


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        (CHASE, ((2, 4),)),
        *(pytest.param(one, APART, marks=OF_FLOATS) for one in (CART_POLE, PENDULUM, ACROBOT)),
    ],
)
@pytest.mark.slow
def test_devices_and_chunks_change_no_bit(
    environment: Environment, parts: Sequence[tuple[int, int]]
) -> None:
    """On 1, 2 and 4 devices of this machine, and in chunks."""
    es = {"population": 16, "members_per_stream": 2}
    recipe = tiny(environment, **es)
    whole = trained(recipe, environment, 1)  # what differs is told by the first that does
    assert whole[0] != hashing.weights_hash(evolve.initial(recipe).weights)
    assert len({str(returns) for returns in whole[2]}) == 3
    for devices, chunk in parts:
        assert trained(tiny(environment, chunk=chunk, **es), environment, devices) == whole


def test_more_observations_than_int32_can_sum_are_refused() -> None:
    with pytest.raises(UserError, match="the sums of 17179868 observations can reach"):
        tiny(CHASE._replace(max_steps=17179869 // 4), control={"heldout_episodes": 4})
    with pytest.raises(UserError, match="model.direct has context tables"):
        recipe = tiny()
        model = dataclasses.replace(recipe.settings.model, direct=(1,))  # type: ignore[type-var]
        recipe_of(dataclasses.replace(recipe.settings, model=model), CHASE)  # type: ignore[type-var]
