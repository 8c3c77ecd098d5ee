"""Compiles the kernels for CPUs, once for each combination of sources, jaxlib and machine type."""

import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import jax

from int_lm import limits
from int_lm.arithmetic import constants, fixed

HERE = Path(__file__).parent
PARTS = ("vectors", "tile", "outer", "credit", "direct", "hash", "handlers")
SOURCES = ("kernels.cc", *(f"{part}.inc" for part in PARTS))
COMPILERS = ("c++", "g++", "clang++")
SHARED = {  # names of the constants that the sources use, by the module that defines them
    limits: ("LOG2_FRACTION_BITS", "NO_TARGET"),
    fixed: (
        *("Q4_BITS", "CREDIT_BITS", "CREDIT_FRACTION_BITS", "ALONG_BITS", "DIVIDEND_BITS"),
        *("DIRECT_STEP_BITS", "DIRECT_MEAN_BITS", "MIX_FIRST", "MIX_SECOND"),
        *("GOLDEN_RATIO", "DITHER_COLUMN", "DITHER_POSITION"),
    ),
    constants: (
        *("LOGIT_UNIT_BITS", "DISTANCE_MAX", "NARROW_VOCABULARY", "NARROW_BITS", "WIDE_BITS"),
        *("OCTAVE_BITS", "LOG2_INDEX_BITS", "LOG2_TABLE_BITS", "LOG2_REST_BITS"),
        *("EXP2_INDEX_BITS", "EXP2_FRACTION_BITS", "ERROR_BITS", "ERROR_FACTOR_BITS"),
        *("ROOT_INDEX_BITS", "ROOT_BITS"),
    ),
}


def definitions() -> list[str]:
    """The shared constants as options of the compiler: -DNAME=VALUE."""
    values = {name: getattr(home, name) for home, names in SHARED.items() for name in names}
    # without the suffix, a value of 2^31 or more would be a 64-bit integer in C++
    return [f"-D{name}={value}{'u' * (value >= 2**31)}" for name, value in values.items()]


def possible() -> bool:
    """Whether there are kernels for the processors and the system of this machine."""
    return platform.machine() in ("x86_64", "AMD64") and os.name == "posix"


def library() -> Path:
    """The path of the built kernels. Its name has a digest of sources, jaxlib and machine type."""
    import jaxlib.version

    digest = hashlib.blake2b(digest_size=6)
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    built_for = jaxlib.version.__version__, platform.machine(), *definitions()
    digest.update(" ".join(built_for).encode())
    return HERE / f"kernels-{digest.hexdigest()}.so"


def build() -> str:
    """Compile the kernels, unless they exist, and delete older ones.

    Returns:
      One sentence: whether there are kernels, and why not.
    """
    if not possible():
        return f"no kernels for {platform.machine()}: JAX computes everything"
    path = library()
    if path.exists():
        return f"kernels are built: {path.name}"
    if not os.access(HERE, os.W_OK):
        return f"no kernels: {HERE} cannot be written to; JAX computes everything"
    with tempfile.TemporaryDirectory(dir=HERE) as directory:
        fresh = Path(directory) / path.name
        for compiler in COMPILERS:
            command = [compiler, "-O3", "-std=c++17", "-fPIC", "-shared", "-w", "-pthread"]
            command += [*definitions(), f"-I{jax.ffi.include_dir()}"]
            command += ["-o", str(fresh), str(HERE / "kernels.cc")]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                for old in HERE.glob("kernels-*.so"):
                    old.unlink(missing_ok=True)
                fresh.replace(path)
                return f"kernels built with {compiler}: {path.name}"
    return "no C++ compiler could build the kernels: JAX computes everything"
