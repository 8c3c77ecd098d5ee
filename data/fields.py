"""Read the text fields of a JSON record.

msgspec decodes only the fields asked for, and checks that the rest is JSON. A record that msgspec
refuses is decoded again with the standard library. It says what is wrong with the record; and it
accepts NaN and Infinity, which Python writes, in the fields that are not read.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from int_lm.errors import UserError

Values = tuple[Any, ...]  # of each field: str, None for null, or UNSET where there is none
KINDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
# failures of opening a file, before anything in it is read
NOT_OPENED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP)

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True)
class Problem:
    """The reason why a record has no text.

    Attributes:
      why: the reason, for an error.
    """

    why: str


class Fields:
    """Reads the values of fields from records.

    A name such as `meta.text` means the field with exactly this name or, if there is none, the
    field `text` of the object `meta`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._paths = [paths_of(name) for name in names]
        tree: dict[str, Any] = {}
        self._every = [path for paths in self._paths for path in paths]
        for path in self._every:
            node = tree
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = None
        keys = {key for path in self._every for key in path}
        self._quoted = [_quoted(key) for key in keys]
        self._attributes = [[_attributes(tree, path) for path in paths] for paths in self._paths]
        self._only = self._attributes[0][0][0] if len(tree) == 1 == len(keys) else None
        self._decode: Callable[[bytes], Any] | None = None
        with contextlib.suppress(ValueError):  # a name with quotes or control characters
            self._decode = msgspec.json.Decoder(_struct(tree)).decode

    def __call__(self, record: bytes) -> Values | Problem:
        """The values of the fields of one record, or the reason why it has none."""
        if self._decode is None:
            return self._slowly(record)
        try:
            found = self._decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._slowly(record)
        for key in self._quoted:
            if record.count(key) > 1 and any(_stands_twice(record, path) for path in self._every):
                return self._slowly(record)
        if self._only:
            return (getattr(found, self._only),)
        return tuple(_first(found, paths) for paths in self._attributes)

    def _slowly(self, record: bytes) -> Values | Problem:
        try:
            text = record.decode("utf-8", "surrogateescape")
            tree = json.loads(text, object_pairs_hook=_Object, parse_int=float)
        except json.JSONDecodeError as error:
            return Problem(f"not a JSON record ({error.msg} at character {error.colno})")
        except RecursionError:
            return Problem("not a JSON record (nested too deeply)")
        if not isinstance(tree, _Object):
            return Problem(f"the record is {KINDS[type(tree)]}, not an object with fields")
        values = []
        for name, paths in zip(self._names, self._paths, strict=True):
            value = _found(tree, name, paths)
            if isinstance(value, Problem):
                return value
            values.append(value)
        return tuple(values)


class _Object(dict):
    """A JSON object that records which of its keys occur more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = set()
        if len(self) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice = {key for key in self if keys.count(key) > 1}


KINDS[_Object] = KINDS[dict]


def keys_of(record: bytes) -> list[str]:
    """The names of a record's fields, as far as they can be read."""
    try:
        return list(json.loads(record.decode("utf-8", "replace")))
    except (ValueError, TypeError, RecursionError):
        return []


OTHER_FIELD = "name the one that holds the text with --data.field"


def no_field(where: str, name: str, known: Sequence[str], remedy: str = OTHER_FIELD) -> UserError:
    """The error for records without the field `name`; `known` are the fields they have."""
    return UserError(
        f"{where} has no field {name!r}, it has {', '.join(known) or 'none'}; {remedy}"
    )


def unreadable(shown: str, kind: str, place: str, error: Exception) -> UserError:
    """The error for a file that cannot be read.

    Args:
      shown: its name.
      kind: of the file, such as json.
      place: what was read last, such as `line 3`.
      error: what the system or a library said.
    """
    if isinstance(error, OSError) and error.errno in NOT_OPENED:
        return UserError(f"cannot read {shown}: {os.strerror(error.errno)}; check the path")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(
        f"cannot read {shown} as {kind} after {place} ({reason.splitlines()[0][:200]}); repair the "
        "file or leave it out"
    )


def not_utf8(name: str) -> str:
    """The description of text that cannot be encoded."""
    return f"field {name!r} holds text that is not UTF-8"


def is_utf8(text: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def paths_of(name: str) -> list[tuple[str, ...]]:
    """The paths at which a field may be found, in the order in which they are tried."""
    return [(name,), tuple(name.split("."))] if "." in name else [(name,)]


def _quoted(key: str) -> bytes:
    """A key as it is written in a record, unless the record escapes its characters."""
    return json.dumps(key, ensure_ascii=False).encode()


def _stands_twice(record: bytes, path: tuple[str, ...]) -> bool:
    """Whether a key of `path` occurs twice in its object. False if a value is not an object."""
    for key in path:
        try:
            members = _MEMBERS(record)
        except msgspec.ValidationError:
            return False
        within = sum(bytes(value).count(_quoted(key)) for value in members.values())
        if record.count(_quoted(key)) > within + (key in members):
            return True
        if key not in members:
            return False
        record = bytes(members[key])
    return False


def _attributes(tree: dict[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the fields along `path` have in the struct of `tree`."""
    names, node = [], tree
    for key in path:
        names.append(f"a{list(node).index(key)}")
        node = node[key]
    return tuple(names)


def _struct(tree: dict[str, Any]) -> type[msgspec.Struct]:
    """The type of an object with text in the leaves of `tree`; fields are called a0, a1, ..."""
    fields, names = [], {}
    for index, (key, below) in enumerate(tree.items()):
        kind = str if below is None else _struct(below)
        fields.append((f"a{index}", kind | None | UnsetType, UNSET))
        names[f"a{index}"] = key
    return msgspec.defstruct("Record", fields, rename=names, gc=False)


def _first(found: Any, paths: list[tuple[str, ...]]) -> Any:
    """The value at the first of `paths` that exists; UNSET if none does."""
    value: Any = UNSET
    for path in paths:
        value = found
        for attribute in path:
            if value is UNSET or value is None:
                break
            value = getattr(value, attribute)
        if value is not UNSET:
            return value
    return value


def _found(tree: _Object, name: str, paths: list[tuple[str, ...]]) -> Any:
    """The value of a field in a decoded record, or what is wrong with it."""
    for path in paths:
        value: Any = tree
        for depth, key in enumerate(path):
            if not isinstance(value, _Object):
                shown = ".".join(path[:depth])
                return Problem(f"field {shown!r} holds {KINDS[type(value)]}, not an object")
            if key in value.twice:
                return Problem(f"field {key!r} stands twice in the record")
            value = value.get(key, UNSET)
            if value is UNSET or value is None:
                break
        if value is UNSET:
            continue
        if value is not None and not isinstance(value, str):
            return Problem(f"field {name!r} holds {KINDS[type(value)]}, not text")
        try:
            _ = value is None or value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, or bytes that are not UTF-8
            return Problem(not_utf8(name))
        return value
    return UNSET
