"""Files that are whole at any time: a kill or a power cut leaves the old file or the new one."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from int_lm.errors import require

PARTIAL = re.compile(r"\..+\.partial-\d+")  # names of files that are not whole yet, or never were
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing that name no file


def sync_directory(directory: Path) -> None:
    """Write the entries of `directory` to the disk, so that they survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, in a directory that int_lm has for itself.

    What a kill leaves behind has the name of the file and `.tmp`; the next call overwrites it.

    Raises:
      OSError: the file system refused.
    """
    with _renamed(path.with_name(path.name + ".tmp"), path, "wb", path) as file:
        file.write(data)


def link(source: str, path: str) -> None:
    """Give a file a second name, or copy it where file systems cannot do that.

    Raises:
      OSError: the file system refused.
    """
    try:
        os.link(source, path)
    except OSError:
        with open(path, "xb") as file, open(source, "rb") as whole:
            shutil.copyfileobj(whole, file)
            file.flush()
            os.fsync(file.fileno())


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to write a file at `path`, before there is anything to lose.

    Args:
      path: of the file, which the user has named.
      overwrite: whether the user has said that a file may be replaced.

    Raises:
      UserError: there is something that is no file, or a file that may not be replaced.
    """
    require(path.is_file() or not path.exists(), f"{path} is no file; choose another name")
    require(
        overwrite or not os.path.lexists(path),
        f"{path} exists already; replace it with --overwrite or choose another name",
    )


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces the one at `path` at the end, in a directory of the user.

    Until then it has a name of its own, that no file of the user has. After an exception the file
    at `path` is as it was. If `path` is a link, the file that it points to is replaced.

    Raises:
      UserError: what is at `path` is no file.
      OSError: the file system refused; it names `path`.
    """
    check_free(path, overwrite=True)
    whole = path.resolve()
    partial = whole.with_name(f".{whole.name}.partial-{os.getpid()}")
    try:
        with _renamed(partial, whole, "xb", path) as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _renamed(partial: Path, path: Path, mode: str, shown: Path) -> Iterator[BinaryIO]:
    """The new file `partial`, opened; at the end it is on the disk and has the name `path`.

    Raises:
      OSError: the file system refused; it names `shown`.
    """
    try:
        with partial.open(mode) as file:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.filename == str(partial) or error.errno in NO_ROOM:
            error.filename, error.filename2 = str(shown), None
        raise
