"""What the C library keeps and gives back."""

import platform

import pytest

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
