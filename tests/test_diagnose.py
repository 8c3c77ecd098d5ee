"""Diagnostics: agreement of two halves of the population and values of activations."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from int_lm import config as configuration
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.measure import diagnose
from int_lm.method import evolve, population
from int_lm.model import hashing, params

VOCABULARY = 11
RECIPES = [
    ("egg", {}),
    ("rwkv", {"votes": "trace", "readout": "exact", "update": "carry"}),
    ("rwkv", {"votes": "unit", "readout": "exact", "update": "carry"}),
]


def tiny(architecture: str, es: dict, **model) -> Config:
    """A small configuration."""
    return configuration.validate(
        Config(
            model=ModelConfig(
                architecture=architecture, width=8, layers=2, ffn_multiple=2, **model
            ),
            es=EsConfig(population=16, segment_length=4, sigma_shift=2, **es),
        )
    )


def trained(config: Config, steps: int = 3) -> evolve.State:
    """The state after some steps on random tokens."""
    state, step = evolve.initial(config, VOCABULARY), evolve.compiled_step(config, VOCABULARY)
    for number in range(steps):
        state, _ = step(state, tokens_of(number), number)
    return state


def tokens_of(number: int) -> np.ndarray:
    """Tokens of a step, uint8 [S, T+1]."""
    return np.random.default_rng(number).integers(0, VOCABULARY, (8, 5)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "es"), RECIPES)
@pytest.mark.parametrize("chunk", [8, 4])
def test_halves_add_up_to_the_votes_of_the_step(architecture: str, es: dict, chunk: int):
    """Where both halves agree, their sum, which is the step's vote, has that sign too.

    For plain votes with sign fitness, and for all others: a half's fitness is its own.
    """
    config = tiny(architecture, es)
    state, tokens = trained(config), jnp.asarray(tokens_of(3))
    specs = evolve.specs_of(config, VOCABULARY)
    half = dataclasses.replace(config, es=dataclasses.replace(config.es, chunk=chunk))
    parts = population.split_members(2, state.members)
    half_of = jax.jit(functools.partial(diagnose._half, half, specs))
    word = jnp.uint32(3)
    signs = [
        half_of(
            state.weights,
            jax.tree.map(lambda leaf, number=number: leaf[number], parts),
            tokens.reshape(2, 4, 5)[number],
            jnp.uint32(config.run.seed),
            word,
            jnp.int32(number),
        )[0]
        for number in (0, 1)
    ]

    @jax.jit
    def whole(state, tokens):
        seed, chunks_C = jnp.uint32(config.run.seed), population.all_chunks(config.es)
        from int_lm.method import fitness, voting

        scores_P, _, ballots, _ = population.scores(
            config,
            specs,
            state.weights,
            state.members,
            tokens,
            seed,
            word,
            population.all_chunks(config.es),
        )
        fitness_I = fitness.fitness(config.es, scores_P)
        return ballots | voting.plain_votes(config.es, specs, fitness_I, seed, word, chunks_C)

    ballots = whole(state, tokens)
    assert set(ballots) == set(signs[0]) == {path for path, _ in params.flatten(specs)}
    agreed = 0
    for path, ballot in ballots.items():
        same = np.asarray(signs[0][path]) * np.asarray(signs[1][path]) > 0
        np.testing.assert_array_equal(
            np.sign(np.asarray(ballot))[same], np.asarray(signs[0][path])[same]
        )
        agreed += int(same.sum())
    counts = diagnose.count(config, VOCABULARY, state, tokens_of(3), 3)
    assert sum(counts.agreeing.values()) == agreed > 0


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


@pytest.mark.parametrize(("architecture", "es"), RECIPES)
def test_histograms_count_every_value_of_every_layer(architecture: str, es: dict):
    """One count a member and input; a fresh state's recurrent inputs are 0; nothing is changed."""
    config = tiny(architecture, es)
    state = evolve.initial(config, VOCABULARY)
    before = hashing.weights_hash(state.weights)
    counts = diagnose.count(config, VOCABULARY, state, tokens_of(0), 0)
    specs = dict(params.flatten(evolve.specs_of(config, VOCABULARY)))
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
    config = tiny("rwkv", RECIPES[2][1])
    state = evolve.initial(config, VOCABULARY)
    tokens = np.full((8, 5), 7, np.uint8)
    summary = diagnose.summary(diagnose.count(config, VOCABULARY, state, tokens, 0))
    assert summary["vote_agreement"]["head"] > 0.9


def test_a_population_of_one_stream_cannot_be_halved():
    """Members that share a stream stay together, so two streams are needed."""
    one = Config(es=EsConfig(population=8, members_per_stream=8))
    assert not diagnose.possible(one)
    assert diagnose.possible(Config(es=EsConfig(population=8, members_per_stream=4)))
    three = Config(es=EsConfig(population=6, members_per_stream=2))
    assert not diagnose.possible(three)
