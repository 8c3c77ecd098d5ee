"""A whole training step equals the oracle's, number for number: every recipe, three steps in turn.

Compared after each of them: scores, votes of every tensor, weights, remainders, context tables with
their counts, the states of all members, and the counts that are shown. Tokens have separators and
padding; the population is read in chunks.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import config as configuration
from int_lm.config import Config, EsConfig, ModelConfig, RunConfig
from int_lm.method import bounds, evolve, voting
from int_lm.model import params

VOCABULARY = 11


@pytest.fixture(autouse=True)
def quick_compiler() -> Iterator[None]:
    """Compilation without most optimisations: it takes longer than all that is computed here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny(model: dict[str, Any] | None = None, **es: Any) -> Config:
    """A small configuration; keyword arguments are fields of `es`."""
    sizes = {"width": 8, "layers": 2, "ffn_multiple": 2, "direct_bits": 8}
    fields = {"population": 8, "segment_length": 4, "sigma_shift": 2, **es}
    return configuration.validate(
        Config(
            model=ModelConfig(**sizes | (model or {})),
            es=EsConfig(**fields),
            run=RunConfig(seed=3, steps=100),
        )
    )


def tokens_of(config: Config, number: int) -> np.ndarray:
    """Random tokens of a step, uint16 [S, T+1], a quarter of them separators; one stream begins
    with padding."""
    random, es = np.random.default_rng(number), config.es
    tokens = random.integers(0, VOCABULARY, (es.streams, es.segment_length + 1))
    tokens[random.random(tokens.shape) < 0.2] = 0
    tokens[number % es.streams, :2] = 0
    return tokens.astype(np.uint16)


def spread(config: Config, most: int, extreme: bool) -> evolve.State:
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
        return values(leaf)

    state = evolve.initial(config, VOCABULARY)
    rest = [-2048, -1, 0, 2047] if extreme else list(range(-2048, 2048))
    counts = [0, 1, 2, 30, 4095, 4096, 2**20, 2**31 - 1]
    return dataclasses.replace(
        state,
        weights=params.map_leaves(values, state.weights),
        members={name: beginning(name, leaf) for name, leaf in state.members.items()},
        remainders={
            path: jnp.asarray(random.choice(rest, leaf.shape).astype(np.int16))
            for path, leaf in state.remainders.items()
        },
        counts={
            name: jnp.asarray(random.choice(counts, leaf.shape).astype(np.int32))
            for name, leaf in state.counts.items()
        },
    )


def plain(state: evolve.State) -> oracle.State:
    """A state as the oracle's."""
    weights = oracle.plain(state.weights)
    members = [
        {
            name: leaf[:, p].tolist()
            for name, leaf in jax.tree.map(np.asarray, state.members).items()
        }
        for p in range(next(iter(state.members.values())).shape[1])
    ]
    counts = {f"direct/{name}": leaf.tolist() for name, leaf in state.counts.items()}
    return oracle.State(weights, oracle.plain(state.remainders), counts, members)


def step_with_votes(config: Config, monkeypatch: pytest.MonkeyPatch):
    """`evolve.step`, compiled, which returns the votes besides."""
    kept: list[dict[str, jax.Array]] = []

    def vote(*arguments: Any) -> voting.Verdict:
        verdict = original(*arguments)
        kept.append(verdict.ballots)
        return verdict

    original = voting.vote
    monkeypatch.setattr(voting, "vote", vote)

    @jax.jit
    def step(state: evolve.State, tokens_ST: jax.Array, number: jax.Array, pace: evolve.Pace):
        seed = jnp.uint32(config.run.seed)
        after = evolve.step(config, VOCABULARY, state, tokens_ST, seed, number, pace)
        return *after, kept.pop()

    return lambda state, tokens, number: step(
        state, tokens, np.uint32(number), evolve.pace(config, number)
    )


def assert_steps_equal(
    config: Config, state: evolve.State, monkeypatch: pytest.MonkeyPatch, steps: int = 3
) -> oracle.State:
    """Some steps of the library and of the oracle from the same state, all numbers compared."""
    step, expected = step_with_votes(config, monkeypatch), plain(state)
    for number in range(steps):
        tokens, before = tokens_of(config, number), expected
        state, metrics, ballots = step(state, tokens, number)
        expected, verdict = oracle.step(config, VOCABULARY, expected, tokens.tolist(), number)
        assert metrics.scores_P.tolist() == verdict.scores
        assert set(ballots) == set(verdict.ballots)
        for path, ballot in ballots.items():
            np.testing.assert_array_equal(ballot, verdict.ballots[path], path)
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
        {"rank": 3, "fitness": "linear", "alpha": 2.0, "alpha_halflife": 1.0, "noise_reuse": 2},
        {"noise": "gaussian", "noise_reuse": 2, "alpha": 0.05, "chunk": 2},
        {"schedule": "cosine", "alpha": 0.8},
        {"update": "carry", "learning_rate": 1.3, "learning_rate_halflife": 2.0},
        {"update": "carry", "learning_rate": 1.5, "vote_clip": 1.5, "fitness": "linear", "rank": 2},
        {"update": "stochastic", "schedule": "linear"},
        {"update": "stochastic", "vote_clip": 2.0, "learning_rate": 4.0, "chunk": 4},
    ],
    ids=lambda es: "-".join(f"{key}={value}" for key, value in es.items()) or "defaults",
)
def test_step_of_plain_votes_equals_the_oracle(es: dict, monkeypatch: pytest.MonkeyPatch):
    """From the initial weights, some of them at 127."""
    config = tiny(**es)
    state, random = evolve.initial(config, VOCABULARY), np.random.default_rng(0)
    weights = params.map_leaves(
        lambda leaf: jnp.where(random.random(leaf.shape) < 0.03, jnp.int8(127), leaf), state.weights
    )
    assert_steps_equal(config, dataclasses.replace(state, weights=weights), monkeypatch)


# -- The recipe of users: unit and exact votes, carried, with context tables -----------------------

UNIT = {"votes": "unit", "readout": "exact", "update": "carry", "chunk": 4}
RANK_2 = {"rank": 2, "noise": "gaussian", "members_per_stream": 4, "vote_clip": 1.5}
RWKV: dict[str, Any] = {"architecture": "rwkv", "direct": (1, 3)}
EGG: dict[str, Any] = {"architecture": "egg", "direct": (2,)}


@pytest.mark.parametrize("model", [RWKV, EGG], ids=["rwkv", "egg"])
@pytest.mark.parametrize("es", [{}, RANK_2], ids=["rank 1", "rank 2"])
def test_step_of_unit_votes_equals_the_oracle(
    model: dict, es: dict, monkeypatch: pytest.MonkeyPatch
):
    """With one pair on a stream and rademacher noise, and with two pairs and gaussian noise."""
    config = tiny(model, **UNIT, learning_rate=1.3, **es)
    assert_steps_equal(config, spread(config, 30, False), monkeypatch)


@pytest.mark.parametrize("model", [RWKV, EGG], ids=["rwkv", "egg"])
def test_step_at_the_ends_of_all_ranges_equals_the_oracle(
    model: dict, monkeypatch: pytest.MonkeyPatch
):
    """All weights, tables and states at +-127, remainders and counts at their ends."""
    config = tiny(model, **UNIT, learning_rate=4.0, direct_rate=127.0, **RANK_2)
    after = assert_steps_equal(config, spread(config, 127, True), monkeypatch)
    assert all(abs(weight) <= 127 for leaf in after.weights.values() for weight in np.ravel(leaf))


@pytest.mark.parametrize(
    "model, es",
    [
        (EGG, {"votes": "trace", "readout": "exact", "update": "stochastic", "chunk": 4}),
        (EGG | {"direct": ()}, {"votes": "trace", "alpha": 0.3, "chunk": 4}),
        (RWKV, {"votes": "trace", "readout": "exact", "update": "threshold", **RANK_2}),
        (RWKV | {"direct": ()}, {"votes": "trace", "update": "carry", "chunk": 2}),
        (RWKV, {"readout": "exact", "update": "carry", "noise_reuse": 2, "chunk": 4}),
    ],
    ids=["egg trace exact", "egg trace", "rwkv trace exact", "rwkv trace", "rwkv plain exact"],
)
def test_step_of_other_recipes_equals_the_oracle(
    model: dict, es: dict, monkeypatch: pytest.MonkeyPatch
):
    """Trace votes with every update, and plain votes beside an exact readout."""
    config = tiny(model, **es)
    assert_steps_equal(config, spread(config, 30, False), monkeypatch)


@pytest.mark.slow
def test_step_of_a_large_population_equals_the_oracle(monkeypatch: pytest.MonkeyPatch):
    """So many pairs and tokens that votes' operands are narrower than int8, by one bit."""
    model = RWKV | {"width": 4, "layers": 1, "ffn_multiple": 1, "direct": (1,)}
    config = tiny(model, **UNIT | {"population": 1024, "segment_length": 261, "chunk": 512})
    assert bounds.spare_bits(config.es) == oracle.spare_bits(config.es) == 1
    assert_steps_equal(config, spread(config, 30, False), monkeypatch, steps=1)
