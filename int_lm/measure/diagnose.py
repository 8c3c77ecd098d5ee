"""Diagnostics of a run: do two halves of the population agree, and what do activations look like?

Everything is counted in integers; `summary` makes shares and bits of the counts.

Axes: P members, L layers; 255 values from -127 to 127.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.config import Config
from int_lm.limits import INT8_MAX
from int_lm.method import evolve, fitness, population, voting
from int_lm.method.evolve import State
from int_lm.model import language_model, params, perturb
from int_lm.model.params import Role, Tree


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is counted.

    Attributes:
      agreeing: by path, weights on which the votes of both halves have one sign.
      voting: by path, weights on which both halves' votes are not 0.
      histograms: by path, how often each value stands among the inputs of a layer's matrices:
        int32 [L, 255].
    """

    agreeing: dict[str, int]
    voting: dict[str, int]
    histograms: dict[str, np.ndarray]


def possible(config: Config) -> bool:
    """A population can be halved if a half still holds whole streams."""
    return config.es.population // 2 % config.es.members_per_stream == 0


def histograms(
    config: Config, specs: Tree, weights: Tree, members: Tree, tokens_P: Array
) -> dict[str, Array]:
    """Values of the inputs of every layer's matrices: the bare model reads one more token."""
    _, _, activity = language_model.step(
        config.model, perturb.unperturbed(weights), members, tokens_P
    )
    kinds, counted = dict(params.flatten(specs)), {}
    for path, use in params.flatten(activity.uses):
        if kinds[path].role not in (Role.MATRIX, Role.PROJECTION):
            continue
        values = use.inputs.astype(jnp.int32).reshape(len(use.inputs), -1) + INT8_MAX
        counted[path] = jax.vmap(lambda row: jnp.bincount(row, length=2 * INT8_MAX + 1))(values)
    return counted


def _half(
    config: Config,
    specs: Tree,
    weights: Tree,
    members: Tree,
    tokens_ST: Array,
    seed: Array,
    number: Array,
    half: Array,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One half of the population on its own: the signs of its votes, int8, and its histograms."""
    es = config.es
    chunks_C = population.all_chunks(es).reshape(2, -1)[half]
    score_P, _, ballots, _ = population.scores(
        config, specs, weights, members, tokens_ST, seed, number, chunks_C
    )
    fitness_I = fitness.fitness(es, score_P)
    ballots |= voting.plain_votes(es, specs, fitness_I, seed, number, chunks_C)
    signs = {path: jnp.sign(ballot).astype(jnp.int8) for path, ballot in ballots.items()}
    tokens_P = jnp.repeat(tokens_ST[:, 0].astype(jnp.int32), es.members_per_stream, axis=0)
    return signs, histograms(config, specs, weights, members, tokens_P)


@functools.cache
def _compiled_half(config: Config, vocab_size: int) -> Callable[..., Any]:
    halved = population.chunked(config, 2)  # its chunks divide the halves
    half = functools.partial(_half, halved, evolve.specs_of(config, vocab_size))
    # it runs too seldom for the compiler to take pains with it; other compilers may not know how
    easily = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(half, compiler_options=easily)


def _arguments(
    config: Config, state: State, tokens_ST: np.ndarray, number: int, half: int
) -> tuple[Any, ...]:
    """What `_half` takes, of one half."""

    def own(leaf: Any) -> np.ndarray:
        return np.split(np.asarray(leaf), 2, axis=1)[half]

    members = jax.tree.map(own, state.members)
    tokens = np.split(tokens_ST, 2)[half]
    numbers = np.uint32(config.run.seed), np.uint32(number), np.int32(half)
    return state.weights, members, tokens, *numbers


def prepare(config: Config, vocab_size: int, tokens_ST: np.ndarray) -> None:
    """Compile what `count` needs, which it then does not wait for."""
    like = evolve.abstract(config, vocab_size)
    members = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like.members)
    like = dataclasses.replace(like, members=members)
    arguments = _arguments(config, like, tokens_ST, 0, 0)
    _compiled_half(config, vocab_size).lower(*arguments).compile()


def count(
    config: Config, vocab_size: int, state: State, tokens_ST: np.ndarray, number: int
) -> Counts:
    """The counts of a state and the next step's tokens; as dear as a step, and changes nothing."""
    signs_of = _compiled_half(config, vocab_size)
    (first, counted), (second, more) = (
        signs_of(*_arguments(config, state, tokens_ST, number, half)) for half in (0, 1)
    )
    product = {path: np.asarray(first[path]) * np.asarray(second[path]) for path in first}
    return Counts(
        agreeing={path: int(np.count_nonzero(signs > 0)) for path, signs in product.items()},
        voting={path: int(np.count_nonzero(signs)) for path, signs in product.items()},
        histograms={path: np.asarray(counted[path]) + np.asarray(more[path]) for path in more},
    )


def summary(counts: Counts) -> dict[str, Any]:
    """What `metrics.jsonl` carries.

    vote_agreement: by path, share of the weights both halves vote on whose signs agree (0.5 is
    noise, 1 certainty); null where they vote on none. activation_saturation, activation_entropy: by
    path, a list over layers: share of values at +-127, and bits per value (at most 7.99).
    """
    agreement = {
        path: agreeing / counts.voting[path] if counts.voting[path] else None
        for path, agreeing in counts.agreeing.items()
    }
    saturation, entropy = {}, {}
    for path, histogram in counts.histograms.items():
        rows = histogram.astype(np.float64)
        shares = rows / rows.sum(axis=1, keepdims=True)
        saturation[path] = (shares[:, 0] + shares[:, -1]).tolist()
        entropy[path] = [-sum(p * math.log2(p) for p in row if p > 0) for row in shares.tolist()]
    return {
        "vote_agreement": agreement,
        "activation_saturation": saturation,
        "activation_entropy": entropy,
    }
