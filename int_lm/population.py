"""The population's forward pass: every member reads its segment under its own perturbation.

Member p reads stream p // members_per_stream; its recurrent state carries over from segment to
segment. Members are evaluated in chunks of `es.chunk`, whose size changes memory but no bit.

Axes: P members, I = P/2 pairs, S streams, T segment length, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import likelihood, models, params, perturb
from int_lm.config import EsConfig, ModelConfig
from int_lm.params import Tree


def read(model: ModelConfig, weights: Tree, state: Tree, tokens_PT: Array) -> tuple[Tree, Array]:
    """Read tokens one after another, scoring each by what came before it.

    Args:
      weights: tree of `perturb.Weight`s.
      state: of `initial_state`, leaves [L, P, ...].
      tokens_PT: any integer dtype [P, T+1]; token t+1 is the target of token t.

    Returns:
      The state after token T-1, and log2-likelihoods int32 [T, P] in units of 2^-16 bit.
    """
    architecture = models.get(model.architecture)

    def step(state: Tree, pair: tuple[Array, Array]) -> tuple[Tree, Array]:
        token_P, target_P = pair
        state, logits_PV = architecture.step(weights, state, token_P)
        return state, likelihood.log2_likelihood(logits_PV, target_P)

    tokens_TP = tokens_PT.astype(jnp.int32).T
    return jax.lax.scan(step, state, (tokens_TP[:-1], tokens_TP[1:]))


def chunks(es: EsConfig) -> int:
    """Number of chunks the population is evaluated in."""
    return es.population // es.chunk if es.chunk else 1


def chunk_noise(es: EsConfig, specs: Tree, seed: Array, step: Array, chunk: Array) -> Tree:
    """The perturbations of one chunk's pairs: (A, B) or (n, None) at every leaf."""
    size = es.population // chunks(es) // 2
    pairs_I = chunk * size + jnp.arange(size, dtype=jnp.int32)
    return params.map_leaves(
        lambda spec, tensor: perturb.tensor_noise(es, spec, tensor, seed, step, pairs_I),
        specs,
        params.tensor_ids(specs),
    )


def over_chunks(function: Callable[[Array, Any], Any], es: EsConfig, arguments: Any) -> Any:
    """`function(chunk, arguments[chunk])` for every chunk, one after another, results stacked."""
    count = chunks(es)
    if count == 1:
        results = function(jnp.int32(0), jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], results)
    return jax.lax.map(
        lambda both: function(both[0], both[1]), (jnp.arange(count, dtype=jnp.int32), arguments)
    )


def sum_over_chunks(function: Callable[[Array, Any], Any], es: EsConfig, arguments: Any) -> Any:
    """The sum of `over_chunks`' results, without ever holding more than one of them."""
    count = chunks(es)
    numbers = jnp.arange(count, dtype=jnp.int32)
    first = (numbers[0], jax.tree.map(lambda x: x[0], arguments))
    if count == 1:
        return function(*first)
    zeros = jax.tree.map(
        lambda result: jnp.zeros(result.shape, result.dtype), jax.eval_shape(function, *first)
    )

    def add(total: Any, both: tuple[Array, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*both)), None

    return jax.lax.scan(add, zeros, (numbers, arguments))[0]


def scores(
    model: ModelConfig,
    es: EsConfig,
    specs: Tree,
    weights: Tree,
    state: Tree,
    tokens_ST: Array,
    seed: Array,
    step: Array,
) -> tuple[Array, Tree]:
    """Every member's summed log2-likelihood over its segment.

    Args:
      weights: int8 tree. state: members' states, leaves [L, P, ...].
      tokens_ST: [S, T+1] with S = P / members_per_stream.
      seed, step: uint32 scalars.

    Returns:
      int32 [P] in units of 2^-16 bit, and the members' states after the segment.
    """
    count = chunks(es)

    def one_chunk(chunk: Array, arguments: tuple[Tree, Array]) -> tuple[Array, Tree]:
        state, tokens_ST = arguments
        noises = chunk_noise(es, specs, seed, step, chunk)
        members = params.map_leaves(
            lambda spec, value, noise: perturb.perturbed(es, spec, value, noise),
            specs,
            weights,
            noises,
        )
        tokens_PT = jnp.repeat(tokens_ST, es.members_per_stream, axis=0)
        state, log_likelihoods_TP = read(model, members, state, tokens_PT)
        return jnp.sum(log_likelihoods_TP, axis=0), state

    def split(leaf: Array) -> Array:  # [L, P, ...] -> [chunks, L, P / chunks, ...]
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]), 1, 0)

    def join(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1, *leaf.shape[3:])

    tokens = tokens_ST.reshape(count, -1, tokens_ST.shape[1])
    scores_CP, state = over_chunks(one_chunk, es, (jax.tree.map(split, state), tokens))
    return scores_CP.reshape(-1), jax.tree.map(join, state)
