"""Reads configurations from YAML and from plain values, and writes them.

`schema` documents every field; `--help` prints the same text. Nothing here imports jax, so that
`--help` and errors about flags appear at once.
"""

import contextlib
import dataclasses
import math
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from int_lm import plugins
from int_lm.config import paths
from int_lm.config.schema import Config, DataConfig, MixtureConfig, SourceConfig
from int_lm.errors import UserError, nearest, require
from int_lm.files import untrusted

SECTIONS: dict[str, type] = {field.name: field.type for field in dataclasses.fields(Config)}  # type: ignore[misc]

# Endings of the names of files with records, by `data.source`.
RECORD_SUFFIXES = {
    "json": tuple(
        f".{name}{packed}"
        for name in ("jsonl", "ndjson", "json")
        for packed in ("", ".gz", ".zst", ".bz2", ".xz")
    ),
    "parquet": (".parquet",),
}

# Fields of older versions that checkpoints may hold, with the value that changed nothing.
REMOVED = {"es.noise_reuse": 1, "es.vote_clip": 0.0}


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as nested plain values that YAML and JSON can hold."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def sources_of(data: DataConfig) -> tuple[MixtureConfig, ...]:
    """The sources of text: those of `data.mixture` or, without a mixture, the one of `data`."""
    if data.mixture:
        return data.mixture
    own = {field.name: getattr(data, field.name) for field in dataclasses.fields(SourceConfig)}
    return (MixtureConfig(name=data.source, weight=1.0, **own),)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML text that `load` reads back to an equal value."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names, or a UserError that says what was expected."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        expected = ", ".join(choices) + nearest(str(value), choices, otherwise="")
        require(value in choices, f"{where} is {value!r}, expected one of {expected}")
        return value
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, dict), f"{where} is {value!r}, expected mappings")
        return _section(typing.cast(type, hint), value, where.split(" in ")[0], where)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        mappings = dataclasses.is_dataclass(kind)
        items = [value] if isinstance(value, dict if mappings else str | int) else value
        require(isinstance(items, list | tuple), f"{where} is {value!r}, expected a list")
        if typing.get_origin(kind) is Literal:  # of words, which may also be given as a,b
            items = [word for item in items for word in str(item).split(",")]
        return tuple(_checked(item, kind, where) for item in items)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML 1.1 reads 1e-3, which has no point, as a string
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        expected = "true or false" if hint is bool else f"a value of type {hint.__name__}"
        raise UserError(f"{where} is {value!r}, expected {expected}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, expected a finite number")
    return value


def _section(cls: type, values: dict[Any, Any], name: str, where: str) -> Any:
    """The dataclass `cls` made of plain values, each checked.

    Args:
      cls: the dataclass.
      values: plain values by field.
      name: of the section, for errors.
      where: the name of their source in an error.

    Raises:
      UserError: an unknown field or a wrong value.
    """
    hints = typing.get_type_hints(cls)
    if issubclass(cls, SourceConfig) and values.get("path"):
        values = {"source": source_by_name(values["path"], where), **values}
    checked = {}
    for key, value in values.items():
        suggestion = nearest(str(key), list(hints))
        require(key in hints, f"unknown key {name}.{key} in {where}{suggestion}")
        checked[key] = _checked(value, hints[key], f"{name}.{key} in {where}")
    for field in dataclasses.fields(cls):
        if field.metadata.get("kind") and field.name in checked:
            named = f"{name}.{field.name} in {where}"
            plugins.check(field.metadata["kind"], checked[field.name], named)
    return cls(**checked)


def source_by_name(path: Any, where: str) -> str:
    """The value of `data.source` that fits the endings of file names; `text` for other endings.

    Args:
      path: one name or several.
      where: the name of the source of the configuration, for errors.

    Raises:
      UserError: the names have endings of several formats.
    """
    names = path if isinstance(path, list | tuple) else [path]  # other types are refused later
    kinds = {
        next(
            (kind for kind, ends in RECORD_SUFFIXES.items() if name.lower().endswith(ends)), "text"
        )
        for name in names
        if isinstance(name, str)
    } or {"text"}
    require(
        len(kinds) == 1,
        f"data.path in {where} names files of several formats ({', '.join(sorted(kinds))}); name "
        "one with data.source, or use data.mixture for several",
    )
    return kinds.pop()


def _without_removed(section: str, values: dict[Any, Any], where: str) -> dict[Any, Any]:
    """The values of a section without the fields in `REMOVED`.

    Raises:
      UserError: such a field has another value than the one that changed nothing.
    """
    for name, neutral in REMOVED.items():
        of_section, key = name.split(".")
        require(
            of_section != section or values.get(key, neutral) == neutral,
            f"{name} in {where} is {values.get(key)!r}, an option that was removed, for it never "
            f"paid; drop it, or use version 0.1.0",
        )
    return {key: value for key, value in values.items() if f"{section}.{key}" not in REMOVED}


def from_dict(tree: Any, where: str = "configuration") -> Config:
    """Build a `Config` from nested plain values.

    Args:
      tree: mapping of section names to mappings of field names to values. Missing fields have
        their defaults.
      where: the name of the source in an error, such as a file name.

    Raises:
      UserError: a section or field is unknown (the message has the nearest known name), or a value
        has a wrong type.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{where} must be a mapping of sections ({', '.join(SECTIONS)})")
    sections = {}
    for section, values in tree.items():
        suggestion = nearest(str(section), list(SECTIONS))
        require(section in SECTIONS, f"unknown section {section!r} in {where}{suggestion}")
        if values is None:  # a section with no field under it
            values = {}
        if not isinstance(values, dict):
            raise UserError(f"section {section} in {where} must be a mapping of fields to values")
        values = _without_removed(section, values, where)
        sections[section] = _section(SECTIONS[section], values, section, where)
    return Config(**sections)


def load(path: str | Path) -> Config:
    """Read a configuration from a YAML file. Fields that it does not name have their defaults.

    `~` and `$NAME` in paths are replaced (`paths`).

    Raises:
      UserError: the file cannot be read, is not YAML, or is not a configuration.
    """
    try:
        text = untrusted.read_text(path, untrusted.YAML_BYTES)
    except (OSError, untrusted.MalformedError) as error:
        raise UserError(f"cannot read configuration {path}: {untrusted.reason(error)}") from error
    try:
        tree = untrusted.parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path} line {mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{place} is not valid YAML: {problem}") from error
    return paths.expand(from_dict({} if tree is None else tree, str(path)), str(path))
