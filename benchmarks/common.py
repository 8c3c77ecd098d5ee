"""Shared by the benchmarks: options, recipes, medians of functions in turns, other processes.

Every benchmark puts the repository on `sys.path` before it imports anything of it. So it runs from
a clone that is not installed; only the dependencies of int_lm are needed.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from int_lm import config
from int_lm.config import Config
from int_lm.errors import EXIT_USER_ERROR, UserError
from int_lm.files import atomic
from int_lm.method import recipe
from int_lm.method.recipe import Recipe
from int_lm.plot import picture
from int_lm.training import memory

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
VOCAB_SIZE = 256  # bytes


def parser(doc: str | None, *, repeats: int = 0) -> argparse.ArgumentParser:
    """A command line with `--json` and, unless 0, the default of `--repeats`."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=doc, formatter_class=raw)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    if repeats:
        made.add_argument("--repeats", type=int, default=repeats, help="runs per figure (median)")
    return made


def require_optax(what: str) -> None:
    """Refuse what needs optax where it is missing, before anything is trained.

    Raises:
      UserError: it is.
    """
    if not has_optax():
        raise UserError(f"{what} needs optax: pip install -e '.[bench]'")


def has_optax() -> bool:
    """Whether the package of the extra `bench` is there."""
    return importlib.util.find_spec("optax") is not None


def machine() -> str:
    """The machine and software that figures are measured on: processor, device and versions."""
    device, count = jax.devices()[0], jax.device_count()
    kind = device.device_kind if count == 1 else f"{device.device_kind} x {count}"
    python = platform.python_version()
    return f"{platform.machine()}, {device.platform} {kind}, jax {jax.__version__}, Python {python}"


# -- Rows and pictures -----------------------------------------------------------------------------


def check_out(out: str | Path | None) -> None:
    """Refuse a file that rows cannot be added to, before anything is measured.

    Raises:
      UserError: it cannot be opened; the sentence says why.
    """
    if out is None:
        return
    there = os.path.lexists(out)
    try:
        open(out, "a").close()
        if not there:
            os.remove(out)
    except OSError as error:
        raise UserError(f"cannot add rows to {out}: {error.strerror}; name another --out") from None


def append(out: str | Path | None, row: Mapping[str, Any]) -> None:
    """Add a row to a file of JSON lines, if one is named, as soon as it is known."""
    if out is not None:
        with open(out, "a") as file:
            file.write(json.dumps(row) + "\n")


def rows_of(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Args:
      path: of the file.
      keys: that every row must have.

    Raises:
      UserError: it cannot be read, or a line is no JSON, or no row with these keys.
    """
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise UserError(f"{path} line {number}: not a line of JSON") from None
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing:
                raise UserError(
                    f"{path} line {number}: no row of this benchmark, for it has no "
                    f"{missing[0]}; name a file that --out wrote"
                )
            yield row
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--picture` and `--overwrite`; `check_picture` checks them."""
    parser.add_argument("--picture", type=Path, metavar="FILE", help=".svg, .png or .pdf")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture")


def check_picture(arguments: argparse.Namespace) -> None:
    """Refuse a picture that cannot or may not be written, before anything is measured.

    Raises:
      UserError: its name has another ending, it is there and --overwrite is not given, or its
        directory or matplotlib is missing.
    """
    if arguments.picture is None:
        return
    picture.check(arguments.picture)
    atomic.check_free(arguments.picture, overwrite=arguments.overwrite)
    if not arguments.picture.parent.is_dir():
        raise UserError(f"{arguments.picture.parent} is no directory; name another --picture")
    picture.pyplot()


# -- Recipes ---------------------------------------------------------------------------------------


def shipped(name: str) -> Config:
    """The configuration configs/`name`.yaml."""
    return config.load(CONFIGS / f"{name}.yaml")


def with_fields(settings: Config, section: str, **fields: Any) -> Config:
    """The configuration with other values of some fields of a section."""
    changed = dataclasses.replace(getattr(settings, section), **fields)
    return dataclasses.replace(settings, **{section: changed})


def paper(**model: Any) -> Config:
    """The paper's recipe at the sizes for CPUs that configs/paper_egg.yaml names.

    Args:
      model: other values of fields of the model.
    """
    settings = with_fields(shipped("paper_egg"), "model", **{"width": 64, "layers": 2} | model)
    sizes = {"population": 2048, "segment_length": 50, "noise": "rademacher", "chunk": 0}
    return with_fields(settings, "es", **sizes)


def recipe_of(settings: Config, vocab_size: int = VOCAB_SIZE) -> Recipe:
    """The recipe of a configuration."""
    return recipe.of(config.validate(settings), vocab_size)


def tokens_of(recipe: Recipe) -> np.ndarray:
    """A step's tokens at random, without separators: uint8 or uint16 [S, T+1]."""
    shape = recipe.es.streams, recipe.es.segment_length + 1
    vocab_size = recipe.model.vocab_size
    dtype = np.uint8 if vocab_size <= 256 else np.uint16
    return np.random.default_rng(0).integers(1, vocab_size, shape, dtype=dtype)


# -- Time ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Median:
    """Medians over several calls: seconds by the clock, and of processor time."""

    seconds: float
    cpu: float


def medians(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Median]:
    """Medians of each function, taking turns, after one call that compiles.

    As in training, memory that is freed is kept for the next call from then on. Otherwise functions
    that allocate more would be slower.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        if turn == 1:
            memory.trim()
            memory.keep()
        for name, function in functions.items():
            start, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            if turn:
                spent = time.perf_counter() - start, time.process_time() - cpu
                times[name].append(spent)
    return {
        name: Median(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


# -- Processes -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended: its seconds, and its peak resident memory in bytes."""

    seconds: float
    peak: int


def run(arguments: Sequence[str], output: IO[Any]) -> Finished:
    """Run a command of this project in another process.

    Args:
      arguments: of Python: a file, or "-m" and a module, and their arguments.
      output: receives what the command prints.

    Raises:
      UserError: the command refused what it was asked, in a sentence of its own.
      SystemExit: the command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=output)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        ended = f"{' '.join(arguments[:2])} ended with {process.returncode}"
        refused = process.returncode == EXIT_USER_ERROR
        raise UserError(f"{ended}, as it says above") if refused else SystemExit(ended)
    return Finished(time.perf_counter() - start, memory.peak(usage))


def train(*arguments: str) -> tuple[str, Finished]:
    """Run `train.py`: (what it printed, its time and memory)."""
    with tempfile.TemporaryFile("w+") as output:
        finished = run(["train.py", *arguments], output)
        output.seek(0)
        return output.read(), finished
