"""Shared by tests: strict JAX on eight simulated devices, a compilation cache, runs of commands."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import jax
import pytest
from tiny_command import train_arguments, write_text

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = os.environ.get("JAX_PLATFORMS") or "cpu"
# A part of XLA that makes faster programs and takes half of the time of compiling; `USERS` has it.
QUICK_FLAG = "--xla_cpu_use_fusion_emitters=false"
USERS = {"xla_cpu_use_fusion_emitters": True}  # `compiler_options` as without `QUICK_FLAG`
USERS_FLAGS = os.environ.get("XLA_FLAGS", "").replace(QUICK_FLAG, "").strip()
os.environ["XLA_FLAGS"] = f"{USERS_FLAGS} {QUICK_FLAG}".strip()

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts the tests in the background has them ignore SIGINT, and their programs, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first example of a test compiles. Derandomised: a failure appears every time.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A compilation cache for this process and for the programs that tests start.

    Each of the processes that run tests in parallel has its own cache. JAX writes entries in place,
    and a process that reads an unfinished entry of another one prints a warning. Yields the
    environment variables that make JAX use the cache.
    """
    settings = {
        "compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "persistent_cache_min_compile_time_secs": 0,
        "persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, f"jax_{name}") for name in settings}
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
    yield {f"JAX_{name.upper()}": str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)


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


@pytest.fixture(scope="session")
def command_environment(compilation_cache: dict[str, str]) -> dict[str, str]:
    """Environment for programs of this repository: its packages can be imported anywhere."""
    own = {"JAX_PLATFORMS": PLATFORM, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes longer than the computation
    return {**os.environ, **compilation_cache, **own}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file."""
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session")
def whole(
    text: Path, tmp_path_factory: pytest.TempPathFactory, command_environment: dict[str, str]
) -> tuple[Path, str]:
    """A finished run of `train.py` that nothing disturbed, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *train_arguments(text, run)],
        env=command_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return run, done.stdout


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
