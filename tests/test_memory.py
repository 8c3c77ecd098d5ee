"""What the C library keeps and gives back, and pages."""

import os
import platform
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from int_lm.training import memory

TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage")

SCRIPT = """
import resource
import numpy as np
from int_lm.training import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

mapped = [faults() for _ in range(3)][-1]
memory.keep()
faults()
kept = faults()
memory.trim()
print(mapped, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_what_is_freed_is_kept_until_it_is_given_back(run_command) -> None:
    """80 MB: no page of them faults a second time once `keep` was called, and all after `trim`."""
    done = run_command("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    mapped, kept, trimmed = map(int, done.stdout.split())
    assert kept < mapped / 10 and kept < trimmed / 10, done.stdout


HEAPS = """
import ctypes, sys, threading
from int_lm.training import memory

if sys.argv[1] == "one":
    memory.one_heap()
library = ctypes.CDLL(None)
library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
all_there, found = threading.Barrier(8), []

def take():
    all_there.wait()
    found.append(library.malloc(1000) < library.sbrk(0))  # in the heap of the main thread
    all_there.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
@pytest.mark.parametrize("heaps", ["one", "several"])
def test_threads_allocate_from_one_heap(heaps: str, run_command) -> None:
    """Eight at a time, each of which would have a heap of its own."""
    done = run_command("-c", HEAPS, heaps)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) == (heaps == "one")


@pytest.mark.skipif(not TRANSPARENT.exists(), reason="this system has pages of one size")
def test_large_arrays_lie_on_large_pages() -> None:
    """64 MB, where they were, with the same entries."""
    array = jnp.arange(1 << 24, dtype=jnp.int32)
    address, before = array.unsafe_buffer_pointer(), large_pages_of(os.getpid())
    memory.large_pages({"table": array, "count": jnp.zeros(3)})
    assert array.unsafe_buffer_pointer() == address
    assert (np.asarray(array) == np.arange(1 << 24)).all()
    assert large_pages_of(os.getpid()) - before >= 60 << 20


def large_pages_of(process: int) -> int:
    """Bytes of a process that lie on large pages."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("AnonHuge"))
