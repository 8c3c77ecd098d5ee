"""Memory of this process: the most it has had, and what the C library keeps without need."""

import ctypes
import resource
import sys


def peak(usage: resource.struct_rusage | None = None) -> int:
    """The most bytes that have been resident: here so far, or by the `usage` of another process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss


def trim() -> None:
    """Give back to the system what nobody uses any more; after a compilation that is some 200 MB.

    GNU's C library alone is asked, others keep less.
    """
    if sys.platform == "linux" and (give_back := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        give_back(0)
