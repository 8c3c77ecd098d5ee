"""Where the programs are: train.py, eval.py, `data`, `tokenization` and the shipped configurations.

In a clone they lie beside `int_lm`. In an installed package they lie inside it, in
`int_lm/_programs`, for names such as `data` and `train` are too general for a place that all
packages share. Commands and `int_lm.api` put that folder on the path of their own process before
they import from it.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from int_lm.errors import UserError

PACKAGE = Path(__file__).resolve().parent
NAMES = ("data", "eval", "tokenization", "train")  # of modules at the top of the folder


def installed() -> bool:
    """Whether this is an installed package, not a clone."""
    return (PACKAGE / "_programs").is_dir()


def folder() -> Path:
    """The folder that holds the programs."""
    return PACKAGE / "_programs" if installed() else PACKAGE.parent


def make_importable() -> None:
    """Let this process import the programs; they go before other modules of their names.

    Raises:
      UserError: the programs are not there, or another module of such a name is imported already.
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


def load(name: str) -> ModuleType:
    """The module of the programs that `name` says, such as `data.prepare`; errors as above."""
    make_importable()
    return importlib.import_module(name)


def configuration(name: str) -> Path | None:
    """The shipped configuration of a bare name, such as `quickstart`; None if there is none."""
    if Path(name).name != name:
        return None
    path = folder() / "configs" / (name if name.endswith(".yaml") else f"{name}.yaml")
    return path if path.is_file() else None


def version() -> str:
    """The version of int_lm: of the clone or of the installed package."""
    import tomllib  # here, as the next one, so that --help answers at once
    from importlib import metadata

    if installed():
        return metadata.version("int-lm")
    text = (folder() / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["version"]
