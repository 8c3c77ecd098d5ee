"""Runs with votes `deep`: the same bits in every way, without a float, in the right direction."""

import functools
import operator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import presets
import pytest
from test_estimators import cosine
from test_evolve import VOCABULARY, inexact, jaxpr_of, tiny
from test_placement import assert_equal, over, run_over
from tiny_command import run_in_three_ways

from benchmarks import backprop, cuts
from int_lm.config import Config, EsConfig, ModelConfig, RunConfig
from int_lm.method import chunks, evolve, population
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import params


def small(**es: Any) -> Recipe:
    """A small recipe that learns."""
    fields = {
        "votes": "deep",
        "readout": "exact",
        "members_per_stream": 1,
        "population": 256,
        "segment_length": 16,
        "update": "adaptive",
        "learning_rate": 1.0,
        "schedule": "constant",
        **es,
    }
    model = ModelConfig(architecture="rwkv", width=16, layers=2, ffn_multiple=2)
    config = Config(model=model, es=EsConfig(**fields), run=RunConfig(seed=1))
    return presets.resolved(config, VOCABULARY)


def test_no_float_enters_a_step_of_deep_votes() -> None:
    """The walk over the step's jaxpr, in chunks, finds integers and booleans only."""
    assert inexact(jaxpr_of(small(chunk=64))) == []


@pytest.mark.slow
def test_chunks_and_devices_change_no_bit() -> None:
    """Chunks of 2 and of 8 members; 2 and 4 devices, with votes summed and split."""
    es = {"votes": "deep", "readout": "exact", "members_per_stream": 1, "population": 16}
    made = functools.partial(tiny, architecture="rwkv", direct=(2,), update="carry", **es)
    recipe = made()
    assert_equal(recipe, [over(2, recipe), over(4, recipe, "sharded")])
    state, scores = run_over(recipe, None)
    for chunk in (2, 8):
        found, found_scores = run_over(made(chunk=chunk), None)
        np.testing.assert_array_equal(found_scores, scores)
        jax.tree.map(np.testing.assert_array_equal, found, state)


@pytest.mark.slow
def test_a_run_with_deep_votes_goes_on_with_the_same_bits(tmp_path: Path, run_command) -> None:
    """By the command: at once; in two parts; over two devices."""
    deep = {"es_dot_votes": "deep", "es_dot_readout": "exact", "es_dot_members_per_stream": 1}
    deep["es_dot_schedule"] = "constant"  # others may end with run.steps
    run_in_three_ways(tmp_path, run_command, **deep)


def remembered(streams: int, length: int, seed: int) -> np.ndarray:
    """Streams of which every third token follows from the one two before, and the others from none:
    what is left of log2 10 = 3.32 bits is 2.21, and needs the memory of the token before."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, VOCABULARY, (streams, length))
    places = (np.arange(length) + random.integers(0, 3, (streams, 1))) % 3
    for t in range(2, length):
        following = tokens[:, t - 2] * 3 % (VOCABULARY - 1) + 1
        tokens[:, t] = np.where(places[:, t] == 2, following, tokens[:, t])
    return tokens.astype(np.uint16)


def learned(recipe: Recipe, steps: int) -> tuple[evolve.State, float]:
    """The state after so many steps on `remembered`, and bits per token in the last ten."""
    es = recipe.es
    state, compiled, bits = evolve.initial(recipe), evolve.compiled_step(recipe), []
    text = remembered(es.population, steps * es.segment_length + 1, 0)
    for step in range(steps):
        at = step * es.segment_length
        state, metrics = compiled(state, text[:, at : at + es.segment_length + 1], step)
        bits.append(-float(np.mean(np.asarray(metrics.scores_P))) / es.segment_length / 2**16)
    return state, float(np.mean(bits[-10:]))


@pytest.mark.slow
def test_a_text_that_needs_memory_is_learned_further_than_with_local_votes() -> None:
    """In 150 steps to a tenth of a bit of what can be learned, where `local` is four times as far
    away."""
    found = {votes: learned(small(votes=votes), 150)[1] for votes in ("deep", "local")}
    assert found["deep"] < 2.33 and found["local"] > 2.6, found


@pytest.mark.slow
def test_votes_point_along_the_gradient_that_reaches_one_token_back() -> None:
    """Of every tensor and layer, in a model that has begun to learn; those of `local` do so where
    there is no later layer and no memory only."""
    recipe = small(learning_rate=0.5)
    state, es = learned(recipe, 60)[0], recipe.es
    text = remembered(es.population, 3 * es.segment_length + 1, 7)
    gradient_of = jax.jit(
        jax.grad(functools.partial(cuts.windowed, cuts.cut_of("within 1")), has_aux=True)
    )
    sums: dict[str, dict[str, Any]] = {"deep": {}, "local": {}, "gradient": {}}
    members = state.members
    outcomes = {
        votes: jax.jit(functools.partial(population.outcome, small(votes=votes)))
        for votes in ("deep", "local")
    }
    for segment in range(3):
        at = segment * es.segment_length
        tokens = text[:, at : at + es.segment_length + 1]
        gradient, _ = gradient_of(
            backprop.real(state.network), backprop.real(members), jnp.asarray(tokens, jnp.int32)
        )
        found = {"gradient": {path: -leaf for path, leaf in params.flatten(gradient)}}
        clock, following = Clock(jnp.uint32(3), jnp.uint32(500 + segment)), members
        for votes, outcome in outcomes.items():
            result = outcome(state.weights, members, tokens, clock, chunks.pairs(es))
            found[votes], following = result.votes, result.members
        members = following
        for name, leaves in found.items():
            for path, leaf in leaves.items():
                sums[name][path] = sums[name].get(path, 0) + np.asarray(leaf, np.float64)
    cosines = {
        votes: {
            path: [cosine(*rows) for rows in zip(sums[votes][path], leaf, strict=True)]
            if path.startswith("layers/")
            else [cosine(sums[votes][path], leaf)]
            for path, leaf in sums["gradient"].items()
        }
        for votes in outcomes
    }
    least = {
        "head": [0.99],
        "layers/channel_value": [0.95, 0.99],
        "layers/channel_key": [0.95, 0.99],
        "layers/time_mixing": [0.8, 0.85],
        "embedding": [0.8],
    }
    for path, bounds in least.items():
        assert all(map(operator.gt, cosines["deep"][path], bounds)), (path, cosines)
    for path in ("embedding", "layers/channel_value", "layers/channel_key", "layers/time_mixing"):
        assert cosines["local"][path][0] < cosines["deep"][path][0] - 0.2, (path, cosines)
