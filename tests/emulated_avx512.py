"""A pytest plugin: the kernels' paths of VNNI and AVX-VNNI, emulated, in place of those built.

    PYTHONPATH=tests python -m pytest -p emulated_avx512 tests/test_native.py

AVX2 is what it takes. It says nothing about speed.
"""

import shutil
import tempfile
from pathlib import Path

import pytest

from int_lm.native import build

HEADER = Path(__file__).with_suffix(".h")


def pytest_configure(config: pytest.Config) -> None:
    """Build the emulation, and let the kernels be found there."""
    directory = Path(tempfile.mkdtemp(prefix="emulated-avx512-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, directory)
    kernels = directory / "kernels.cc"
    kernels.write_text(f'#include "{HEADER}"\n{kernels.read_text()}')
    build.HERE = directory
    build.OPTIONS = dict.fromkeys(build.OPTIONS, build.OPTIONS["avx2"])  # of programs of tiles
    said = build.build()
    if not build.library().exists():
        raise pytest.UsageError(said)
