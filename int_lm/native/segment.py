"""A segment in one kernel: tiles of members read its tokens with everything they need in caches.

The program of a tile is compiled from what JAX traces of one token (`compile.tiles`), at its first
use, and kept in the user's cache. Without a compiler, on other platforms, for what it cannot
compile, and for work so small that compiling would take longer, JAX computes the same bits.

Axes: P members (or any batch), T tokens of a segment.
"""

import contextlib
import ctypes
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.compile import ranges, tiles
from int_lm.compile.program import UnsupportedError
from int_lm.compile.tiles import Argument, Result
from int_lm.native import build, dispatch

LEAST_WORK = 1 << 24  # multiplications of a segment below which nothing is compiled
# what programs of tiles leave to kernels
CALLED = ("linear", "likelihood", "direct_added", "cache_added")
Tree = Any  # of arrays

# (arguments, state, token int32 [P], target int32 [P], what is given with the token)
#   -> (next state, what is kept of the token)
Token = Callable[[Tree, Tree, Array, Array, Tree], tuple[Tree, Tree]]

_log = logging.getLogger(__name__)
_wanted: Literal["where it pays", "always", "never"] = "where it pays"


@dataclasses.dataclass(frozen=True)
class Members:
    """Where the members of an array are.

    Attributes:
      axis: their axis; None for an array that all share.
      group: members that one entry of this axis stands for: 2 for an array of pairs.
    """

    axis: int | None = None
    group: int = 1


@contextlib.contextmanager
def segments(when: Literal["where it pays", "always", "never"]) -> Iterator[None]:
    """A context in which traced programs read segments in one kernel, or do not. For tests."""
    global _wanted
    before, _wanted = _wanted, when
    try:
        yield
    finally:
        _wanted = before


def over_tokens(
    token: Token,
    arguments: Tree,
    members: Tree,
    state: Tree,
    tokens_TP: Array,
    vocab_size: int,
    work: int,
    given: Tree = None,
) -> tuple[Tree, Tree]:
    """Read tokens one after another; token t+1 is the target of token t.

    Args:
      token: reads one token. It must treat all members alike, or all pairs.
      arguments: its first arguments: int8 in [-127, 127], the same for all tokens.
      members: a `Members` for every array of `arguments`.
      state: the state before the first token, leaves [..., P, ...] with the members at axis 1.
      tokens_TP: int32 [T+1, P], below `vocab_size`.
      vocab_size: V.
      work: multiplications of the segment, about.
      given: what else `token` takes of every token, leaves [T, P or P / 2, ...]; None for nothing.

    Returns:
      The state after token T-1, and what was kept of every token, stacked along T in front.
    """

    def by_jax(arguments: Tree, state: Tree, tokens_TP: Array, given: Tree) -> tuple[Tree, Tree]:
        def step(state: Tree, of_token: tuple[Array, Array, Tree]) -> tuple[Tree, Tree]:
            return token(arguments, state, *of_token)

        return jax.lax.scan(step, state, (tokens_TP[:-1], tokens_TP[1:], given))

    operands = arguments, state, tokens_TP, given
    if _wanted == "never" or (_wanted == "where it pays" and work < LEAST_WORK):
        return by_jax(*operands)
    if jax.default_backend() != "cpu" or not dispatch.wanted() or not dispatch.available():
        return by_jax(*operands)
    try:
        kernel = _kernel(token, arguments, members, state, tokens_TP, given, vocab_size)
    except UnsupportedError as error:
        _log.debug("a segment is computed by JAX: %s", error)
        return by_jax(*operands)
    return jax.lax.platform_dependent(*operands, cpu=kernel, default=by_jax)


def _kernel(
    token: Token,
    arguments: Tree,
    members: Tree,
    state: Tree,
    tokens_TP: Array,
    given: Tree,
    vocab_size: int,
) -> Callable[[Tree, Tree, Array, Tree], tuple[Tree, Tree]]:
    """The kernel of a segment, with the arguments of `by_jax`.

    Raises:
      UnsupportedError: there is none.
    """
    leaves, tree = jax.tree.flatten((arguments, state, given))
    first, after = (len(jax.tree.leaves(part)) for part in (arguments, (arguments, state)))
    length, population = tokens_TP.shape
    places = [*jax.tree.leaves(members), *([Members(1)] * (after - first))]
    known = [
        _argument(leaf, place, is_weight=k < first)
        for k, (leaf, place) in enumerate(zip(leaves, places, strict=False))
    ]
    known += [_given(leaf, population) for leaf in leaves[after:]]
    known += [Argument((population,), "int32", 0, 1, 0, vocab_size - 1)] * 2

    def in_order(operands: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of `token`."""
        arguments, state, given = jax.tree.unflatten(tree, operands[:-2])
        return arguments, state, *operands[-2:], given

    def flat(*operands: Array) -> list[Array]:
        with dispatch.kernels_alone(CALLED):
            return jax.tree.leaves(token(*in_order(operands)))

    structs = [jax.ShapeDtypeStruct(a.shape, np.dtype(a.dtype)) for a in known]
    whole = jax.eval_shape(token, *in_order(structs))
    results, states = _results(flat, known, whole, population), list(range(first, after))
    program = tiles.source(flat, known, states, results, population, _threads())
    number = loaded(program.text)
    following = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), whole[0])
    kept = [
        jax.ShapeDtypeStruct(
            (*r.shape[: r.members], length - 1, *r.shape[r.members :]), np.dtype(r.dtype)
        )
        for r in results
    ]
    call = jax.ffi.ffi_call("int_lm_segment", [*jax.tree.leaves(following), *kept])

    def kernel(arguments: Tree, state: Tree, tokens_TP: Array, given: Tree) -> tuple[Tree, Tree]:
        operands = [*jax.tree.leaves((arguments, state, given)), tokens_TP[:-1], tokens_TP[1:]]
        found = call(
            *operands,
            program=np.int64(number),
            members=np.int64(population),
            length=np.int64(length - 1),
            tile=np.int64(program.tile),
            matrices=np.array(program.matrices, np.int64).reshape(-1),
        )
        stacked = [
            jnp.moveaxis(leaf, result.members, 0)
            for leaf, result in zip(found[len(states) :], results, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(whole), [*found[: len(states)], *stacked])

    return kernel


def _threads() -> int:
    """Threads that XLA computes with."""
    own = getattr(os, "sched_getaffinity", None)
    return (len(own(0)) if own else os.cpu_count()) or 1


def _argument(leaf: Array, place: Members, *, is_weight: bool) -> Argument:
    dtype = str(leaf.dtype)
    if dtype not in ranges.BITS or dtype == "bool":
        raise UnsupportedError(f"an argument of dtype {dtype}")
    low, high = ranges.limits(dtype)
    low = -high if is_weight else low
    return Argument(tuple(leaf.shape), dtype, place.axis, place.group, low, high)


def _given(leaf: Array, population: int) -> Argument:
    """Of an array [T, P or P / 2, ...]: what one token takes of it."""
    of_token = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    argument = _argument(of_token, Members(0, population // leaf.shape[1]), is_weight=False)  # type: ignore[arg-type]
    return dataclasses.replace(argument, each_token=True)


def _results(
    flat: Callable[..., list[Array]], known: Sequence[Argument], whole: Tree, population: int
) -> list[Result]:
    """What is kept of a token; the axis of the members is the one that grows with them."""
    few = 2 if population != 2 else 4
    structs = [jax.ShapeDtypeStruct(a.of_tile(few), np.dtype(a.dtype)) for a in known]
    smaller, results = jax.eval_shape(flat, *structs), []
    states = len(jax.tree.leaves(whole[0]))
    for of_all, of_few in zip(jax.tree.leaves(whole[1]), smaller[states:], strict=True):
        axes = [k for k, size in enumerate(of_all.shape) if size != of_few.shape[k]]
        dtype = str(of_all.dtype)
        if len(axes) != 1 or population % of_all.shape[axes[0]] or dtype not in ranges.BITS:
            raise UnsupportedError("a result that has no axis of members")
        group = population // of_all.shape[axes[0]]
        if group not in (1, 2) or dtype == "bool":
            raise UnsupportedError("a result of other groups than pairs")
        results.append(Result(tuple(of_all.shape), dtype, axes[0], group))
    return results


@functools.cache
def loaded(text: str) -> int:
    """The number of a program of `compile.tiles`, compiled, loaded and known to the kernels.

    Raises:
      UnsupportedError: no compiler could compile it, or it cannot be loaded.
    """
    kernels = ctypes.CDLL(str(build.library()))
    number, path = build.compiled(text, wide=kernels.int_lm_supported() == 2)
    if path is None:
        raise UnsupportedError("no compiler could compile it")
    try:
        tile = ctypes.CDLL(str(path)).int_lm_tile
    except (OSError, AttributeError) as error:  # damaged, or where no program may be
        path.unlink(missing_ok=True)
        raise UnsupportedError(f"{path} cannot be loaded: {error}") from error
    kernels.int_lm_add_tile.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    kernels.int_lm_add_tile(number, ctypes.cast(tile, ctypes.c_void_p))
    return number
