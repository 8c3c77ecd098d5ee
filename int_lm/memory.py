"""Memory that the C library keeps although nobody uses it any more."""

import ctypes
import sys


def trim() -> None:
    """Give it back to the system; after a compilation that is some 200 MB.

    GNU's C library alone is asked, others keep less.
    """
    if sys.platform == "linux" and (give_back := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        give_back(0)
