"""Arrays of integers in files: mapped, or read where they are asked for.

NumPy's own reader evaluates the header of a .npy file, and may allocate as much as that says. Here
a header is what `numpy.save` writes of integers, and its shape that of the file.
"""

import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from int_lm.errors import UserError, require
from int_lm.files import untrusted

OPEN_FILES = 64  # of `Stored` arrays, at most; of those read least recently one is closed
READ_AT_ONCE = 1 << 20  # entries
AGAIN = "run the same command again"
_NPY_1_0 = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][iu][1248])', 'fortran_order': False, "
    rb"'shape': \((\d{1,18}),(?: (\d{1,18}))?\), \} *\n"
)


class _Layout(NamedTuple):
    """Where in a file an array begins, and what it is."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


def mapped(path: Path) -> np.ndarray:
    """A .npy file, mapped: integers, [N] or [N, M], and nothing else.

    Raises:
      MalformedError: it is something else.
    """
    start, dtype, shape = _layout(path)
    return np.memmap(path, dtype, "r", start, shape)


class Stored:
    """Integers [N] in a .npy file. What a slice asks for is read, and nothing is kept.

    The pages of a file that is mapped count as memory of the process once they were read, and with
    each of them its neighbours.

    Attributes:
      dtype: of the entries.
    """

    def __init__(self, path: Path) -> None:
        """Read the header of the file.

        Raises:
          MalformedError: it holds something else than integers [N].
        """
        self._start, self.dtype, shape = _layout(path)
        if len(shape) != 1:
            raise untrusted.MalformedError(f"{path.name} holds rows")
        self._size, status = shape[0], path.stat()
        self._file = path, status.st_dev, status.st_ino

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> np.ndarray:
        """The entries of a slice without a step, which cannot be written to.

        Raises:
          UserError: the file is gone, another one or shorter than it was.
        """
        begin, end, _ = part.indices(self._size)
        width = self.dtype.itemsize
        file, count = _opened(*self._file), max(0, end - begin)
        read = os.pread(file.descriptor, count * width, self._start + begin * width)
        path = self._file[0]
        require(
            len(read) == count * width,
            f"{path} has become shorter since it was opened; delete {path.parent} and run the same "
            "command",
        )
        return np.frombuffer(read, self.dtype)


def blocks(array: np.ndarray | Stored) -> Iterator[np.ndarray]:
    """All entries of an array [N], some at a time."""
    for begin in range(0, len(array), READ_AT_ONCE):
        yield array[begin : begin + READ_AT_ONCE]


class _Opened:
    """A file that is open as long as somebody reads it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(OPEN_FILES)
def _opened(path: Path, device: int, inode: int) -> _Opened:
    """The file that was at a path.

    Raises:
      UserError: it is gone, or another one is there now.
    """
    try:
        file = _Opened(path)
    except OSError as error:
        raise UserError(f"cannot read {path} any more: {error.strerror}; {AGAIN}") from error
    status = os.fstat(file.descriptor)
    same = (status.st_dev, status.st_ino) == (device, inode)
    require(same, f"{path} is another file than it was; {AGAIN}")
    return file


def _layout(path: Path) -> _Layout:
    if not untrusted.is_inside(path, path.parent) or not path.is_file():
        raise untrusted.MalformedError(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        magic = file.read(10)
        header = file.read(int.from_bytes(magic[8:], "little"))
        start, size = file.tell(), file.seek(0, 2)
    found = _NPY_HEADER.fullmatch(header)
    if magic[:8] != _NPY_1_0 or found is None:
        raise untrusted.MalformedError(f"{path.name} is not an array of integers")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(number) for number in found.groups()[1:] if number is not None)
    if start + math.prod(shape) * dtype.itemsize != size:
        raise untrusted.MalformedError(f"{path.name} has {size} bytes, which is not what it says")
    return _Layout(start, dtype, shape)
