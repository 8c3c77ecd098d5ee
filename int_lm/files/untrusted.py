"""Readers for files from elsewhere: they run no code and keep within fixed bounds.

JSON and YAML are returned as plain values. There are bounds for the bytes of a file, the depth of
nesting and the size of integers; text must be encodable. A key that occurs twice is refused. So are
YAML's aliases, of which a few bytes can stand for gigabytes, and its tags, which can name code.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

METADATA_BYTES = 1 << 20  # largest JSON file or list of digests
DEPTH = 64  # of nested JSON, at most
YAML_BYTES, YAML_DEPTH, YAML_VALUES = 1 << 20, 16, 10_000
INTEGER_MAX = 2**63 - 1


class MalformedError(ValueError):
    """The content of a file is not valid; the message says why in a few words."""


def is_inside(path: str | Path, directory: str | Path) -> bool:
    """Whether a path lies in a directory after all links of both are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def read_bytes(path: str | Path, most: int, *, inside: Path | None = None) -> bytes:
    """The contents of a regular file. Pipes and devices are refused, because they may never end.

    Args:
      path: of the file.
      most: largest size in bytes.
      inside: a directory in which the file must lie after all links are followed; None: anywhere.

    Raises:
      MalformedError: the file is larger, not regular, or outside of `inside`.
      OSError: the file cannot be read.
    """
    if inside is not None and not is_inside(path, inside):
        raise MalformedError("it is a link that leads elsewhere")
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # opening a directory fails by itself
            raise MalformedError("it is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise MalformedError(f"it has more than {most} bytes")
            return file.read(size)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise MalformedError(error.strerror) from error
        raise


def reason(error: OSError | MalformedError) -> str:
    """The reason why a file cannot be read, in a few words."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_text(path: str | Path, most: int) -> str:
    """The UTF-8 text of a file or a pipe.

    Args:
      path: of the file.
      most: largest size in bytes.

    Raises:
      MalformedError: the file is larger, or it is not UTF-8.
      OSError: the file cannot be read.
    """
    data = bytearray()
    with open(path, "rb", opener=_not_waiting) as file:
        while block := file.read(1 << 16):
            data += block
            if len(data) > most:
                raise MalformedError(f"it has more than {most} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError("not UTF-8 text") from error


def _not_waiting(path: str, flags: int) -> int:
    """Open a file without waiting; a pipe that no process has opened for writing is empty."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def read_json(path: str | Path, most: int, *, inside: Path | None = None) -> Any:
    """The value of a JSON file in ASCII; int_lm writes all its JSON files in ASCII.

    The text is in memory at most twice. The value can need 25 times the memory of the text, for
    example if it is a list of empty objects.

    Args:
      path: of the file.
      most: largest size in bytes.
      inside: as for `read_bytes`.

    Raises:
      MalformedError: the file is not JSON, an object has a key twice, a value is outside the bounds
        of this module, or `read_bytes` refuses the file.
      OSError: the file cannot be read.
    """
    data = read_bytes(path, most, inside=inside)
    if not data.isascii():  # checked here, because the error of `decode` would hold a copy
        raise MalformedError("it is not JSON")
    try:
        text = data.decode("ascii")
        del data
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
        )
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError("it is not JSON") from error
    _check(value, DEPTH)
    return value


def parse_yaml(text: str) -> Any:
    """The value of YAML text: mappings, lists, text, numbers, dates, true, false and null.

    Raises:
      yaml.YAMLError: the text is not YAML, has anchors, aliases, tags or a key twice, is nested too
        deeply or has too many values.
      ValueError: a value is outside the bounds of this module, or a date is impossible.
    """
    try:
        value = yaml.load(text, Loader=_PlainLoader)
    except OverflowError as error:
        raise MalformedError(str(error)) from error
    _check(value, YAML_DEPTH)
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("it has a key twice")
    return found


def _no_number(name: str) -> float:
    raise MalformedError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedError("a number is too large")
    return value


def _check(value: Any, depth: int) -> None:
    """Refuse values that cannot be printed, hashed or written safely."""
    if depth < 0:
        raise MalformedError("it is nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise MalformedError("an integer is too large")
    elif isinstance(value, str):
        if "\0" in value:
            raise MalformedError("a text holds a zero character")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise MalformedError("half a character stands in a text") from error


class _PlainLoader(yaml.SafeLoader):
    """A loader of YAML that refuses anchors, aliases, tags and keys that occur twice."""

    _depth = _values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        problem = ""
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            problem = "anchors and aliases are not allowed here"
        elif getattr(event, "tag", None) is not None:
            problem = "tags are not allowed here"
        elif self._depth >= YAML_DEPTH:
            problem = "it is nested too deeply"
        elif self._values >= YAML_VALUES:
            problem = f"it has more than {YAML_VALUES} values"
        if problem:
            raise ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        self._values += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)
