"""Diagnostics: agreement of two halves of the population and values of activations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import presets
import pytest

from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.measure import diagnose
from int_lm.method import evolve, population
from int_lm.method.clock import Clock
from int_lm.method.evolve import State
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, params

VOCABULARY = 11
RECIPES = [
    ("egg", {}),
    ("rwkv", {"votes": "trace", "readout": "exact", "update": "carry"}),
    ("rwkv", {"votes": "unit", "readout": "exact", "update": "carry"}),
    ("rwkv", {"votes": "local", "readout": "exact", "update": "carry", "members_per_stream": 1}),
]
QUICK = [RECIPES[0], RECIPES[3]]


def tiny(architecture: str, es: dict) -> Recipe:
    """A small recipe."""
    config = Config(
        model=ModelConfig(architecture=architecture, width=8, layers=2, ffn_multiple=2),
        es=presets.paper_es(population=16, segment_length=4, sigma_shift=2, **es),
    )
    return presets.resolved(config, VOCABULARY)


def trained(recipe: Recipe, steps: int = 3) -> State:
    """The state after some steps on random tokens."""
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    for step in range(steps):
        state, _ = compiled(state, tokens_of(recipe, step), step)
    return state


def tokens_of(recipe: Recipe, step: int) -> np.ndarray:
    """Tokens of a step, uint8 [S, T+1]."""
    shape = recipe.es.streams, 5
    return np.random.default_rng(step).integers(0, VOCABULARY, shape).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "es"), RECIPES)
@pytest.mark.parametrize("chunk", [8, 4])
def test_halves_add_up_to_the_votes_of_the_step(architecture: str, es: dict, chunk: int):
    """Where both halves agree, their sum, which is the step's vote, has that sign too.

    For plain votes with sign fitness, and for all others: a half's fitness is its own.
    """
    recipe = tiny(architecture, es | {"chunk": chunk})
    state, tokens = trained(recipe), jnp.asarray(tokens_of(recipe, 3))
    half_of = jax.jit(functools.partial(diagnose._half, recipe))
    clock = Clock(jnp.uint32(recipe.settings.run.seed), jnp.uint32(3))
    signs = [
        half_of(state.weights, state.members, tokens, clock, jnp.int32(half))[0] for half in (0, 1)
    ]

    whole = jax.jit(functools.partial(population.result, recipe))
    votes = whole(
        state.network,
        state.tables,
        state.members,
        tokens,
        clock,
    ).votes
    assert set(votes) == set(signs[0]) == set(recipe.model.specs.by_path())
    agreed = 0
    for path, sums in votes.items():
        same = np.asarray(signs[0][path]) * np.asarray(signs[1][path]) > 0
        np.testing.assert_array_equal(
            np.sign(np.asarray(sums))[same], np.asarray(signs[0][path])[same]
        )
        agreed += int(same.sum())
    counts = diagnose.count(recipe, state.weights, state.members, tokens_of(recipe, 3), 3)
    assert sum(counts.agreeing.values()) == agreed > 0


@pytest.mark.parametrize(
    ("architecture", "es"), [("egg", {"fitness": "linear"}), ("rwkv", RECIPES[2][1])]
)
def test_parts_change_nothing(architecture: str, es: dict, monkeypatch: pytest.MonkeyPatch):
    """A half that is read in four parts votes as one that is read at once."""
    found = []
    for parts in ((8,), (2,)):
        monkeypatch.setattr(diagnose, "PARTS", parts)
        recipe = tiny(architecture, es)
        state = trained(recipe)
        half_of = jax.jit(functools.partial(diagnose._half, recipe))
        clock = Clock(jnp.uint32(recipe.settings.run.seed), jnp.uint32(3))
        tokens = jnp.asarray(tokens_of(recipe, 3))
        found.append(half_of(state.weights, state.members, tokens, clock, jnp.int32(1)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert any(np.any(signs) for signs in found[0][0].values())


def test_summary_makes_shares_and_bits_of_the_counts():
    """Half agreeing is 0.5, no vote is null; two values in equal parts are one bit."""
    histogram = np.zeros((2, 255), np.int32)
    histogram[0, [0, 10]] = 8
    histogram[1, [0, 254, 100, 101]] = 5
    counts = diagnose.Counts(
        agreeing={"head": 5, "layers/w": 0},
        voting={"head": 10, "layers/w": 0},
        histograms={"layers/w": histogram},
    )
    summary = diagnose.summary(counts)
    assert summary["vote_agreement"] == {"head": 0.5, "layers/w": None}
    assert summary["activation_saturation"] == {"layers/w": [0.5, 0.5]}
    assert summary["activation_entropy"] == {"layers/w": pytest.approx([1.0, 2.0])}


@pytest.mark.parametrize(("architecture", "es"), QUICK)
def test_histograms_count_every_value_of_every_layer(architecture: str, es: dict):
    """One count a member and input; a fresh state's recurrent inputs are 0; nothing is changed."""
    recipe = tiny(architecture, es)
    state = evolve.initial(recipe)
    before = hashing.weights_hash(state.weights)
    counts = diagnose.count(recipe, state.weights, state.members, tokens_of(recipe, 0), 0)
    specs = dict(params.flatten(recipe.model.specs.network))
    for path, histogram in counts.histograms.items():
        inputs = specs[path].shape[-1]
        np.testing.assert_array_equal(histogram.sum(axis=1), [16 * inputs] * 2)
    assert hashing.weights_hash(state.weights) == before
    if architecture == "egg":
        assert (
            counts.histograms["layers/forget_state"].tolist()
            == [[0] * 127 + [16 * 8] + [0] * 127] * 2
        )
    bits = diagnose.summary(counts)["activation_entropy"]
    assert all(0 <= value <= math.log2(255) for values in bits.values() for value in values)


def test_votes_of_a_learnable_text_agree_more_than_noise():
    """On a text of one repeated token the exact readout's halves agree; pure chance would not."""
    recipe = tiny("rwkv", RECIPES[2][1])
    state = evolve.initial(recipe)
    tokens = np.full((8, 5), 7, np.uint8)
    counts = diagnose.count(recipe, state.weights, state.members, tokens, 0)
    summary = diagnose.summary(counts)
    assert summary["vote_agreement"]["head"] > 0.9


def test_a_population_of_one_stream_cannot_be_halved():
    """Members that share a stream stay together, so two streams are needed."""
    assert not diagnose.possible(EsConfig(population=8, members_per_stream=8))
    assert diagnose.possible(EsConfig(population=8, members_per_stream=4))
    assert not diagnose.possible(EsConfig(population=6, members_per_stream=2))
    assert not diagnose.possible(EsConfig(population=6, members_per_stream=1))  # nor are pairs
