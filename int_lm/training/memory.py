"""Memory of this process: its peak, and whether the C library keeps or returns freed memory."""

import ctypes
import resource
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of GNU's <malloc.h>


def peak(usage: resource.struct_rusage | None = None) -> int:
    """The largest resident size so far, in bytes.

    Args:
      usage: of another process; None for this one.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss


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


def _of_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
