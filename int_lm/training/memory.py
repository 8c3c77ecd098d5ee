"""Memory of this process: its peak, what the C library keeps of it, and the size of its pages."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of GNU's <malloc.h>
_LARGE_PAGE = 1 << 21  # bytes
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of Linux's <linux/mman.h>


def peak(usage: resource.struct_rusage | None = None) -> int:
    """The largest resident size so far, in bytes.

    Args:
      usage: of another process; None for this one.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss


def one_heap() -> None:
    """Let threads that start from now on allocate from one heap. Call it before JAX is used.

    GNU's C library gives every thread a heap, and what the threads of a compilation free stays in
    theirs, where nothing else finds it. With other libraries this does nothing.
    """
    if set_option := _of_c_library("mallopt"):
        set_option(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def returned() -> Iterator[None]:
    """A context, or a decorator, for work beside the steps, which returns what steps have kept.

    What it frees itself is returned at its end.
    """
    trim()
    try:
        yield
    finally:
        trim()


def trim() -> None:
    """Return freed memory to the system: some 200 MB after a compilation.

    Only GNU's C library is told to do so; others keep less. Elsewhere this does nothing.
    """
    if give_back := _of_c_library("malloc_trim"):
        give_back(0)


def keep() -> None:
    """Keep memory that is freed from now on, for later allocations. `trim` still returns it.

    A step needs some 40 MB of temporary memory. GNU's C library would return them after every step
    and map them again, page by page, in the next one. With other libraries this does nothing.
    """
    if set_option := _of_c_library("mallopt"):
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


def large_pages(tree: Any) -> None:
    """Ask Linux to hold the arrays of a tree on pages of 2 MB, from now on.

    Rows of context tables and of document caches lie anywhere in hundreds of megabytes. On pages of
    4 kB nearly every row is a miss of the processor's table of pages, too. A system that refuses,
    or is none of Linux, leaves the pages as they are.

    Args:
      tree: JAX arrays; only those on CPUs are moved, which keeps their addresses.
    """
    if not (advise := _of_c_library("madvise")):
        return
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            if shard.device.platform != "cpu":
                continue
            begin = shard.data.unsafe_buffer_pointer()
            first = -(-begin // _LARGE_PAGE) * _LARGE_PAGE
            size = (begin + shard.data.nbytes) // _LARGE_PAGE * _LARGE_PAGE - first
            if size > 0:
                for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
                    advise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)


def _of_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
