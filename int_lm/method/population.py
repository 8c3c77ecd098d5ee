"""The population of a step: perturb the members, run the objective, sum their votes.

Member p reads stream p // members_per_stream. Its recurrent state carries over from segment to
segment. Members are evaluated in chunks (`chunked`). The size of a chunk changes memory and speed;
it changes no bit of the result.

Axes: P members, I = P/2 pairs, S streams, T segment length, L layers, C chunks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.method import token_votes
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.method.token_votes import RowErrors, VotesByPath
from int_lm.model import params, perturb
from int_lm.model.params import Parameters, Tree
from int_lm.model.perturb import Noise

CACHED_MEMBERS = 512  # the activations of so many members, and most records, fit the CPU's caches


# -- Chunks ----------------------------------------------------------------------------------------


def chunked(recipe: Recipe, devices: int = 1) -> Recipe:
    """`recipe` with the chunk size that a step uses, in members.

    A chunk holds all members of one or more streams, and its size divides the members of one
    device. The largest such size within a limit is taken:

        es.chunk > 0    the limit is `es.chunk`
        es.chunk = 0    on CPUs the larger of `CACHED_MEMBERS` and es.members_per_stream; on other
                        platforms there is no limit

    With es.chunk = 0, a result below CACHED_MEMBERS / 2 is replaced by all members of the device.
    """
    es = recipe.es
    share, readers = es.population // devices, es.members_per_stream
    cached = max(CACHED_MEMBERS, readers)
    most = es.chunk or (cached if jax.default_backend() == "cpu" else share)
    sizes = range(readers, min(most, share) + 1, readers)
    size = max(size for size in sizes if share % size == 0)
    if not es.chunk and size < CACHED_MEMBERS // 2:
        size = share
    return dataclasses.replace(recipe, chunk=size)


def chunks(recipe: Recipe) -> int:
    """Number of chunks the population is evaluated in, on all devices together."""
    return recipe.es.population // recipe.chunk if recipe.chunk else 1


def all_chunks(recipe: Recipe) -> Array:
    """Indices of all chunks: int32 [C]."""
    return jnp.arange(chunks(recipe), dtype=jnp.int32)


def chunk_pairs(recipe: Recipe, chunk: Array) -> Array:
    """Indices of the pairs of one chunk: int32 [I]."""
    size = recipe.es.population // chunks(recipe) // 2
    return chunk * size + jnp.arange(size, dtype=jnp.int32)


def over_chunks(
    function: Callable[[Array, Any], tuple[Any, Any]], chunks_C: Array, arguments: Any
) -> tuple[Any, Any]:
    """Call `function(chunk, its arguments)` for the given chunks, one after another.

    Args:
      function: returns two trees of arrays.
      chunks_C: indices of the chunks, int32.
      arguments: a tree with leaves [C, ...]; each call gets its entries without the axis C.

    Returns:
      The first trees, stacked along a new leading axis C, and the sum of the second trees. Memory
      holds the sum and one more second tree, never all C of them.
    """
    first = (chunks_C[0], jax.tree.map(lambda x: x[0], arguments))
    if len(chunks_C) == 1:
        stacked, summed = function(*first)
        return jax.tree.map(lambda x: x[None], stacked), summed
    zeros = jax.tree.map(
        lambda result: jnp.zeros(result.shape, result.dtype), jax.eval_shape(function, *first)[1]
    )

    def add(total: Any, both: tuple[Array, Any]) -> tuple[Any, Any]:
        stacked, summed = function(*both)
        return jax.tree.map(jnp.add, total, summed), stacked

    total, stacked = jax.lax.scan(add, zeros, (chunks_C, arguments))
    return stacked, total


def split_members(count: int, state: Tree) -> Tree:
    """Split the members of a state: leaves [L, P, ...] become [count, L, P / count, ...]."""

    def split(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]), 1, 0)

    return jax.tree.map(split, state)


def _join_members(state: Tree) -> Tree:
    """The inverse of `split_members`."""

    def join(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1, *leaf.shape[3:])

    return jax.tree.map(join, state)


# -- Members ---------------------------------------------------------------------------------------


def noise(recipe: Recipe, clock: Clock, chunk: Array) -> dict[str, Noise]:
    """The noise of one chunk's pairs, by path, for every tensor that members perturb."""
    specs = recipe.model.specs
    numbers, pairs_I = params.tensor_ids(specs), chunk_pairs(recipe, chunk)
    return {
        path: perturb.tensor_noise(recipe.es, spec, numbers[path], clock.seed, clock.step, pairs_I)
        for path, spec in params.flatten(specs.network)
        if recipe.perturbs(spec)
    }


def perturbed(recipe: Recipe, weights: Parameters, noises: dict[str, Noise]) -> Parameters:
    """The parameters with the perturbations `noises`: a `perturb.Weight` for every tensor.

    Args:
      weights: int8.
      noises: of `noise`, for the pairs of one chunk.
    """
    network = {
        path: perturb.perturbed(recipe.es, value, noises.get(path))
        for path, value in params.flatten(weights.network)
    }
    return Parameters(params.unflatten(network), weights.tables)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of some members in one step, before their fitness is known.

    Attributes:
      scores_P: scores of the members, int32, in the units of the objective.
      members: recurrent states of the members after the segment, leaves [L, P, ...].
      votes: int32 sums by path, for the tensors whose votes are made token by token.
      row_errors: row errors, from which the context tables learn; None for a model without them.
    """

    scores_P: Array
    members: Tree
    votes: VotesByPath
    row_errors: RowErrors | None


def _of_chunk(
    recipe: Recipe,
    weights: Parameters,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    chunk: Array,
) -> Outcome:
    """One chunk: perturb, run the objective, sum the votes that are made token by token."""
    seen = perturbed(recipe, weights, noise(recipe, clock, chunk))
    tokens_PT = jnp.repeat(tokens_ST, recipe.es.members_per_stream, axis=0)
    members, scores_P, records = recipe.objective.run(
        recipe.model, seen, members, tokens_PT, token_votes.keep(recipe)
    )
    votes, row_errors = {}, None
    if records is not None:
        pairs_I = chunk_pairs(recipe, chunk)
        votes, row_errors = token_votes.votes(recipe, seen, records, pairs_I, clock)
    return Outcome(scores_P, members, votes, row_errors)


def outcome(
    recipe: Recipe,
    weights: Parameters,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    chunks_C: Array,
) -> Outcome:
    """Evaluate some chunks of the population, one after another.

    Args:
      weights: int8.
      members: recurrent states of the members of these chunks, leaves [L, P, ...].
      tokens_ST: tokens [S, T+1] of the streams that these members read.
      chunks_C: indices of the chunks, int32: all chunks, or those of one device.
    """
    count = len(chunks_C)

    def one_chunk(chunk: Array, arguments: tuple[Tree, Array]):
        of_chunk = _of_chunk(recipe, weights, *arguments, clock, chunk)
        return dataclasses.replace(of_chunk, votes={}), of_chunk.votes

    tokens_CST = tokens_ST.reshape(count, -1, tokens_ST.shape[1])
    stacked, votes = over_chunks(one_chunk, chunks_C, (split_members(count, members), tokens_CST))
    flat = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (stacked.scores_P, stacked.row_errors)
    )
    return Outcome(flat[0], _join_members(stacked.members), votes, flat[1])


def votes_of_fitness(
    recipe: Recipe, fitness_I: Array, clock: Clock, chunks_C: Array
) -> VotesByPath:
    """Votes by path, int32, on the tensors whose estimator uses the fitness of a pair.

    The noise is drawn again; drawing the same noise twice costs less than storing it.

    Args:
      fitness_I: fitness of the pairs of these chunks, int8.
      chunks_C: indices of the chunks whose members vote, int32.
    """
    voting = {
        path: estimator.of_fitness
        for estimator, specs in recipe.voting.items()
        if estimator.of_fitness
        for path in specs
    }

    def chunk_votes(chunk: Array, fitness_I: Array) -> tuple[None, VotesByPath]:
        noises = noise(recipe, clock, chunk)
        return None, {
            path: of_fitness(recipe.es, noises[path], fitness_I)
            for path, of_fitness in voting.items()
        }

    if not voting:
        return {}
    return over_chunks(chunk_votes, chunks_C, fitness_I.reshape(len(chunks_C), -1))[1]
