"""Command lines: `--config FILE`, and a flag `--section.field` for every field of `Config`."""

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from int_lm import errors, plugins, programs, switches
from int_lm.config import (
    SECTIONS,
    Config,
    from_dict,
    load,
    paths,
    source_by_name,
    to_dict,
    validate,
)
from int_lm.errors import UserError, nearest

# The arguments of `python` in a clone that start the command `int-lm VERB`, by verb.
IN_A_CLONE = {
    "eval": "eval.py",
    "sample": "-m int_lm.sample",
    "tune": "-m int_lm.tune",
    "control": "-m int_lm.control",
    "export": "-m int_lm.export",
    "train-tokenizer": "-m tokenization.train",
    "inspect-tokenizer": "-m tokenization.inspect",
    "build-kernels": "-m int_lm.native",
}


_OF_PATHS = ("DIR", "FILE", "RUN", "CONFIG")  # metavars of flags whose values are paths


EXPORT_HELP = "directory that int_lm.export wrote, or hf://OWNER/NAME@REVISION"


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s of one sentence, with the nearest flag.

    Flags cannot be abbreviated: a new flag could make an abbreviation in a script ambiguous.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        """Raise a `UserError` in place of argparse's exit."""
        flag = re.fullmatch(r"argument (?:.*/)?(--[\w.]+): expected one argument", message)
        hint = f"; a text that is itself a flag is given as {flag[1]}=TEXT" if flag else ""
        raise UserError(f"{message}{hint} (see --help)")

    def add_model_arguments(self) -> None:
        """Add `--run`, `--export` and `--step`, which name the model of a run or an export."""
        source = self.add_mutually_exclusive_group(required=True)
        source.add_argument("--run", metavar="DIR", help="run directory that train.py wrote")
        source.add_argument("--export", metavar="DIR", help=EXPORT_HELP)
        self.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")

    def add_export_argument(self) -> None:
        """Add `--export`, for commands that read nothing but exports."""
        self.add_argument("--export", metavar="DIR", required=True, help=EXPORT_HELP)

    def add_plugin_argument(self) -> None:
        """Add `--plugin`, which names code of a run or an export that the user trusts."""
        self.add_argument(
            "--plugin",
            action="append",
            default=[],
            type=_full_name,
            metavar="MODULE:NAME",
            help="code that the run or export names and that you trust; may be given several times",
        )

    def parse_strict(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv` (None: the arguments of the process).

        Raises:
          UserError: a flag is unknown (the message has the nearest known one) or used wrongly.
        """
        known, unknown = self.parse_some(argv)
        if unknown:
            flags = list(self._option_string_actions)
            name = unknown[0].split("=")[0]
            hint = nearest(name, flags, " (see --help)")
            if Path(unknown[0]).exists():
                hint = f"; a file of that name is written ./{unknown[0]}"
            raise UserError(f"unknown argument {name}{hint}")
        return known

    def parse_some(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
        """`parse_strict` of the known arguments, and the unknown ones.

        Raises:
          UserError: a flag is used wrongly, or a switch in the environment (`switches`).
        """
        switches.check()
        known, unknown = self.parse_known_args(self._with_texts(argv))
        for action in self._actions:
            value = getattr(known, action.dest, None)
            if action.nargs is None and value is not None and value != action.default:
                value = _dashes(value)
                setattr(known, action.dest, value)
            if action.metavar in _OF_PATHS and value is not None:
                setattr(known, action.dest, _expanded(value, action.option_strings or [""]))
        return known, unknown

    def _with_texts(self, argv: Sequence[str] | None) -> list[str]:
        """Join each text that begins with a dash to the flag before it, as in `--prompt=-x`.

        So argparse does not take the text for a flag. Only flags that take one text are joined.
        """
        joined: list[str] = []
        for text in sys.argv[1:] if argv is None else argv:
            action = self._option_string_actions.get(joined[-1]) if joined else None
            takes_text = action is not None and action.nargs is None and action.type in (None, str)
            name = text.split("=")[0]
            known = name in self._option_string_actions or re.fullmatch(r"--[A-Za-z][\w.]*", name)
            if takes_text and text.startswith("-") and not known and joined[-1].startswith("--"):
                joined[-1] += f"={text}"
            else:
                joined.append(text)
        return joined


class ConfigParser(OneLineParser):
    """A parser for a command's own flags and a configuration.

    Add the flags of the command, then call `parse_config`. The description is printed with its own
    line breaks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, formatter_class=raw, **options)

    def parse_config(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
        """The arguments, and the validated configuration that they describe.

        Raises:
          UserError: a mistake in the arguments or in the configuration.
        """
        add_config_arguments(self)
        arguments = self.parse_strict(argv)
        settings = validate(from_arguments(arguments))
        plugins.trust_settings(settings)
        return arguments, settings


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one `--section.field` flag for every field of `Config`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file, or the name of a shipped one, such as quickstart; flags override its "
        "values",
    )
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            options: dict[str, Any] = {"type": hint}
            if typing.get_origin(hint) is Literal:
                options = {"choices": typing.get_args(hint)}
            elif hint is bool:
                options = {"type": _boolean, "nargs": "?", "const": True}
                options["metavar"] = "{true,false}"
            elif kind := field.metadata["kind"]:
                options["metavar"] = "{" + ",".join([*plugins.names(kind), "module:name"]) + "}"
            elif typing.get_origin(hint) is tuple:
                item = typing.get_args(hint)[0]
                words = typing.get_origin(item) is Literal
                options = {"type": _mapping if dataclasses.is_dataclass(item) else item}
                options["nargs"] = "*"
                if words:  # checked with the configuration: several may stand in one argument, a,b
                    choices = ",".join(typing.get_args(item))
                    options |= {"type": str, "metavar": f"{{{choices}}}"}
            default = str(field.default).lower() if hint is bool else field.default
            shown = "" if default in ((), "") else f" (default: {default})"
            if "choices" not in options:
                options.setdefault("metavar", field.name.upper())
            group.add_argument(
                f"--{section}.{field.name}",
                default=argparse.SUPPRESS,
                help=field.metadata["help"].replace("%", "%%") + shown,
                **options,
            )


def _dashes(value: Any) -> Any:
    """The value of a flag, with `--` in place of `[]`, which argparse makes of it."""
    if isinstance(value, list):
        return [_dashes(each) for each in value] if value else "--"
    return value


def _expanded(value: Any, names: Sequence[str]) -> Any:
    """The value of a flag, a path or a list of paths, with `~` and variables replaced."""
    if isinstance(value, list):
        return [_expanded(path, names) for path in value]
    return type(value)(paths.expanded(str(value), names[0] or "the path"))


def _boolean(text: str) -> bool:
    """True or False, which are written as in YAML; otherwise argparse's error."""
    words = {"true": True, "false": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return words[text.lower()]


def _full_name(text: str) -> str:
    """`text` if it has the form module:name of a plug-in; otherwise argparse's error."""
    if not plugins.is_full(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form module:name")
    return text


def _mapping(text: str) -> Any:
    """The value of a mapping that is written as YAML, such as '{name: a, path: [b.txt]}'."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping") from error


def interpreter() -> str:
    """The command that starts this Python, for messages: `python`, or its path if they differ."""
    own, found = Path(sys.executable).absolute(), shutil.which("python")
    if found and Path(found).absolute() == own:
        return "python"
    with contextlib.suppress(ValueError, OSError):  # not below the current directory
        own = own.relative_to(Path.cwd())
    return shlex.quote(str(own))


@contextlib.contextmanager
def reporting_to_stderr() -> Iterator[None]:
    """For commands with --json: what is printed here goes to stderr, by libraries in C, too.

    Those do not know of `sys.stdout`: Gloo tells of processes that meet on the descriptor itself.
    """
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def quoted(text: str) -> str:
    """A text quoted for a shell, for commands in messages."""
    return shlex.quote(text)


def prompt(settings: Config) -> str:
    """A prompt for commands in messages, quoted: that of the run's own samples, if it has one."""
    return quoted(settings.run.sample_prompt or "The ")


def command(verb: str) -> str:
    """The command that starts a verb of `IN_A_CLONE` with this Python, for messages."""
    with contextlib.suppress(OSError):  # the current directory does not exist any more
        if not programs.installed() and Path.cwd() == programs.folder():
            return f"{interpreter()} {IN_A_CLONE[verb]}"
    found = shutil.which("int-lm")
    if found and Path(found).absolute().parent == Path(sys.executable).absolute().parent:
        return f"int-lm {verb}"
    return f"{interpreter()} -m int_lm {verb}"


def started_as(text: str | None, own: str, program: str) -> str:
    """A help text in which examples that begin with `own` begin with `program` instead."""
    lines = (text or "").splitlines(keepends=True)
    return "".join(
        line.replace(own, program) if line.lstrip().startswith(own) else line for line in lines
    )


def configuration(name: str) -> Config:
    """The configuration that `--config` names: a file, or the name of a shipped configuration.

    The path of a shipped configuration is printed. A file of the same name goes before it.

    Raises:
      UserError: as `load`.
    """
    if not Path(name).exists() and (shipped := programs.configuration(name)):
        errors.say(f"configuration: {shipped}")
        return load(shipped)
    return load(name)


def from_arguments(arguments: argparse.Namespace) -> Config:
    """The configuration that `--config` and the flags describe, not yet validated.

    Raises:
      UserError: as `load` and `overridden`.
    """
    base = configuration(arguments.config) if arguments.config else Config()
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    return overridden(base, flags, "the command line")


def overridden(config: Config, flags: Mapping[str, Any], where: str) -> Config:
    """`config` with other values of some fields and expanded paths (`paths`), not yet validated.

    Args:
      config: the configuration.
      flags: values by `section.field`.
      where: the name of the source of the flags in an error.

    Raises:
      UserError: a field is unknown (the message has the nearest known one), or a value has a wrong
        type.
    """
    base = to_dict(config)
    if "data.path" in flags:
        # files replace the standard library, a dataset or a mixture; their endings tell the source,
        # but files with other endings keep the source json or parquet of the configuration
        named = base["data"]["source"]
        if "data.source" not in flags:
            by_name = source_by_name(flags["data.path"], "the command line")
            kept = by_name == "text" and named in ("json", "parquet")
            named = named if kept else by_name
        flags = {"data.source": named, "data.mixture": (), **flags}
    elif flags.get("data.source") == "stdlib":
        # a path or a mixture in the configuration file would contradict the flag
        flags = {"data.path": (), "data.mixture": (), **flags}
    for name, value in flags.items():
        section, _, key = name.partition(".")
        base.setdefault(section, {})[key] = value
    return paths.expand(from_dict(base, where), where)
