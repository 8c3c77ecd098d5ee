"""Command lines: `--config FILE` and one `--section.field VALUE` for every field of `Config`."""

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from int_lm import plugins
from int_lm.config import (
    SECTIONS,
    Config,
    from_dict,
    load,
    source_by_name,
    to_dict,
    validate,
)
from int_lm.errors import UserError, nearest


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s: one sentence, nearest flag named.

    Flags cannot be abbreviated: a script that did so would break when a new flag arrives.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see --help)")

    def add_plugin_argument(self) -> None:
        """Add `--plugin`: code that a run or an export names, and that the user trusts."""
        self.add_argument(
            "--plugin",
            action="append",
            default=[],
            type=_full_name,
            metavar="MODULE:NAME",
            help="code that the run or export names and that you trust; may be given several times",
        )

    def parse_strict(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv`; an unknown flag raises `UserError` with the nearest known one."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = list(self._option_string_actions)
            name = unknown[0].split("=")[0]
            raise UserError(f"unknown argument {name}{nearest(name, flags, ' (see --help)')}")
        return known


class ConfigParser(OneLineParser):
    """A parser that reads a configuration beside a command's own flags; prints its text as it is.

    Add the command's flags, then call `parse_config`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, formatter_class=raw, **options)

    def parse_config(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
        """The arguments, and the validated configuration among them."""
        add_config_arguments(self)
        arguments = self.parse_strict(argv)
        settings = validate(from_arguments(arguments))
        plugins.trust_settings(settings)
        return arguments, settings


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one `--section.field` flag for every field of `Config`."""
    parser.add_argument("--config", metavar="FILE", help="YAML file; flags override its values")
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            options: dict[str, Any] = {"type": hint}
            if typing.get_origin(hint) is Literal:
                options = {"choices": typing.get_args(hint)}
            elif kind := field.metadata["kind"]:
                options["metavar"] = "{" + ",".join([*plugins.names(kind), "module:name"]) + "}"
            elif typing.get_origin(hint) is tuple:
                item = typing.get_args(hint)[0]
                options = {"type": _mapping if dataclasses.is_dataclass(item) else item}
                options["nargs"] = "*"
            shown = "" if field.default in ((), "") else f" (default: {field.default})"
            if "choices" not in options:
                options.setdefault("metavar", field.name.upper())
            group.add_argument(
                f"--{section}.{field.name}",
                default=argparse.SUPPRESS,
                help=field.metadata["help"].replace("%", "%%") + shown,
                **options,
            )


def _full_name(text: str) -> str:
    """The name of a plug-in on the command line."""
    if not plugins.is_full(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form module:name")
    return text


def _mapping(text: str) -> Any:
    """A mapping on the command line, as YAML: '{name: a, path: [b.txt]}'."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping") from error


def interpreter() -> str:
    """What runs this Python in a shell, for commands that are shown: `python`, or else its path."""
    own, found = Path(sys.executable).absolute(), shutil.which("python")
    if found and Path(found).absolute() == own:
        return "python"
    with contextlib.suppress(ValueError, OSError):  # it is elsewhere, or the directory is gone
        own = own.relative_to(Path.cwd())
    return shlex.quote(str(own))


def from_arguments(arguments: argparse.Namespace) -> Config:
    """The configuration that `--config` and the flags describe, not yet validated."""
    base = to_dict(load(arguments.config) if arguments.config else Config())
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    if "data.path" in flags:
        # files take the place of the library, of a dataset and of a mixture; they are what their
        # names say, or else of the kind of those before
        named = base["data"]["source"]
        if "data.source" not in flags:
            by_name = source_by_name(flags["data.path"], "the command line")
            kept = by_name == "text" and named in ("json", "parquet")
            named = named if kept else by_name
        flags = {"data.source": named, "data.mixture": (), **flags}
    elif flags.get("data.source") == "stdlib":
        # a path, or a mixture, of the file would contradict the flag
        flags = {"data.path": (), "data.mixture": (), **flags}
    for name, value in flags.items():
        section, key = name.split(".")
        base[section][key] = value
    return from_dict(base, "the command line")
