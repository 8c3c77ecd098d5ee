"""Memory of this process: the most it has had, and what the C library keeps and gives back."""

import ctypes
import resource
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of GNU's <malloc.h>


def peak(usage: resource.struct_rusage | None = None) -> int:
    """The most bytes that have been resident: here so far, or by the `usage` of another process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss


def trim() -> None:
    """Give back to the system what nobody uses any more; after a compilation that is some 200 MB.

    GNU's C library alone is asked, others keep less.
    """
    if give_back := _of_c_library("malloc_trim"):
        give_back(0)


def keep() -> None:
    """Keep what is freed from now on, until `trim`, for whoever needs as much next.

    A step's scratch memory is some 40 MB, which GNU's C library would map anew, page by page, in
    every step. Other libraries are left alone.
    """
    if set_option := _of_c_library("mallopt"):
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


def _of_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
