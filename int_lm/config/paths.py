"""Replaces `~`, `~user`, `$NAME` and `${NAME}` in paths of a configuration, as a shell does.

Shells replace them on a command line, but `~` not in `--run.dir=~/runs`, and nothing in a YAML
file.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from int_lm.config.schema import Config, SourceConfig
from int_lm.errors import UserError

# The fields of a configuration that name files or directories.
FIELDS = frozenset(
    {
        "data.path",
        "data.tokenizer",
        "data.shards",
        "run.dir",
        "run.init_from",
        "reward.prompts",
    }
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expanded(path: str, where: str) -> str:
    """`path` with `~` and variables replaced; unchanged if it exists as it is written.

    Args:
      path: a path as a user wrote it.
      where: the name of the path in an error.

    Raises:
      UserError: a variable is not set, or there is no such user.
    """
    if not (path.startswith("~") or "$" in path) or os.path.exists(path):
        return path
    for braced, plain in _VARIABLE.findall(path):
        if (braced or plain) not in os.environ:
            raise UserError(
                f"{where} is {path!r}, but ${braced or plain} is not set; set it, or write the "
                "path in full"
            )
    try:
        return str(Path(os.path.expandvars(path)).expanduser())
    except RuntimeError as error:
        raise UserError(f"{where} is {path!r}: {error}; write the path in full") from error


def expand(config: Config, where: str) -> Config:
    """`config` with every field of `FIELDS` expanded, except names of datasets of the hub.

    Args:
      config: the configuration.
      where: the name of its source in an error.

    Raises:
      UserError: as `expanded`.
    """

    def of_section(section: Any, name: str) -> Any:
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(section):
            full, value = f"{name}.{field.name}", getattr(section, field.name)
            if field.name == "mixture":
                changed["mixture"] = tuple(of_section(source, name) for source in value)
            hub = isinstance(section, SourceConfig) and section.source == "hub"
            if full not in FIELDS or (hub and field.name == "path"):
                continue
            place = f"{full} in {where}"
            if isinstance(value, tuple):
                changed[field.name] = tuple(expanded(path, place) for path in value)
            else:
                changed[field.name] = expanded(value, place)
        return dataclasses.replace(section, **changed)

    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Config(**{name: of_section(section, name) for name, section in sections.items()})
