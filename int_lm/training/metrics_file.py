"""`metrics.jsonl`, the file of a run with one row of figures for each logged step."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from int_lm.errors import UserError
from int_lm.files import atomic


class MetricsFile:
    """`metrics.jsonl`: one JSON object per logged step, in increasing order of `step`.

    Opening the file removes a last line that is incomplete because the process was killed.

    Raises:
      UserError: a line before the last one is not a row of metrics.
      OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._last_step = -1
        self._pending = b""  # rows, or the rest of one, that are not in the file yet
        self._followers: list[Callable[[Mapping[str, Any]], None]] = []
        self._file = self._reopened(math.inf)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.close()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the file, in increasing order of `step`."""
        return read(self._path)

    def follow(self, follower: Callable[[Mapping[str, Any]], None]) -> None:
        """Call `follower` with every row that is appended from now on; it must not raise."""
        self._followers.append(follower)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; other processes can read it at once. Followers get it, too.

        Args:
          row: JSON-able values, with an int `step` above that of the row before.

        Raises:
          ValueError: `step` is not above that of the row before, or a value is not finite.
          OSError: the file system refused; the row is kept, and written before the next one.
        """
        if row["step"] <= self._last_step:
            raise ValueError(f"step {row['step']} after step {self._last_step} in {self._path}")
        self._pending += json.dumps(dict(row), allow_nan=False).encode() + b"\n"
        self._last_step = row["step"]
        for follower in self._followers:
            follower(row)
        self._write()

    def truncate_after(self, step: int) -> None:
        """Remove the rows of steps above `step`: the resumed run will write them again."""
        self._file.close()
        self._file = self._reopened(step)

    def flush(self) -> None:
        """Write every row through to the disk: call it before the checkpoint of the same step.

        Raises:
          OSError: the file system refused.
        """
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write every row through to the disk and close the file.

        Raises:
          OSError: the file system refused.
        """
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def _write(self) -> None:
        while self._pending:  # a disk that is getting full takes a part of a row
            self._pending = self._pending[self._file.write(self._pending) :]

    def _reopened(self, last_step: float) -> Any:
        """The file, open for appending; it keeps only complete rows up to `last_step`."""
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data.splitlines(keepends=True)
        kept = []
        for line, row in zip(lines, _parsed(lines, self._path), strict=False):
            if row["step"] <= last_step:
                kept.append(line)
                self._last_step = row["step"]
        if not kept:
            self._last_step = -1
        if len(kept) < len(lines):
            atomic.write(self._path, b"".join(kept))
        return self._path.open("ab", buffering=0)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose nested values have names such as `vote_agreement/head`; None is left out."""

    def entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from entries(f"{name}/{key}", item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from entries(f"{name}/{index}", item)
        elif value is not None:
            yield name, value

    return {name: item for key, value in row.items() for name, item in entries(key, value)}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without a last line that is incomplete.

    Raises:
      UserError: a line before the last row is not a row of metrics.
      OSError: the file cannot be read.
    """
    return _parsed(path.read_bytes().splitlines(keepends=True), path)


def _parsed(lines: Sequence[bytes], path: Path) -> list[dict[str, Any]]:
    """The rows of a file that begins with whole rows; what follows the last one is left out.

    Raises:
      UserError: a row follows a line that is none.
    """
    rows: list[dict[str, Any]] = []
    torn = None  # number of the first line that is no row
    for number, line in enumerate(lines, start=1):
        row = _row_of(line)
        if row is None:
            torn = torn or number
        elif torn:
            raise UserError(
                f"{path} line {torn} is not a row of metrics; repair or delete the file"
            )
        else:
            rows.append(row)
    return rows


def _row_of(line: bytes) -> dict[str, Any] | None:
    """A complete row; None for any other line."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        step = row["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return row if isinstance(step, int) else None
