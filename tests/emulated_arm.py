"""A pytest plugin: the kernels of ARM, emulated by QEMU, in place of those built.

    PYTHONPATH=tests python -m pytest -p emulated_arm tests/test_native.py

JAX and the tests run on this machine, and every kernel on an ARM of 64 bits: see emulated_arm.cc.
So do the programs of tiles that are compiled when they are needed. It says nothing about speed.

Debian's packages: g++-aarch64-linux-gnu, qemu-user. EMULATED_ARM names the processor, as QEMU does:
`max` has dot products, `cortex-a53` has none.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import pytest

from int_lm.native import build, dispatch

SOURCE = Path(__file__).with_suffix(".cc")
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIBRARIES = "/usr/aarch64-linux-gnu"  # of ARM, where Debian puts them
PROCESSOR = os.environ.get("EMULATED_ARM", "max")


def possible() -> bool:
    """Whether this machine has what it takes."""
    return all(map(shutil.which, ("c++", COMPILER, EMULATOR)))


def compiled(compiler: str, out: Path, *options: str) -> None:
    """Compile one end of the pipe."""
    options = (*options, "-std=c++17", "-w", "-pthread", *build.definitions())
    folders = [f"-I{build.HERE}", f"-I{jax.ffi.include_dir()}"]
    subprocess.run([compiler, *options, *folders, "-o", out, SOURCE], check=True)


def pytest_configure(config: pytest.Config) -> None:
    """Build both ends, start the emulator, and let the kernels be found there."""
    directory = Path(tempfile.mkdtemp(prefix="emulated-arm-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    program = directory / "kernels"
    compiled(COMPILER, program, "-O3", "-rdynamic", "-ldl")
    names = subprocess.run(
        ["aarch64-linux-gnu-nm", "-D", program], capture_output=True, text=True, check=True
    ).stdout.split()
    others = {"int_lm_kernels", "int_lm_instructions", "int_lm_use", "int_lm_add_tile"}
    kernels = [name for name in names if name.startswith("int_lm_") and name not in others]
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, directory)
    build.HERE = directory
    relays = " ".join(f"RELAY({name})" for name in kernels)
    compiled("c++", build.library(), "-O1", "-fPIC", "-shared", f"-DEVERY_KERNEL={relays}")
    build.COMPILERS = (COMPILER,)
    command = [EMULATOR, "-L", LIBRARIES, "-cpu", PROCESSOR, program]
    emulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert emulator.stdin is not None and emulator.stdout is not None
    library = ctypes.CDLL(str(build.library()))
    library.connect_pipe(emulator.stdout.fileno(), emulator.stdin.fileno())
    config.add_cleanup(lambda: _ended(emulator))


def pytest_report_header() -> str:
    """What is emulated."""
    return f"kernels: {PROCESSOR}, emulated; {', '.join(dispatch.supported())}"


def _ended(emulator: subprocess.Popen[bytes]) -> None:
    emulator.communicate(timeout=60)  # the end of its input ends it
