"""Chunks: parts of a device's members that are evaluated together, to save memory and fit caches.

The size of a chunk changes memory and speed; it changes no bit of the result.

Axes: P members, I pairs of a chunk, C chunks, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.limits import together
from int_lm.model.params import Tree
from int_lm.settings import ModelSettings, StrategySettings

CACHED_MEMBERS = 512  # the activations of so many members, and most records, fit the CPU's caches
RECORDED = 1 << 20  # members x layers x width: what records of a token take grows with it


def size(es: StrategySettings, devices: int = 1, model: ModelSettings | None = None) -> int:
    """Number of members that a device evaluates at once.

    A chunk holds all members of one or more streams and whole pairs, and its size divides the
    members of one device. The largest such size within a limit is taken:

        es.chunk > 0    the limit is `es.chunk`
        es.chunk = 0    on CPUs `CACHED_MEMBERS`, or as many members of a large `model` as
                        `RECORDED` allows, or es.members_per_stream if that is more; on other
                        platforms there is no limit

    With es.chunk = 0, a result below half of that is replaced by all members of the device.
    """
    share, readers = es.population // devices, together(es)
    fitting = RECORDED // (model.layers * model.width) if model else CACHED_MEMBERS
    cached = max(min(CACHED_MEMBERS, fitting), readers)
    most = es.chunk or (cached if jax.default_backend() == "cpu" else share)
    sizes = range(readers, min(most, share) + 1, readers)
    largest = max(size for size in sizes if share % size == 0)
    return share if not es.chunk and largest < cached // 2 else largest


def pairs(es: StrategySettings, devices: int = 1, model: ModelSettings | None = None) -> Array:
    """Indices of the pairs of every chunk, on all devices together: int32 [C, I]."""
    return jnp.arange(es.population // 2, dtype=jnp.int32).reshape(
        -1, size(es, devices, model) // 2
    )


def over(
    function: Callable[[Array, Any], tuple[Any, Any]], pairs_CI: Array, arguments: Any
) -> tuple[Any, Any]:
    """Call `function(pairs_I, arguments of the chunk)` for some chunks, one after another.

    Args:
      function: returns two trees of arrays.
      pairs_CI: indices of the pairs of these chunks, int32.
      arguments: a tree with leaves [C, ...]; each call gets its entries without the axis C.

    Returns:
      The first trees, stacked along a new leading axis C, and the sum of the second trees. Memory
      holds the sum and one more second tree, never all C of them.
    """
    first = (pairs_CI[0], jax.tree.map(lambda x: x[0], arguments))
    if len(pairs_CI) == 1:
        stacked, summed = function(*first)
        return jax.tree.map(lambda x: x[None], stacked), summed
    zeros = jax.tree.map(
        lambda result: jnp.zeros(result.shape, result.dtype), jax.eval_shape(function, *first)[1]
    )

    def add(total: Any, both: tuple[Array, Any]) -> tuple[Any, Any]:
        stacked, summed = function(*both)
        return jax.tree.map(jnp.add, total, summed), stacked

    total, stacked = jax.lax.scan(add, zeros, (pairs_CI, arguments))
    return stacked, total


def split_members(count: int, state: Tree) -> Tree:
    """Split the members of a state: leaves [L, P, ...] become [count, L, P / count, ...]."""

    def split(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]), 1, 0)

    return jax.tree.map(split, state)


def join_members(state: Tree) -> Tree:
    """The inverse of `split_members`."""

    def join(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], -1, *leaf.shape[3:])

    return jax.tree.map(join, state)
