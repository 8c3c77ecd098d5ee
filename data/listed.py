"""Files that are known before any is read: their names, sizes, times and contents."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from data.tally import Tally
from int_lm.errors import UserError
from int_lm.files import atomic, digest

READ_AT_ONCE = 1 << 20  # bytes of a file whose contents are compared
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # characters that a terminal obeys


class ListedFiles:
    """Base class of sources of files: fingerprint and size, known before any file is read.

    Attributes:
      listed: (name shown, path) of every file, in their order.
    """

    listed: list[tuple[str, str]]

    def fingerprint(self) -> list[list[object]]:
        """Name, size and time of the last change of every file."""
        stats = [(name, _status(path)) for name, path in self.listed]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]

    def size(self) -> int:
        """Bytes of all files, as stored."""
        return sum(self.size_of(path) for _, path in self.listed)

    def contents(self, update: Callable[[int], None]) -> str:
        """See `Source.contents`."""
        digests = []
        for _, path in self.listed:
            hasher = hashlib.sha256()
            with opened(path) as file:
                while block := file.read(READ_AT_ONCE):
                    hasher.update(block)
                    update(len(block))
            digests.append(hasher.hexdigest())
        return digest.of_json(digests)

    def size_of(self, path: str) -> int:
        """Bytes of a file, as stored."""
        return _status(path).st_size


def walk(
    root: str,
    without: frozenset[str] = frozenset(),
    tally: Tally | None = None,
    *,
    skip_unreadable: bool = False,
) -> list[str]:
    """Sorted relative posix paths of the regular files below `root`, none hidden or `without`.

    Args:
      root: directory to search.
      without: names of directories and files to leave out.
      tally: counts hidden names, links to directories or to nothing, and entries that are not
        regular files, which are left out; not the partial files that int_lm itself writes.
      skip_unreadable: leave out and count directories that cannot be read.

    Raises:
      UserError: a directory cannot be read, unless they are skipped.
    """
    left_out: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        if not skip_unreadable:
            _refuse_unreadable(error)
        left_out.append((str(error.filename), "left out directories that cannot be read"))

    def relative_paths() -> Iterator[str]:
        for directory, children, files in os.walk(root, onerror=unreadable):
            for name in (*children, *files):
                path = os.path.join(directory, name)
                if atomic.PARTIAL.fullmatch(name):
                    continue
                if name[0] == ".":
                    left_out.append((path, "left out hidden files and directories"))
                elif name in children and os.path.islink(path):
                    left_out.append((path, "left out links to directories"))
            children[:] = [child for child in children if child not in without and child[0] != "."]
            for file in files:
                path = Path(directory, file)
                if file[0] != "." and _is_regular(path):
                    yield path.relative_to(root).as_posix()
                elif file[0] != ".":
                    what = "what is no regular file" if os.path.exists(path) else "links to nothing"
                    left_out.append((str(path), f"left out {what}"))

    found = sorted(relative_paths())
    for path, what in sorted(left_out):
        if tally:
            tally.add(what, printable(path))
    return found


def printable(path: str) -> str:
    r"""`path` as any output can show it, in one line: other bytes than UTF-8 are escapes (`\xff`).

    So are control characters (`\n`).
    """
    decoded = os.fsencode(path).decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), decoded)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a broken link is left out; any other error is raised when the file is read
        return not path.is_symlink()


def opened(path: str) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        _refuse_unreadable(error, path)


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        _refuse_unreadable(error, path)


def _refuse_unreadable(error: OSError, path: str | None = None) -> NoReturn:
    shown = printable(path or str(error.filename))
    raise UserError(
        f"cannot read {shown}: {error.strerror or error}; make it readable or leave it out"
    ) from error
