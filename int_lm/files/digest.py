"""SHA-256 digests of arrays, JSON values and directories, by which damaged files are recognised.

Neither Orbax nor safetensors notices a flipped bit in the bytes of an array. So int_lm keeps its
own digests: one per array, and one per file in `files.sha256`, which `sha256sum -c` reads, too.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from int_lm.files import atomic, untrusted

FILE_DIGESTS = "files.sha256"
_SELF = "# sha256 of the lines above: "  # `sha256sum -c` ignores this line


class DamagedError(Exception):
    """A file differs from what was written; the message names the file and the damage."""


def canonical_json(value: Any) -> str:
    """`value` as JSON text that depends on its content only.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def of_array(array: np.ndarray) -> str:
    """Hex SHA-256 of an array: its dtype, its shape and its elements in C order."""
    hasher = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def of_file(path: Path, *, sync: bool = False) -> str:
    """Hex SHA-256 of a file's bytes; with `sync`, they are written to the disk, too."""
    with path.open("rb") as file:
        hasher = hashlib.file_digest(file, "sha256")
        if sync:
            os.fsync(file.fileno())
    return hasher.hexdigest()


def _files_below(directory: Path) -> Iterator[Path]:
    own = (directory / FILE_DIGESTS, directory / f"{FILE_DIGESTS}.tmp")
    return (p for p in sorted(directory.rglob("*")) if p.is_file() and p not in own)


def seal(directory: Path) -> None:
    """Write every file below `directory` to the disk, and their digests to `files.sha256`.

    Raises:
      OSError: the file system refused. `files.sha256` is never incomplete.
    """
    lines = "".join(
        f"{of_file(path, sync=True)}  {path.relative_to(directory).as_posix()}\n"
        for path in _files_below(directory)
    )
    for path in directory.rglob("*"):
        if path.is_dir():
            atomic.sync_directory(path)
    trailer = f"{_SELF}{hashlib.sha256(lines.encode()).hexdigest()}\n"
    atomic.write(directory / FILE_DIGESTS, (lines + trailer).encode())
    atomic.sync_directory(directory.parent)


def _inside(directory: Path, name: str) -> Path:
    """The path of the regular file `name` below `directory`.

    Raises:
      DamagedError: `name` leads out of `directory`, also by a link, or is not a regular file.
      OSError: the file is missing or cannot be reached.
    """
    path, listed = directory / name, PurePosixPath(name)
    outside = not name or "\0" in name or listed.is_absolute() or ".." in listed.parts
    if outside or not untrusted.is_inside(path, directory):
        raise DamagedError(f"{directory.name}/{FILE_DIGESTS} names {name!r}, outside of it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedError(f"{directory.name}/{name} is not a regular file")
    return path


def check(directory: Path) -> bool:
    """Compare every file that `files.sha256` lists with its digest there.

    Returns:
      True if all files are as written; False if there is no `files.sha256`, because the process
      that wrote the directory was killed before it could write it.

    Raises:
      DamagedError: a listed file differs or is missing, a name leads out of `directory`, or the
        list itself is damaged. The message begins with the path relative to the parent of
        `directory`.
      OSError: a file cannot be read for another reason, such as a missing permission.
    """
    own = directory / FILE_DIGESTS
    try:
        content = untrusted.read_bytes(own, untrusted.METADATA_BYTES, inside=directory)
    except FileNotFoundError:
        return False
    except untrusted.MalformedError as error:
        raise DamagedError(f"{directory.name}/{FILE_DIGESTS} is no list: {error}") from error
    end = max(0, content.rfind(_SELF.encode()))  # compared as bytes: no text that may be invalid
    trailer = f"{_SELF}{hashlib.sha256(memoryview(content)[:end]).hexdigest()}\n"
    if not content.isascii() or content[end : end + len(trailer) + 1] != trailer.encode():
        raise DamagedError(f"{directory.name}/{FILE_DIGESTS} has changed since it was written")
    for line in content[:end].decode("ascii").splitlines():
        expected, _, name = line.partition("  ")
        try:
            found = of_file(_inside(directory, name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(f"{directory.name}/{name} is missing") from error
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENAMETOOLONG, errno.ELOOP):
                raise
            reason = "disk error" if error.errno == errno.EIO else error.strerror
            raise DamagedError(f"{directory.name}/{name} cannot be read ({reason})") from error
        if found != expected:
            raise DamagedError(f"{directory.name}/{name} has changed since it was written")
    return True
