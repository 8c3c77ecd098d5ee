"""A segment in one kernel: tiles of members read its tokens with everything they need in caches.

The program of a tile is compiled from what JAX traces of one token (`compile.tiles`), at its first
use, and kept in the user's cache. Without a compiler, on other platforms, for what it cannot
compile, and for work so small that compiling would take longer, JAX computes the same bits.

Axes: P members (or any batch), T tokens of a segment.
"""

import contextlib
import contextvars
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

from int_lm import errors, switches
from int_lm.compile import ranges, tiles
from int_lm.compile.program import UnsupportedError
from int_lm.compile.tiles import Argument, Result
from int_lm.native import build, dispatch

LEAST_WORK = 1 << 24  # multiplications of a segment below which nothing is compiled
CALLED = ("linear", "likelihood", "direct_added", "cache_added")  # by programs of tiles
CALLED_ON_GPU = ("linear", "cache_added")  # what these are: parts of the same kernel
Tree = Any  # of arrays

# (arguments, state, what the token has beside, token int32 [P], target int32 [P]) -> (next state,
# what is kept of the token)
Token = Callable[[Tree, Tree, Tree, Array, Array], tuple[Tree, Tree]]

_log = logging.getLogger(__name__)
Wanted = Literal["where it pays", "always", "never", "interpreted"]
_wanted = contextvars.ContextVar[Wanted]("where segments are read in one", default="where it pays")


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
def segments(when: Wanted) -> Iterator[None]:
    """A context in which traced programs read segments in one kernel, or do not. For tests.

    `interpreted` is for the kernel for GPUs, which is then computed on any platform, slowly.
    """
    before = _wanted.set(when)
    try:
        yield
    finally:
        _wanted.reset(before)


def over_tokens(
    token: Token,
    arguments: Tree,
    members: Tree,
    state: Tree,
    tokens_TP: Array,
    vocab_size: int,
    work: int,
    each: Tree = None,
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
      each: what every token has beside, leaves [T, P, ...] or [T, P/2, ...].

    Returns:
      The state after token T-1, and what was kept of every token, stacked along T in front.
    """

    def by_jax(arguments: Tree, state: Tree, each: Tree, tokens_TP: Array) -> tuple[Tree, Tree]:
        def step(state: Tree, of_token: tuple[Tree, Array, Array]) -> tuple[Tree, Tree]:
            return token(arguments, state, *of_token)

        return jax.lax.scan(step, state, (each, tokens_TP[:-1], tokens_TP[1:]))

    operands = arguments, state, each, tokens_TP
    wanted = _wanted.get()
    if wanted == "never" or (wanted == "where it pays" and work < LEAST_WORK):
        return by_jax(*operands)
    platform = _platform()
    if platform is None or not dispatch.wanted():
        return by_jax(*operands)
    try:
        called = CALLED if platform == "cpu" else CALLED_ON_GPU
        whole = token, arguments, members, state, each, tokens_TP, vocab_size, called
        if platform == "cpu":
            kernel = _kernel(_traced(*whole))
            return jax.lax.platform_dependent(*operands, cpu=kernel, default=by_jax)
        from int_lm.native import gpu  # imports Pallas, which is slow

        kernel = jax.jit(gpu.segment(_traced(*whole), interpret=wanted == "interpreted"))
        jax.eval_shape(kernel, *operands)  # what it cannot do is found when it is traced, once
    except UnsupportedError as error:
        _log.debug("a segment is computed by JAX: %s", error)
        if dispatch.on_gpu():  # where the kernel was asked for
            errors.say(
                f"a segment is computed by JAX, although {switches.GPU_SEGMENTS} is 1: {error}"
            )
        return by_jax(*operands)
    if wanted == "interpreted":
        return kernel(*operands)
    return jax.lax.platform_dependent(*operands, cuda=kernel, default=by_jax)


def _platform() -> Literal["cpu", "cuda"] | None:
    """The platform whose kernel is wanted; None for neither."""
    if _wanted.get() == "interpreted":
        return "cuda"
    if dispatch.on_gpu():
        asked = _wanted.get() == "always" or switches.on(switches.GPU_SEGMENTS)
        return "cuda" if asked else None
    return "cpu" if jax.default_backend() == "cpu" and dispatch.available() else None


@dataclasses.dataclass(frozen=True)
class Traced:
    """The function of one token, as kernels need it.

    Attributes:
      flat: (arguments, tokens, targets) -> [state after the token, what is kept of it].
      arguments: of `flat`.
      states: places of the arguments that are the state before the token.
      results: what is kept of a token.
      whole: the structure of (state after the token, what is kept of it), of arrays' shapes.
      members: P.
      length: T.
    """

    flat: Callable[..., list[Array]]
    arguments: Sequence[Argument]
    states: Sequence[int]
    results: Sequence[Result]
    whole: Tree
    members: int
    length: int

    def unflatten(self, found: Sequence[Array]) -> tuple[Tree, Tree]:
        """What `over_tokens` returns, from what kernels return: T before the axis of members."""
        count = len(self.states)
        stacked = [
            jnp.moveaxis(leaf, result.members, 0)
            for leaf, result in zip(found[count:], self.results, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(self.whole), [*found[:count], *stacked])


def _traced(
    token: Token,
    arguments: Tree,
    members: Tree,
    state: Tree,
    each: Tree,
    tokens_TP: Array,
    vocab_size: int,
    called: Sequence[str],
) -> Traced:
    """What kernels need of a segment.

    Args:
      called: the kernels that are calls in the function of one token.

    Raises:
      UnsupportedError: they cannot have it.
    """
    tree = jax.tree.structure((arguments, state, each))
    (length, population), first = tokens_TP.shape, len(jax.tree.leaves(arguments))
    places = jax.tree.leaves(members)
    known = [
        _argument(leaf, leaf.shape, place, is_state=False)
        for leaf, place in zip(jax.tree.leaves(arguments), places, strict=True)
    ]
    known += [
        _argument(leaf, leaf.shape, Members(1), is_state=True) for leaf in jax.tree.leaves(state)
    ]
    states = list(range(first, len(known)))
    known += [_of_token(leaf, population) for leaf in jax.tree.leaves(each)]
    known += [Argument((population,), "int32", 0, 1, 0, vocab_size - 1)] * 2

    def flat(*operands: Array) -> list[Array]:
        trees = jax.tree.unflatten(tree, operands[:-2])
        with dispatch.kernels_alone(called):
            return jax.tree.leaves(token(*trees, *operands[-2:]))

    structs = [jax.ShapeDtypeStruct(a.shape, np.dtype(a.dtype)) for a in known]
    whole = jax.eval_shape(token, *jax.tree.unflatten(tree, structs[:-2]), structs[-2], structs[-1])
    results = _results(flat, known, whole, population)
    return Traced(flat, known, states, results, whole, population, length - 1)


def _kernel(traced: Traced) -> Callable[[Tree, Tree, Tree, Array], tuple[Tree, Tree]]:
    """The kernel for CPUs of a segment, with the arguments of `by_jax`.

    Raises:
      UnsupportedError: there is none.
    """
    results, population, length = traced.results, traced.members, traced.length
    program = tiles.source(
        traced.flat, traced.arguments, traced.states, results, population, _threads()
    )
    number = loaded(program.text)
    after = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.whole[0])
    kept = [
        jax.ShapeDtypeStruct(
            (*r.shape[: r.members], length, *r.shape[r.members :]), np.dtype(r.dtype)
        )
        for r in results
    ]
    call = jax.ffi.ffi_call("int_lm_segment", [*jax.tree.leaves(after), *kept])

    def kernel(arguments: Tree, state: Tree, each: Tree, tokens_TP: Array) -> tuple[Tree, Tree]:
        operands = [*jax.tree.leaves((arguments, state, each)), tokens_TP[:-1], tokens_TP[1:]]
        found = call(
            *operands,
            program=np.int64(number),
            members=np.int64(population),
            length=np.int64(length),
            tile=np.int64(program.tile),
            matrices=np.array(program.matrices, np.int64).reshape(-1),
        )
        return traced.unflatten(found)

    return kernel


def at_once() -> int | None:
    """Members that a processor's threads read at once, a tile each; None without its kernels.

    More members side by side are not read faster, and their states take more memory.
    """
    return tiles.MEMBERS[0] * _threads() if _platform() == "cpu" else None


def _threads() -> int:
    """Threads that XLA computes with."""
    own = getattr(os, "sched_getaffinity", None)
    return (len(own(0)) if own else os.cpu_count()) or 1


def _argument(
    leaf: Array, shape: tuple[int, ...], place: Members, *, is_state: bool, each: bool = False
) -> Argument:
    dtype = str(leaf.dtype)
    if dtype not in ranges.BITS or dtype == "bool":
        raise UnsupportedError(f"an argument of dtype {dtype}")
    low, high = ranges.limits(dtype)
    low = low if is_state else -high
    return Argument(tuple(shape), dtype, place.axis, place.group, low, high, each)


def _of_token(leaf: Array, population: int) -> Argument:
    """What every token has beside, of all members or all pairs: [T, P, ...] or [T, P/2, ...]."""
    group = population // leaf.shape[1]
    if group not in (1, 2) or group * leaf.shape[1] != population:
        raise UnsupportedError("an argument of other groups than pairs")
    return _argument(leaf, leaf.shape[1:], Members(0, group), is_state=True, each=True)


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
    number, path = build.compiled(text, dispatch.supported()[0])
    if path is None:
        raise UnsupportedError("no compiler could compile it")
    error = dispatch.shared_library().int_lm_add_tile(number, os.fsencode(path))
    if error is not None:  # damaged, or where no program may be
        path.unlink(missing_ok=True)
        raise UnsupportedError(f"{path} cannot be loaded: {os.fsdecode(error)}")
    return number
