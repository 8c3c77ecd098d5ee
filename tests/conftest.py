"""What every test shares: strict JAX on eight pretended CPU devices, and a way to run commands."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = os.environ.get("JAX_PLATFORMS") or "cpu"

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example of a test compiles. Derandomised: a failure appears every time.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compilation without most optimisations: it takes longer than most of what is computed here.

    The bits are the same with and without. Tests marked `optimised` have all of them.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    quick = request.node.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def command_environment() -> dict[str, str]:
    """Environment for programs of this repository: its packages importable from anywhere."""
    return {**os.environ, "JAX_PLATFORMS": PLATFORM, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.fixture
def run_command(tmp_path: Path, command_environment: dict[str, str]) -> RunCommand:
    """Run a program of this repository to its end, in an empty directory and without input.

    `run_command("train.py", "--help")` and `run_command("-m", "int_lm.sample", "--help")` start
    Python; the result carries `returncode`, `stdout` and `stderr` (text).

    Keyword arguments: `timeout` in seconds (600), `env` with additions to the environment, `cwd`
    in place of the test's `tmp_path`.
    """

    def run(
        program: str | Path,
        *arguments: str | Path,
        timeout: float = 600,
        env: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
    ) -> subprocess.CompletedProcess[str]:
        script = ROOT / program if str(program).endswith(".py") else program
        return subprocess.run(
            [sys.executable, script, *arguments],
            cwd=cwd,
            env={**command_environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
