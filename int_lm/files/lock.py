"""One process at a time in a directory, by a lock that no killed process leaves behind.

The lock is the kernel's (`flock` on a file named `lock`), which drops it with the process that
holds it, however that ended. What the file says (which process, where, since when) is for people.
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
    """The lock of a directory, held by this process. Made by `hold`."""

    def __init__(self, directory: Path, remedy: str):
        self._path = directory / FILE
        self._remedy = remedy
        self._descriptor = self._acquired()

    def check(self) -> None:
        """Make sure that the directory is still this process's; call it before writing to it.

        Raises:
          HeldError: it is another one, which another process has.
          UserError: it is another one, locked from now on, so that the next call succeeds.
          OSError: it is gone, or the file system refused.
        """
        if _same(self._descriptor, self._path):
            return
        renewed = self._acquired()
        os.close(self._descriptor)
        self._descriptor = renewed
        raise UserError(f"{self._path.parent} is not the directory it was, but is used from now on")

    def release(self) -> None:
        """Let others have the directory."""
        with contextlib.suppress(OSError):  # no harm in a file that nobody locks
            if _same(self._descriptor, self._path):
                self._path.unlink()
        os.close(self._descriptor)

    def _acquired(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                if _same(descriptor, self._path):  # not one that was released meanwhile
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
    """Keep every other process out of `directory`, which is made; no empty one is left behind.

    Where the file system knows no locks, it goes on without.

    Args:
      remedy: what the user of a second process should do, for the error.

    Raises:
      HeldError: another process holds it; the message says which one, where and since when.
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
    with contextlib.suppress(OSError):  # a full disk is no reason not to hold it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)


def _same(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
