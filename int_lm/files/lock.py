"""A lock that lets one process at a time use a directory.

The lock is `flock` on a file named `lock`. The kernel releases it when the process that holds it
ends, also when it is killed. The text in the file (process, machine, start of the lock) is for
people: no program reads it except to show it in an error.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from int_lm.errors import UserError

FILE = "lock"
_NOT_TO_BE_HAD = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network file systems


class HeldError(UserError):
    """Another process holds the lock."""


class Lock:
    """The lock of a directory, held by this process. `hold` makes it."""

    def __init__(self, directory: Path, remedy: str):
        self._path = directory / FILE
        self._remedy = remedy
        self._descriptor = self._acquired()

    def check(self) -> None:
        """Check that the path still names the locked directory; call it before writing to it.

        Raises:
          HeldError: the path names another directory, which another process holds.
          UserError: the path names another directory. This process has locked it now, so that the
            next call succeeds.
          OSError: the directory is gone, or the file system refused.
        """
        if _same(self._descriptor, self._path):
            return
        renewed = self._acquired()
        os.close(self._descriptor)
        self._descriptor = renewed
        raise UserError(f"{self._path.parent} is not the directory it was, but is used from now on")

    def release(self) -> None:
        """Release the lock, so that other processes can use the directory."""
        with contextlib.suppress(OSError):  # a file that is left and not locked does no harm
            if _same(self._descriptor, self._path):
                self._path.unlink()
        os.close(self._descriptor)

    def _acquired(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                if _same(descriptor, self._path):  # else its holder deleted the file meanwhile
                    _describe(descriptor)
                    return descriptor
            except BlockingIOError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                who = f" ({holder})" if holder else ""
                raise HeldError(
                    f"another process{who} is using {self._path.parent}; {self._remedy}"
                ) from error
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


@contextlib.contextmanager
def hold(directory: Path, remedy: str) -> Iterator[Lock]:
    """Make `directory` and hold its lock, so that no other process uses it.

    Directories that were made here and are empty at the end are removed. On a file system without
    locks, the directory is used without one.

    Args:
      directory: the directory to use.
      remedy: what the user of a second process should do, for the error.

    Raises:
      HeldError: another process holds the lock; the message names process, machine and time.
      OSError: the file system refused.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(directory, remedy)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise


def _describe(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = f"pid {os.getpid()} on {socket.gethostname()} since {since}\n"
    with contextlib.suppress(OSError):  # the lock holds without this text, on a full disk too
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)


def _same(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
