"""The population's forward pass: every member reads its segment under its own perturbation.

Member p reads stream p // members_per_stream; its recurrent state carries over from segment to
segment. Members are evaluated in chunks (`chunked`), whose size changes memory and speed, no bit.

Axes: P members, I = P/2 pairs, S streams, T segment length, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.limits import SEPARATOR
from int_lm.method.estimator import votes
from int_lm.method.estimator.votes import Ballots, Readings
from int_lm.model import language_model, likelihood, params, perturb
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Spec, Tree

CACHED_MEMBERS = 512  # whose activations, and much of what they leave for votes, stay in the caches


def read(
    model: ModelConfig,
    weights: Tree,
    state: Tree,
    tokens_PT: Array,
    score: Callable[[Array, Array], Array] = likelihood.log2_likelihood,
) -> tuple[Tree, Array]:
    """Read tokens one after another, scoring each by what came before it.

    Args:
      weights: tree of `perturb.Weight`s.
      state: of `initial_state`, leaves [L, P, ...].
      tokens_PT: any integer dtype [P, T+1]; token t+1 is the target of token t.
      score: of logits [P, V] and targets int32 [P].

    Returns:
      The state after token T-1, and scores [T, P]: log2-likelihoods are int32, in units of 2^-16
      bit.
    """

    def step(state: Tree, pair: tuple[Array, Array]) -> tuple[Tree, Array]:
        token_P, target_P = pair
        state, logits_PV, _ = language_model.step(model, weights, state, token_P)
        return state, score(logits_PV, target_P)

    tokens_TP = tokens_PT.astype(jnp.int32).T
    return jax.lax.scan(step, state, (tokens_TP[:-1], tokens_TP[1:]))


def read_and_vote(
    config: Config,
    specs: Tree,
    members: Tree,
    state: Tree,
    tokens_PT: Array,
    number: Array,
    pairs_I: Array,
) -> tuple[Tree, Array, Ballots, Readings | None]:
    """`read`, and the votes that are gathered token by token (`votes.of_segment`).

    A separator after a separator is padding, for no text is empty: it has no score and no votes.

    Args:
      members: tree of `perturb.Weight`s.
      number: the step's, uint32 scalar. pairs_I: numbers of the members' pairs, int32.

    Returns:
      The state, scores int32 [P], and votes by path, none for tensors of the plain estimator, and
      what direct connections learn from.
    """
    es = config.es

    def step(carry: tuple[Tree, Array], token: tuple[Array, Array]):
        state, score_P = carry
        token_P, target_P = token
        state, logits_PV, activity = language_model.step(config.model, members, state, token_P)
        padding_P = (token_P == SEPARATOR) & (target_P == SEPARATOR)
        log_likelihood_P = jnp.where(padding_P, 0, likelihood.log2_likelihood(logits_PV, target_P))
        target_P = jnp.where(padding_P, NO_TARGET, target_P)
        kept = votes.record(es, specs, activity, logits_PV, target_P, log_likelihood_P)
        return (state, score_P + log_likelihood_P), kept

    tokens_TP = tokens_PT.astype(jnp.int32).T
    start = state, jnp.zeros(len(tokens_PT), jnp.int32)
    (state, score_P), records = jax.lax.scan(step, start, (tokens_TP[:-1], tokens_TP[1:]))
    return state, score_P, *votes.of_segment(es, specs, members, records, pairs_I, number)


def chunked(config: Config, devices: int = 1) -> Config:
    """`config` with the chunk that a step uses: the largest one that divides a device's share of
    the members and is no larger than `es.chunk`.

    Where that is 0: than `CACHED_MEMBERS` (or the readers of one stream) on CPUs, unless only small
    ones divide the share, which is then read at once, as it is on accelerators.
    """
    es = config.es
    share, readers = es.population // devices, es.members_per_stream
    cached = max(CACHED_MEMBERS, readers)
    most = es.chunk or (cached if jax.default_backend() == "cpu" else share)
    sizes = range(readers, min(most, share) + 1, readers)
    size = max(size for size in sizes if share % size == 0)
    if not es.chunk and size < CACHED_MEMBERS // 2:
        size = share
    return dataclasses.replace(config, es=dataclasses.replace(es, chunk=size))


def chunks(es: EsConfig) -> int:
    """Number of chunks the population is evaluated in, on all devices together."""
    return es.population // es.chunk if es.chunk else 1


def all_chunks(es: EsConfig) -> Array:
    """Numbers of all chunks: int32 [C]."""
    return jnp.arange(chunks(es), dtype=jnp.int32)


def chunk_pairs(es: EsConfig, chunk: Array) -> Array:
    """Numbers of the pairs of one chunk: int32 [I]."""
    size = es.population // chunks(es) // 2
    return chunk * size + jnp.arange(size, dtype=jnp.int32)


def chunk_noise(es: EsConfig, specs: Tree, seed: Array, step: Array, chunk: Array) -> Tree:
    """The perturbations of one chunk's pairs: (A, B) or (n, None), or None where there is none."""
    pairs_I = chunk_pairs(es, chunk)

    def noise_of(spec: Spec, tensor: int) -> tuple[Array, Array | None] | None:
        if votes.estimator(es, spec.role) == votes.EXACT:
            return None
        return perturb.tensor_noise(es, spec, tensor, seed, step, pairs_I)

    return params.map_leaves(noise_of, specs, params.tensor_ids(specs))


def over_chunks(
    function: Callable[[Array, Any], tuple[Any, Any]], chunks_C: Array, arguments: Any
) -> tuple[Any, Any]:
    """`function(chunk, arguments[...])` for every one of some chunks, one after another.

    It returns two trees: the first ones are stacked, the second ones summed, without ever holding
    more than one of them beside the sum.

    Args:
      chunks_C: numbers of the chunks, int32. arguments: a tree of leaves [C, ...].
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


def chunk_scores(
    config: Config,
    specs: Tree,
    weights: Tree,
    state: Tree,
    tokens_ST: Array,
    seed: Array,
    number: Array,
    chunk: Array,
) -> tuple[Tree, Array, Ballots, Readings | None]:
    """`read_and_vote` of one chunk: the arguments are those of `scores`, the chunk's part only."""
    es = config.es
    noises = chunk_noise(es, specs, seed, number, chunk)
    members = params.map_leaves(
        lambda _, value, noise: perturb.perturbed(es, value, noise),
        specs,
        weights,
        noises,
    )
    tokens_PT = jnp.repeat(tokens_ST, es.members_per_stream, axis=0)
    pairs_I = chunk_pairs(es, chunk)
    return read_and_vote(config, specs, members, state, tokens_PT, number, pairs_I)


def split_members(count: int, state: Tree) -> Tree:
    """Leaves [L, P, ...] as [count, L, P / count, ...]."""

    def split(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]), 1, 0)

    return jax.tree.map(split, state)


def _join_members(state: Tree) -> Tree:
    """The inverse of `split_members`."""

    def join(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1, *leaf.shape[3:])

    return jax.tree.map(join, state)


def scores(
    config: Config,
    specs: Tree,
    weights: Tree,
    state: Tree,
    tokens_ST: Array,
    seed: Array,
    number: Array,
    chunks_C: Array,
) -> tuple[Array, Tree, Ballots, Readings | None]:
    """Members' summed log2-likelihoods over their segments, and what votes come of their reading.

    Args:
      weights: int8 tree.
      state: states of the members of these chunks, leaves [L, P, ...].
      tokens_ST: [S, T+1] with S = P / members_per_stream.
      seed, number: uint32 scalars, the run's seed and the step's number.
      chunks_C: numbers of the chunks to evaluate, int32: all of them, or those of one device.

    Returns:
      int32 [P] in units of 2^-16 bit, the members' states after the segment, votes by path, and the
      readings of direct connections (see `read_and_vote`).
    """
    count = len(chunks_C)

    def one_chunk(chunk: Array, arguments: tuple[Tree, Array]):
        state, score_P, ballots, readings = chunk_scores(
            config, specs, weights, *arguments, seed, number, chunk
        )
        return (score_P, state, readings), ballots

    tokens = tokens_ST.reshape(count, -1, tokens_ST.shape[1])
    (scores_CP, state, readings), ballots = over_chunks(
        one_chunk, chunks_C, (split_members(count, state), tokens)
    )
    readings = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), readings)
    return scores_CP.reshape(-1), _join_members(state), ballots, readings
