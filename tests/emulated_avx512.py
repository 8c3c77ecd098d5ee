"""A pytest plugin: the kernels' path of AVX-512 with VNNI, emulated, in place of those built.

    PYTHONPATH=tests python -m pytest -p emulated_avx512 tests/test_native.py

AVX2 is what it takes. It says nothing about speed.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import pytest

from int_lm import native

HEADER = Path(__file__).with_suffix(".h")


def pytest_configure(config: pytest.Config) -> None:
    """Build the emulation, and let the kernels be found there."""
    directory = Path(tempfile.mkdtemp(prefix="emulated-avx512-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    for name in native.SOURCES:
        shutil.copy(native.HERE / name, directory)
    native.HERE = directory
    compiler = next(filter(shutil.which, native.COMPILERS), None)
    if compiler is None:
        raise pytest.UsageError("no C++ compiler to build the emulation with")
    command = [compiler, "-O1", "-std=c++17", "-fPIC", "-shared", "-w", "-Wno-psabi", "-pthread"]
    command += [f"-I{jax.ffi.include_dir()}", "-include", os.fspath(HEADER)]
    command += ["-o", os.fspath(native.library()), os.fspath(directory / "kernels.cc")]
    subprocess.run(command, check=True)
