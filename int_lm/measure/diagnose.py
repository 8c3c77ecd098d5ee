"""Diagnosis of a run: how often two halves of the population agree, and how activations are spread.

Everything is counted in integers. `summary` turns the counts into shares and bits.

Axes: P members, L layers, S streams, T segment length, K parts of a half, C chunks of a part, I
pairs of a chunk; 255 values from -127 to 127.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.limits import INT8_MAX, together
from int_lm.method import chunks, evolve, fitness, population
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import compiling, params, perturb
from int_lm.model.params import Parameters, Role, Tree
from int_lm.settings import StrategySettings

PARTS = 16, 8, 4, 2  # of a population, the first of these numbers that divides it


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of one diagnosis.

    Attributes:
      agreeing: by path, the number of weights on which the votes of both halves have the same sign
        and are not 0.
      voting: by path, the number of weights on which the votes of both halves are not 0.
      histograms: by path of a matrix, how often each value -127, ..., 127 occurs among its inputs:
        int32 [L, 255]; [1, 255] for a matrix outside the layers.
    """

    agreeing: dict[str, int]
    voting: dict[str, int]
    histograms: dict[str, np.ndarray]


def possible(es: StrategySettings) -> bool:
    """Whether the population can be divided into two halves of whole streams and pairs."""
    return es.population // 2 % together(es) == 0


def _parts(es: StrategySettings) -> int:
    """Parts of a population of which each half is as many, of whole streams and pairs."""
    return next(count for count in PARTS if es.population % (count * together(es)) == 0)


def histograms(
    recipe: Recipe, weights: Parameters, members: Tree, tokens_P: Array
) -> dict[str, Array]:
    """Histograms of the inputs of matrices, while the unperturbed model reads one token.

    Args:
      members: states of the members.
      tokens_P: int32, the token that every member reads.

    Returns:
      By path, int32 [L, 255]; [1, 255] for a matrix outside the layers.
    """
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
    """The signs of the votes (int8) and the histograms of one half of the population.

    Its members are read in parts, one after another: what is copied of their states, which are the
    next step's, is that of one part.

    Args:
      members: states of all members.
      tokens_ST: tokens of all streams.
      half: index of the half, 0 or 1, int32.
    """

    parts = _parts(recipe.es)
    pairs_KCI = chunks.pairs(recipe.es, parts)  # of chunks that divide the parts
    pairs_KCI = pairs_KCI.reshape(2, parts // 2, -1, pairs_KCI.shape[-1])[half]

    def of_part(pairs_CI: Array, part: Array) -> tuple[Array, tuple[Tree, Tree]]:
        def own(leaf: Array, axis: int) -> Array:
            size = leaf.shape[axis] // parts
            return jax.lax.dynamic_slice_in_dim(leaf, part * size, size, axis)

        states, tokens = jax.tree.map(lambda leaf: own(leaf, 1), members), own(tokens_ST, 0)
        found = population.outcome(recipe, weights, states, tokens, clock, pairs_CI)
        tokens_P = jnp.repeat(tokens[:, 0].astype(jnp.int32), recipe.es.members_per_stream, axis=0)
        counted = histograms(recipe, weights, states, tokens_P)
        return found.scores_P, (found.votes, counted)

    numbers = half * (parts // 2) + jnp.arange(parts // 2, dtype=jnp.int32)
    scores_P, (votes, counted) = chunks.over(of_part, pairs_KCI, numbers)
    score_max = recipe.objective.score_max(recipe.es)
    fitness_I = fitness.fitness(recipe.es, scores_P.reshape(-1), score_max)
    pairs_CI = pairs_KCI.reshape(-1, pairs_KCI.shape[-1])
    fitness_CI = fitness_I.reshape(pairs_CI.shape)
    votes |= population.votes_of_fitness(recipe, fitness_CI, clock, pairs_CI)
    return {path: jnp.sign(sums).astype(jnp.int8) for path, sums in votes.items()}, counted


@functools.cache
def _compiled_half(recipe: Recipe) -> compiling.Program:
    return compiling.Program(lambda: compiling.quick_jit(functools.partial(_half, recipe)))


def prepare(recipe: Recipe, tokens_ST: np.ndarray) -> None:
    """Compile what `count` needs, so that its first call does not have to.

    Args:
      tokens_ST: tokens of any step; their shape and dtype matter.
    """
    like = evolve.abstract(recipe)
    first = Clock.at(recipe.settings.run.seed, 0), np.int32(0)
    _compiled_half(recipe).compile(like.weights, like.members, tokens_ST, *first)


def count(
    recipe: Recipe, weights: Parameters, members: Tree, tokens_ST: np.ndarray, step: int
) -> Counts:
    """The counts at a state, with the tokens and perturbations of a step. Nothing is changed.

    It takes about as long as a step.

    Args:
      weights: int8.
      members: states of all members.
      tokens_ST: tokens of the step.
      step: its number, from which the perturbations follow.
    """

    clock = Clock.at(recipe.settings.run.seed, step)

    def signs_of(half: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        found = _compiled_half(recipe)(weights, members, tokens_ST, clock, np.int32(half))
        return jax.tree.map(np.asarray, found)

    (first, counted), (second, more) = (signs_of(half) for half in (0, 1))
    product = {path: first[path] * second[path] for path in first}
    return Counts(
        agreeing={path: int(np.count_nonzero(signs > 0)) for path, signs in product.items()},
        voting={path: int(np.count_nonzero(signs)) for path, signs in product.items()},
        histograms={path: counted[path] + more[path] for path in more},
    )


def summary(counts: Counts) -> dict[str, Any]:
    """The entries that a diagnosis adds to `metrics.jsonl`.

    Returns:
      vote_agreement: by path, the share of weights with votes of the same sign, among the weights
        on which both halves have a vote other than 0. It is 0.5 for pure noise and 1 if both
        halves always agree; None if there is no such weight.
      activation_saturation: by path, for every layer the share of values at -127 or 127.
      activation_entropy: by path, for every layer the entropy in bits per value, at most 7.99.
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
