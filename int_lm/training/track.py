"""Trackers of a run: TensorBoard, Trackio and Weights & Biases get the rows of `metrics.jsonl`.

`run.track` names them. A tracker gets the rows, the configuration and the name of the run, and
nothing else: no code, no console, no figures of the machine. None of them needs an account.

When a run starts, each tracker also gets the earlier rows of `metrics.jsonl` that it has not.
So a run that is resumed goes on in the same run of the tracker, no step occurs twice there, and a
tracker that failed, or that was named later, has all rows.

A tracker that fails is reported with one sentence. Training goes on without it.
"""

import contextlib
import importlib.util
import io
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from int_lm.errors import require
from int_lm.files import atomic, untrusted
from int_lm.training.track_kinds import KINDS, Row, Subject, Tracker


def identifier(root: Path, resumed: bool) -> str:
    """The identifier of a run, which its directory keeps in trackers.json.

    Args:
      root: the run directory.
      resumed: whether the run goes on; otherwise it gets a new identifier.

    Raises:
      OSError: the file system refused.
    """
    path = root / "trackers.json"
    if resumed:
        with contextlib.suppress(OSError, untrusted.MalformedError):
            kept = untrusted.read_json(path, untrusted.METADATA_BYTES)
            found = kept.get("identifier") if isinstance(kept, dict) else None
            if isinstance(found, str) and found.isalnum():
                return found
    made = secrets.token_hex(4)
    atomic.write(path, json.dumps({"identifier": made}).encode() + b"\n")
    return made


def check(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed; nothing is imported.

    Args:
      names: as in `run.track`.

    Raises:
      UserError: names tracker, package and what installs it.
    """
    for name in names:
        package = KINDS[name].package
        require(
            importlib.util.find_spec(package) is not None,
            f"run.track names {name}, which needs the package {package}: "
            f"pip install 'int-lm[{name}]', or leave {name} out of run.track",
        )


class Trackers:
    """The trackers of a run; a context manager that ends them.

    Args:
      names: as in `run.track`.
      say: receives a sentence for every tracker that is started.
      warn: receives a sentence for every tracker that fails.
    """

    def __init__(
        self, names: Sequence[str], say: Callable[[str], None], warn: Callable[[str], None]
    ):
        self._names = tuple(dict.fromkeys(names))
        self._say, self._warn = say, warn
        self._started: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in tuple(self._started):
            with self._failing(name):
                self._started[name].close(failed=error is not None)

    def start(
        self, root: Path, resumed: int | None, rows: Sequence[Row], config: dict[str, Any]
    ) -> None:
        """Start every tracker, and hand over the rows that it has not.

        Args:
          root: the run directory.
          resumed: the step at which the run goes on; None for a new run.
          rows: of `metrics.jsonl` so far.
          config: the configuration as nested plain values.
        """
        known = ""
        for name in self._names:
            with self._failing(name):
                known = known or identifier(root, resumed=resumed is not None)
                subject = Subject(root, known, resumed or 0, rows, config)
                self._started[name] = KINDS[name].start(subject)
            if name in self._started:
                self._say(f"tracked by {name}: {self._started[name].where}")

    def add(self, row: Row) -> None:
        """Hand a row to every tracker that has not failed."""
        for name in tuple(self._started):
            with self._failing(name):
                self._started[name].add(row)

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """A context in which what a tracker prints is dropped, and its failure is only told."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:
            if failed := self._started.pop(name, None):
                with contextlib.suppress(Exception):
                    failed.close(failed=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(
                f"run.track {name} failed: {reason}; training goes on without it, and it gets "
                "the rows that it misses when the run is started again"
            )
