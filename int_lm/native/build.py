"""Compiles the kernels for CPUs, once for each combination of sources, jaxlib and machine type."""

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from int_lm import cache, limits
from int_lm.arithmetic import constants, fixed

HERE = Path(__file__).parent
PROCESSORS = ("avx512", "vnni", "wide", "avx2", "x86", "neon")
PARTS = ("kernels", "vectors", "tile", "outer", "credit", "votes", "direct", "cache", "hash")
PARTS += ("segment", "handlers", "back", "back_handlers")
SOURCES = ("kernels.cc", *(f"{part}.inc" for part in (*PROCESSORS, *PARTS)))
COMPILERS = ("c++", "g++", "clang++")
X86, ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")  # Linux says aarch64, macOS arm64
SHARED = {  # names of the constants that the sources use, by the module that defines them
    limits: (
        *("LOG2_FRACTION_BITS", "NO_TARGET", "SEPARATOR"),
        *("CACHE_SLOTS", "CACHE_RUN_BITS", "CACHE_CHECK_BITS", "CACHE_TOKEN_BITS"),
    ),
    fixed: (
        *("Q4_BITS", "CREDIT_BITS", "CREDIT_FRACTION_BITS", "ALONG_BITS", "DIVIDEND_BITS"),
        *("CREDIT_SUM_BITS", "CREDIT_TERM_BITS"),
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
    return platform.machine() in (*X86, *ARM) and os.name == "posix"


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


# -- Programs of tiles -----------------------------------------------------------------------------

KEPT = 64  # programs in the user's cache, at most
WIDE = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
OPTIONS = {  # of the compiler, by the instruction set of the kernels (dispatch.supported)
    **{"vnni": WIDE, "avx_vnni": ("-mavx2",), "avx2": ("-mavx2",)},
    **{"dotprod": (), "neon": ()},  # what programs of tiles do, every ARM of 64 bits does
}


def compiled(text: str, instructions: str) -> tuple[int, Path | None]:
    """A shared library of a program in C, compiled unless the cache has it.

    Args:
      text: C code.
      instructions: an instruction set, a key of OPTIONS.

    Returns:
      A number that stands for the program, 63 bits of its digest; the path of the library, None
      if no compiler could make it.
    """
    options = ["-O3", "-std=c11", "-fPIC", "-shared", "-w", "-fno-builtin"]
    options += OPTIONS[instructions]
    made_for = sys.platform, platform.machine()
    digest = hashlib.blake2b("\n".join([*made_for, *options, text]).encode(), digest_size=16)
    number = int.from_bytes(digest.digest()[:8], "little") >> 1
    try:
        folder = cache.folder() / "tiles"
        path = folder / f"{digest.hexdigest()}.so"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            os.utime(path)  # the programs used last are kept
            return number, path
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            fresh, code = Path(directory) / path.name, Path(directory) / "tile.c"
            code.write_text(text)
            for compiler in COMPILERS:
                command = [compiler, "-x", "c", *options, "-o", str(fresh), str(code)]
                try:
                    done = subprocess.run(command, capture_output=True, timeout=600)
                except (OSError, subprocess.TimeoutExpired):
                    continue
                if done.returncode == 0:
                    os.replace(fresh, path)
                    break
        made = sorted(folder.glob("*.so"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in made[KEPT:]:
            old.unlink(missing_ok=True)
        return number, path if path.exists() else None
    except (OSError, RuntimeError):  # the cache cannot be written to; there is no home
        return number, None
