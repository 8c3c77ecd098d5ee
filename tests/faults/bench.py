"""What faults are done to: a tiny run of `train.py` in its own process, watched and disturbed."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from int_lm.files import checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = {
    "--model.width": 16,
    "--model.layers": 1,
    "--es.population": 16,
    "--es.segment_length": 8,
    "--run.steps": 400,
    "--run.log_every": 20,
    "--run.eval_every": 0,
    "--run.checkpoint_every": 20,
    "--run.sample_tokens": 0,
    "--data.document_bytes": 1024,
    "--data.shard_bytes": 4096,
}
CLOCK = {"seconds", "tokens_per_second"}  # what differs from run to run in `metrics.jsonl`
LATE = "300"  # step of the first save of a run at rest
SMALL = 2 << 20  # bytes of a small disk
PATIENCE = 240  # seconds to wait for anything


class ImpossibleError(Exception):
    """A fault that cannot be brought about on this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a fault: what its user saw, and what was found to survive."""

    seen: str
    survives: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: what is done, in words, and the function that does it and checks what follows."""

    done: str
    run: Callable[["Bench"], Outcome]

    @property
    def name(self) -> str:
        return self.run.__name__


class Training:
    """One process that trains; a context manager, which kills it.

    Args:
      flags: beside those of the bench.
      prefix: a command that starts it.
      output: where its stdout goes, in place of a file that can be read with `stdout`.
    """

    def __init__(
        self,
        bench: "Bench",
        directory: Path,
        flags: Sequence[str | Path] = (),
        prefix: Sequence[str] = (),
        output: Path | None = None,
        **environment: str,
    ):
        self.bench, self.directory = bench, directory
        self._stdout = output or bench.new_file("stdout")
        self._stderr = bench.new_file("stderr")
        arguments = [str(item) for flag in FLAGS.items() for item in flag]
        command = [*prefix, sys.executable, ROOT / "train.py", *arguments]
        command += ["--data.path", "text", "--data.shards", "shards", "--run.dir", directory]
        command += flags
        with self._stdout.open("a") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=bench.directory,
                env=bench.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.kill()

    def stdout(self) -> str:
        return self._stdout.read_text()

    def stderr(self) -> str:
        return self._stderr.read_text()

    def sentence(self) -> str:
        """The last line on stderr, without what differs from machine to machine."""
        line = (self.stderr().strip().splitlines() or [""])[-1]
        line = re.sub(r"pid \d+ on \S+ since [^)]*", "pid ... on ... since ...", line)
        for directory in (self.directory.parent, self.bench.directory):
            line = line.replace(f"{directory}/", "")
        return line

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition that the process brings about."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            ended = self.process.poll() is not None
            if condition():
                return
            assert not ended, f"ended without {what}: {self.stdout()}\n{self.stderr()}"
            time.sleep(0.003)
        raise AssertionError(f"no {what} in {PATIENCE} s: {self.stdout()}\n{self.stderr()}")

    def newest(self) -> int:
        """Step of the newest checkpoint whose files are listed, 0 for none."""
        root = self.directory / "checkpoints"
        sealed = [s for s in checkpoint.steps(root) if (root / str(s) / "files.sha256").exists()]
        return max(sealed, default=0)

    def unfinished(self) -> list[Path]:
        """The directories of checkpoints that are being written."""
        return list((self.directory / "checkpoints").glob("*orbax-checkpoint-tmp"))

    def until_between_checkpoints(self) -> None:
        """Wait for a row of the log after a checkpoint: a moment with no save under way."""
        self.until_checkpoint()
        kept = self.newest()
        self.until(lambda: self.rows()[-1]["step"] > kept, "row of the log")

    def until_checkpoint(self, count: int = 1) -> None:
        self.until(lambda: self.newest() >= count * FLAGS["--run.checkpoint_every"], "checkpoint")

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows of metrics.jsonl, without what depends on the clock."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process for as long as the block lasts, so that nothing runs away."""
        self._stop()
        try:
            yield
        finally:
            self.go_on()

    def pause_when(self, condition: Callable[[], bool]) -> None:
        """Stop the process at a moment at which a condition holds."""

        def holds() -> bool:
            if not condition():
                return False
            self._stop()
            found = condition()  # still
            if not found:
                self.go_on()
            return found

        self.until(holds, "moment to stop at")

    def go_on(self) -> None:
        """Undo `pause_when`."""
        self.process.send_signal(signal.SIGCONT)

    def _stop(self) -> None:
        """SIGSTOP, and wait until every thread has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        for stat in Path(f"/proc/{self.process.pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread ended
                while stat.read_text().rpartition(")")[2].split()[0] not in "TZ":
                    time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(PATIENCE)
        assert "Traceback" not in self.stderr(), self.stderr()[:4000]
        return code

    def assert_ends_as_undisturbed(self) -> None:
        """Exit code 0, and weights and metrics as those of a run that nothing disturbed."""
        code = self.end()
        assert code == 0, (code, self.stderr())
        assert self.rows() == self.bench.undisturbed
        assert self.newest() == FLAGS["--run.steps"]


class Bench:
    """A directory for runs, what they share, and the run that nothing disturbed.

    Args:
      environment: additions to the environment of every run.
    """

    def __init__(self, directory: Path, **environment: str):
        self.directory = directory
        (directory / "text").mkdir()
        for file in ROOT.glob("docs/*.md"):
            shutil.copy(file, directory / "text")
        self._files = 0
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **environment,
        }

    @functools.cached_property
    def undisturbed(self) -> list[dict[str, Any]]:
        """The log of a run that nothing disturbs."""
        with self.training("undisturbed") as whole:
            assert whole.end() == 0, whole.stderr()
            return whole.rows()

    def new_file(self, name: str) -> Path:
        self._files += 1
        return self.directory / f"{self._files}.{name}"

    def training(self, name: str | Path, *arguments: Any, **environment: str) -> Training:
        """Start, or resume, the run of that name; the rest as of `Training`."""
        return Training(self, self.directory / name, *arguments, **environment)

    def assert_goes_on(self, name: str | Path) -> str:
        """The same command once more ends as the undisturbed run; what it said first."""
        with self.training(name) as again:
            again.assert_ends_as_undisturbed()
            return again.stderr()

    @contextlib.contextmanager
    def training_at_rest(self, name: str) -> Iterator[Training]:
        """A run that is stopped where no save is under way, nor soon to come.

        However slow the disk: another process left its only checkpoint, and `LATE` is the next one.
        """
        late = ["--run.checkpoint_every", LATE]
        with self.training(name, late) as before:
            before.until(before.rows, "row of the log")
            before.process.terminate()
            assert before.end() == 0, before.stderr()
        with self.training(name, late) as training:
            kept = training.newest()
            assert 0 < kept < int(LATE) // 2
            training.pause_when(lambda: kept < training.rows()[-1]["step"])
            assert training.rows()[-1]["step"] + FLAGS["--run.log_every"] < int(LATE)
            yield training

    @contextlib.contextmanager
    def small_disk(self, name: str) -> Iterator[Path]:
        """A file system of SMALL bytes."""
        directory = self.directory / name
        directory.mkdir()
        _as_root("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", directory)
        try:
            yield directory
        finally:
            _as_root("umount", "--lazy", directory)


def fill(disk: Path) -> Path:
    """Leave no byte of a disk free; the file to delete to free it again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A read-only file system in place of `directory`, with the same content."""
    _as_root("mount", "--bind", directory, directory)
    try:
        _as_root("mount", "-o", "remount,bind,ro", directory)
        yield
    finally:
        _as_root("umount", "--lazy", directory)


def without_privileges() -> list[str]:
    """A command prefix under which permissions count for root as for anyone."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ImpossibleError("root may write anywhere, and there is no setpriv")
    return [setpriv, "--bounding-set", "-dac_override,-dac_read_search"]


def _as_root(*command: str | Path) -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        raise ImpossibleError("only root can mount file systems")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImpossibleError(" ".join(done.stderr.split()))
