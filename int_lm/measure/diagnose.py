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

from int_lm.limits import INT8_MAX
from int_lm.method import chunks, evolve, fitness, population
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import params, perturb
from int_lm.model.params import Parameters, Role, Tree
from int_lm.settings import StrategySettings


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is counted.

    Attributes:
      agreeing: by path, weights on which the votes of both halves have one sign.
      voting: by path, weights on which both halves' votes are not 0.
      histograms: by path, how often each value stands among the inputs of a layer's matrices:
        int32 [L, 255], [1, 255] of a matrix outside the layers.
    """

    agreeing: dict[str, int]
    voting: dict[str, int]
    histograms: dict[str, np.ndarray]


def possible(es: StrategySettings) -> bool:
    """A population can be halved if a half still holds whole streams."""
    return es.population // 2 % es.members_per_stream == 0


def histograms(
    recipe: Recipe, weights: Parameters, members: Tree, tokens_P: Array
) -> dict[str, Array]:
    """Values of the inputs of every layer's matrices: the bare model reads one more token."""
    _, _, activity = recipe.model.step(perturb.unperturbed(weights), members, tokens_P)
    specs, counted = dict(params.flatten(recipe.model.specs.network)), {}
    for path, use in params.flatten(activity.uses):
        if specs[path].role not in (Role.MATRIX, Role.PROJECTION):
            continue
        layers = max(1, specs[path].layers)
        values = use.inputs.astype(jnp.int32).reshape(layers, -1) + INT8_MAX
        counted[path] = jax.vmap(lambda row: jnp.bincount(row, length=2 * INT8_MAX + 1))(values)
    return counted


def _half(
    recipe: Recipe,
    weights: Parameters,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    half: Array,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One half of the population on its own: the signs of its votes, int8, and its histograms."""
    pairs_CI = chunks.pairs(recipe.es, 2)  # of chunks that divide the halves
    pairs_CI = pairs_CI.reshape(2, -1, pairs_CI.shape[1])[half]
    own = population.outcome(recipe, weights, members, tokens_ST, clock, pairs_CI)
    fitness_I = fitness.fitness(recipe.es, own.scores_P, recipe.objective.score_max(recipe.es))
    fitness_CI = fitness_I.reshape(pairs_CI.shape)
    votes = own.votes | population.votes_of_fitness(recipe, fitness_CI, clock, pairs_CI)
    signs = {path: jnp.sign(sums).astype(jnp.int8) for path, sums in votes.items()}
    tokens_P = jnp.repeat(tokens_ST[:, 0].astype(jnp.int32), recipe.es.members_per_stream, axis=0)
    return signs, histograms(recipe, weights, members, tokens_P)


@functools.cache
def _compiled_half(recipe: Recipe) -> Callable[..., Any]:
    # it runs too seldom for the compiler to take pains with it; other compilers may not know how
    easily = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(_half, recipe), compiler_options=easily)


def _arguments(
    recipe: Recipe, weights: Parameters, members: Tree, tokens_ST: np.ndarray, step: int, half: int
) -> tuple[Any, ...]:
    """What `_half` takes, of one half."""

    def own(leaf: Any) -> np.ndarray:
        return np.split(np.asarray(leaf), 2, axis=1)[half]

    clock = Clock(np.uint32(recipe.settings.run.seed), np.uint32(step))  # type: ignore[arg-type]
    tokens = np.split(tokens_ST, 2)[half]
    return weights, jax.tree.map(own, members), tokens, clock, np.int32(half)


def prepare(recipe: Recipe, tokens_ST: np.ndarray) -> None:
    """Compile what `count` needs, which it then does not wait for."""
    like = evolve.abstract(recipe)
    members = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like.members)
    arguments = _arguments(recipe, like.weights, members, tokens_ST, 0, 0)
    _compiled_half(recipe).lower(*arguments).compile()


def count(
    recipe: Recipe, weights: Parameters, members: Tree, tokens_ST: np.ndarray, step: int
) -> Counts:
    """The counts at a state, with the tokens and perturbations of a step; changes nothing.

    It takes as long as a step.
    """
    signs_of = _compiled_half(recipe)
    (first, counted), (second, more) = (
        signs_of(*_arguments(recipe, weights, members, tokens_ST, step, half)) for half in (0, 1)
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
