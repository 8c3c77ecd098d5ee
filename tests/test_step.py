"""A whole training step equals the oracle's, number for number: every recipe, three steps in turn.

Compared after each of them: scores, votes of every tensor, weights, remainders, context tables with
their counts, the states of all members, and the counts that are shown. Tokens have separators and
padding; the population is read in chunks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest
from presets import STOCHASTIC

from int_lm import limits
from int_lm.config import Config, RunConfig
from int_lm.method import evolve, population
from int_lm.method.clock import Clock
from int_lm.method.population import PopulationResult
from int_lm.method.recipe import Recipe
from int_lm.method.state import State, Tables
from int_lm.method.update import Scalars
from int_lm.model import params
from int_lm.model.params import Parameters

VOCABULARY = 11


def tiny(model: dict[str, Any] | None = None, **es: Any) -> Recipe:
    """A small recipe; keyword arguments are fields of `es`."""
    sizes = {"width": 8, "layers": 2, "ffn_multiple": 2, "direct_bits": 8}
    config = Config(
        model=presets.egg(**sizes | (model or {})),
        es=presets.paper_es(**{"population": 8, "segment_length": 4, "sigma_shift": 2, **es}),
        run=RunConfig(seed=3, steps=100),
    )
    return presets.resolved(config, VOCABULARY)


def tokens_of(recipe: Recipe, step: int) -> np.ndarray:
    """Random tokens of a step, uint16 [S, T+1], a quarter of them separators; one stream begins
    with padding."""
    random, es = np.random.default_rng(step), recipe.es
    tokens = random.integers(0, VOCABULARY, (es.streams, es.segment_length + 1))
    tokens[random.random(tokens.shape) < 0.2] = 0
    tokens[step % es.streams, :2] = 0
    return tokens.astype(np.uint16)


def spread(recipe: Recipe, most: int, extreme: bool) -> State:
    """A state in the middle of a run: weights up to `most` and some at 127, or all at +-127, tables
    and members' states too; counts and remainders at random."""
    random = np.random.default_rng(1)

    def values(leaf: jax.Array) -> jax.Array:
        drawn = random.integers(-most, most + 1, leaf.shape)
        drawn = np.where(random.random(leaf.shape) < 0.03, 127, drawn)
        ends = random.choice([-127, 127], leaf.shape)
        return jnp.asarray((ends if extreme else drawn).astype(np.int8))

    def beginning(name: str, leaf: jax.Array) -> jax.Array:
        if name == "context":  # as reading leaves it: nothing before a separator
            before = random.integers(1, VOCABULARY, leaf.shape) * (random.random(leaf.shape) < 0.8)
            return jnp.asarray(np.minimum.accumulate(before > 0) * before, jnp.int32)
        if name == "held":
            return jnp.asarray(random.integers(0, 2, leaf.shape), jnp.int32)
        return values(leaf)

    state = evolve.initial(recipe)
    ends = {"means": [-104, -1, 0, 60, 104], "squares": [0, 1, 90, 176]}
    rest = [-2048, -1, 0, 2047] if extreme else list(range(-2048, 2048))
    counts = [0, 1, 2, 30, 4095, 4096, 2**20, 2**31 - 1]
    return dataclasses.replace(
        state,
        network=params.map_leaves(values, state.network),
        tables=Tables(
            values={name: values(leaf) for name, leaf in state.tables.values.items()},
            counts={
                name: jnp.asarray(random.choice(counts, leaf.shape).astype(np.int32))
                for name, leaf in state.tables.counts.items()
            },
            trust=state.tables.trust,
        ),
        members={name: beginning(name, leaf) for name, leaf in state.members.items()},
        memory={
            name: {
                path: jnp.asarray(random.choice(ends.get(name, rest), leaf.shape), leaf.dtype)
                for path, leaf in leaves.items()
            }
            for name, leaves in state.memory.items()
        },
    )


def plain(state: State) -> oracle.State:
    """A state as the oracle's."""
    weights = oracle.plain(state.weights.by_path())
    members = [
        {
            name: leaf[:, p].tolist()
            for name, leaf in jax.tree.map(np.asarray, state.members).items()
        }
        for p in range(next(iter(state.members.values())).shape[1])
    ]
    counts = {f"direct/{name}": leaf.tolist() for name, leaf in state.tables.counts.items()}
    memory = {name: oracle.plain(leaves) for name, leaves in state.memory.items()}
    trust = [] if state.tables.trust is None else state.tables.trust.tolist()
    return oracle.State(weights, memory, counts, members, trust)


def of_plain(like: State, state: oracle.State) -> State:
    """The weights, counts and trust of an oracle's state as the library's."""
    weights = Parameters.of_paths(
        {path: jnp.asarray(np.array(leaf, np.int8)) for path, leaf in state.weights.items()}
    )
    return dataclasses.replace(
        like,
        network=weights.network,
        tables=Tables(
            weights.tables,
            {name[len("direct/") :]: jnp.asarray(leaf) for name, leaf in state.counts.items()},
            jnp.asarray(state.trust),
        ),
    )


@functools.cache  # tests of one recipe share it
def step_with_votes(recipe: Recipe) -> Callable[..., Any]:
    """`evolve.step`, compiled, which returns the votes besides."""
    kept: list[dict[str, jax.Array]] = []
    original = population.result

    def result_with_votes(*arguments: Any, **options: Any) -> PopulationResult:
        result = original(*arguments, **options)
        kept.append(result.votes)
        return result

    @jax.jit
    def compiled(state: State, tokens_ST: jax.Array, clock: Clock, values: Scalars):
        with mock.patch.object(population, "result", result_with_votes):
            return *evolve.step(recipe, state, tokens_ST, clock, values), kept.pop()

    def step(state: State, tokens_ST: np.ndarray, step: int):
        clock = Clock(jnp.uint32(recipe.settings.run.seed), jnp.uint32(step))
        return compiled(state, tokens_ST, clock, evolve.values(recipe, step))

    return step


def assert_steps_equal(recipe: Recipe, state: State, steps: int = 3) -> oracle.State:
    """Some steps of the library and of the oracle from the same state, all numbers compared."""
    step_of, expected = step_with_votes(recipe), plain(state)
    for step in range(steps):
        tokens, before = tokens_of(recipe, step), expected
        state, metrics, votes = step_of(state, tokens, step)
        expected, result = oracle.step(recipe.settings, VOCABULARY, expected, tokens.tolist(), step)
        assert metrics.scores_P.tolist() == result.scores
        assert set(votes) == set(result.votes)
        for path, sums in votes.items():
            np.testing.assert_array_equal(sums, result.votes[path], path)
        found = plain(state)
        for path, weight in expected.weights.items():
            np.testing.assert_array_equal(found.weights[path], weight, path)
        assert found == expected
        network = [path for path in expected.weights if not path.startswith("direct/")]
        old, new = (
            np.concatenate([np.ravel(s.weights[path]) for path in network])
            for s in (before, expected)
        )
        assert int(metrics.changed) == np.sum(old != new) > 0
        assert int(metrics.saturated) == np.sum(np.abs(new) == 127)
    return expected


# -- Plain votes: the paper's recipe and its updates -----------------------------------------------


@pytest.mark.parametrize(
    "es",
    [
        {},
        {"rank": 3, "noise": "gaussian", "fitness": "linear", "alpha": 0.3, "chunk": 4},
        pytest.param(
            {
                "noise": "gaussian",
                "alpha": 2.0,
                "alpha_halflife": 1.0,
                "schedule": "cosine",
                "chunk": 2,
            },
            marks=pytest.mark.slow,
        ),
        {"update": "carry", "learning_rate": 1.3, "learning_rate_halflife": 2.0}
        | {"fitness": "linear", "rank": 2},
        {"update": STOCHASTIC, "learning_rate": 4.0, "schedule": "linear", "chunk": 4},
    ],
    ids=["defaults", "gaussian rank 3 linear", "gaussian", "carry rank 2 linear", "stochastic"],
)
def test_step_of_plain_votes_equals_the_oracle(es: dict):
    """From the initial weights, some of them at 127."""
    recipe = tiny(**es)
    state, random = evolve.initial(recipe), np.random.default_rng(0)
    network = params.map_leaves(
        lambda leaf: jnp.where(random.random(leaf.shape) < 0.03, jnp.int8(127), leaf), state.network
    )
    assert_steps_equal(recipe, dataclasses.replace(state, network=network))


# -- The recipe of users: unit and exact votes, carried, with context tables -----------------------

UNIT = {"votes": "unit", "readout": "exact", "update": "carry", "chunk": 4}
RANK_2 = {"rank": 2, "noise": "gaussian", "members_per_stream": 4} | {
    "learning_rate": 4.0,
    "direct_rate": 127.0,
}
RWKV: dict[str, Any] = {"architecture": "rwkv", "direct": (1, 3)}
EGG: dict[str, Any] = {"architecture": "egg", "direct": (2,)}


@pytest.mark.parametrize("model", [RWKV, EGG], ids=["rwkv", "egg"])
@pytest.mark.parametrize("es", [{"learning_rate": 1.3, "chunk": 2}, RANK_2], ids=["1", "rank 2"])
def test_step_of_unit_votes_equals_the_oracle(model: dict, es: dict):
    """With one pair on a stream and rademacher noise, and with two pairs and gaussian noise."""
    recipe = tiny(model, **UNIT | es)
    assert_steps_equal(recipe, spread(recipe, 30, False))


def test_step_of_the_adaptive_update_equals_the_oracle():
    """Moments at their ends and in between, votes of rare and of frequent tokens."""
    recipe = tiny(RWKV, **UNIT | {"update": "adaptive", "learning_rate": 4.0, "beta1": 0.7})
    assert_steps_equal(recipe, spread(recipe, 30, False))


@pytest.mark.parametrize(
    "model, es",
    [
        (RWKV, {"members_per_stream": 1, "learning_rate": 1.3, "chunk": 2}),
        (RWKV, {"members_per_stream": 1, "update": "adaptive"}),
        (EGG, {"rank": 2, "noise": "gaussian", "update": STOCHASTIC}),
    ],
    ids=["rwkv", "adaptive", "egg"],
)
def test_step_of_local_votes_equals_the_oracle(model: dict, es: dict):
    """Every member votes where none is perturbed; `egg` has vectors, of which pairs move."""
    recipe = tiny(model, **UNIT | {"votes": "local"} | es)
    assert_steps_equal(recipe, spread(recipe, 30, False))


DEEP = UNIT | {"votes": "deep", "members_per_stream": 1}


@pytest.mark.parametrize(
    "es",
    [
        {"update": "adaptive", "schedule": "constant", "decay": 0.1, "chunk": 2},
        pytest.param({"learning_rate": 1.3}, marks=pytest.mark.slow),  # in the next test, at ends
    ],
    ids=["adaptive with decay", "carry"],
)
def test_step_of_deep_votes_equals_the_oracle(es: dict):
    """Documents that end within a segment, padding, and every layer's credit of the next token."""
    recipe = tiny(RWKV, **DEEP | es)
    assert_steps_equal(recipe, spread(recipe, 30, False))


@pytest.mark.parametrize(
    "model, es",
    [
        (RWKV, RANK_2),
        (EGG, RANK_2),
        (RWKV, DEEP | {"direct_rate": 127.0}),
        (RWKV, {"votes": "local", "members_per_stream": 1, "direct_rate": 127.0}),
        (EGG, RANK_2 | {"votes": "local"}),
    ],
    ids=["rwkv", "egg", "rwkv deep", "rwkv local", "egg local"],
)
def test_step_at_the_ends_of_all_ranges_equals_the_oracle(model: dict, es: dict):
    """All weights, tables and states at +-127, remainders and counts at their ends."""
    recipe = tiny(model, **UNIT | es)
    after = assert_steps_equal(recipe, spread(recipe, 127, True))
    assert all(abs(weight) <= 127 for leaf in after.weights.values() for weight in np.ravel(leaf))


@pytest.mark.parametrize(
    "model, es",
    [
        (RWKV, DEEP | {"update": "adaptive", "chunk": 2}),
        pytest.param(EGG, RANK_2, marks=pytest.mark.slow),
    ],
    ids=["rwkv deep", "egg"],
)
@pytest.mark.parametrize("extreme", [False, True], ids=["between", "at the ends"])
def test_step_of_a_pool_equals_the_oracle(model: dict, es: dict, extreme: bool):
    """Tokens that are held back teach trust alone; network and tables learn from others, apart."""
    recipe = tiny(model, **UNIT | es | {"pooled": True, "segment_length": 12})
    state = spread(recipe, 127 if extreme else 30, extreme)
    after = assert_steps_equal(recipe, state)
    assert state.tables.trust is not None and after.trust[0] != int(state.tables.trust[0])
    settled = oracle.settled(recipe.settings.model, after.weights, after.counts, after.trust)
    assert settled["head"] != after.weights["head"]
    final = of_plain(state, after)
    found = oracle.plain(evolve.weights(recipe, final).by_path())
    assert found == settled


@pytest.mark.parametrize(
    "model, es",
    [
        (EGG, {"votes": "trace", "readout": "exact", "update": STOCHASTIC, "chunk": 4}),
        (EGG | {"direct": ()}, {"votes": "trace", "alpha": 0.3, "chunk": 4}),
        (RWKV, {"votes": "trace", "readout": "exact", "update": "threshold", **RANK_2}),
        (RWKV | {"direct": ()}, {"votes": "trace", "update": "carry", "chunk": 2}),
        (RWKV, {"readout": "exact", "update": "carry", "chunk": 4}),
    ],
    ids=["egg trace exact", "egg trace", "rwkv trace exact", "rwkv trace", "rwkv plain exact"],
)
def test_step_of_other_recipes_equals_the_oracle(model: dict, es: dict):
    """Trace votes with every update, and plain votes beside an exact readout."""
    recipe = tiny(model, **es)
    assert_steps_equal(recipe, spread(recipe, 30, False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "es", [{"population": 1024}, {"population": 512, "votes": "local", "members_per_stream": 1}]
)
def test_step_of_a_large_population_equals_the_oracle(es: dict):
    """So many voters and tokens that votes' operands are narrower than int8, by one bit."""
    model = RWKV | {"width": 4, "layers": 1, "ffn_multiple": 1, "direct": (1,)}
    recipe = tiny(model, **UNIT | {"segment_length": 261, "chunk": 512} | es)
    assert limits.spare_bits(recipe.es) == oracle.spare_bits(recipe.es) == 1
    assert_steps_equal(recipe, spread(recipe, 30, False), steps=1)
