"""Finds the programs: train.py, eval.py, `data`, `tokenization` and the shipped configurations.

In a clone the programs lie beside `int_lm`. In an installed package they lie in `int_lm/_programs`,
because names such as `data` and `train` are too general for the folder that all packages share.
Commands and `int_lm.api` put the folder of the programs on the path of their own process before
they import from it.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from int_lm.errors import UserError

PACKAGE = Path(__file__).resolve().parent
NAMES = ("data", "eval", "tokenization", "train")  # modules in the folder of the programs


def installed() -> bool:
    """Whether int_lm is an installed package; otherwise it is a clone."""
    return (PACKAGE / "_programs").is_dir()


def folder() -> Path:
    """The folder that holds the programs."""
    return PACKAGE / "_programs" if installed() else PACKAGE.parent


def make_importable() -> None:
    """Let this process import the programs, before other modules of the same names.

    Raises:
      UserError: the programs are missing, or another module of one of their names is imported.
    """
    place = folder()
    if not (place / "tokenization").is_dir():
        raise UserError(f"{place} does not hold the programs of int_lm; install int_lm again")
    for name in NAMES:
        known = sys.modules.get(name)
        file = getattr(known, "__file__", None)
        if known is not None and not (file and Path(file).resolve().is_relative_to(place)):
            raise UserError(
                f"a module named {name} is imported already, from {file or 'elsewhere'}; int_lm "
                "has one of that name: rename yours, or use int_lm in a process of its own"
            )
    if sys.path[:1] != [str(place)]:
        sys.path.insert(0, str(place))


def environment() -> dict[str, str]:
    """Environment variables for a process of this Python that imports the same int_lm."""
    path = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def load(name: str) -> ModuleType:
    """Import a module of the programs.

    Args:
      name: such as `data.prepare`.

    Raises:
      UserError: as `make_importable`.
    """
    make_importable()
    return importlib.import_module(name)


def configuration(name: str) -> Path | None:
    """The path of a shipped configuration; None if there is none of this name.

    Args:
      name: without a directory, such as `quickstart` or `quickstart.yaml`.
    """
    if Path(name).name != name:
        return None
    path = folder() / "configs" / (name if name.endswith(".yaml") else f"{name}.yaml")
    return path if path.is_file() else None


def version() -> str:
    """The version of int_lm: of the clone or of the installed package."""
    import tomllib  # imported here, as `metadata` is, so that --help appears at once
    from importlib import metadata

    if installed():
        return metadata.version("int-lm")
    text = (folder() / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["version"]
