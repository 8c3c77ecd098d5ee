"""Where the values that make up a method are found by name: built in, installed, or named in full.

Six kinds of values can be added without a change anywhere else: an `architecture`, an `objective`,
an `estimator`, an `update`, and a `task` or an `environment`, which a command line names. A name is
given in one of three ways:

    rwkv                    one of ours (`BUILT_IN`)
    gru                     installed: a package has an entry point of the group `int_lm.plugins`
                            with the name "architecture.gru"
    my_package.gru:GRU      in full: attribute GRU of the module my_package.gru

A name in full is code to run. It is run if the user gave it on the command line or in a YAML file
(`trust`), never because a checkpoint or an export says so.
"""

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from int_lm.errors import UserError, nearest, require

GROUP = "int_lm.plugins"
BUILT_IN: dict[str, dict[str, str]] = {
    "architecture": {
        "rwkv": "int_lm.model.rwkv:RWKV",
        "egg": "int_lm.model.egg:EGG",
    },
    "objective": {
        "log_likelihood": "int_lm.method.objective.log_likelihood:LOG_LIKELIHOOD",
        "reward": "int_lm.method.objective.reward:REWARD",
    },
    "estimator": {
        "eggroll": "int_lm.method.estimator.eggroll:EGGROLL",
        "trace": "int_lm.method.estimator.trace:TRACE",
        "unit": "int_lm.method.estimator.unit:UNIT",
        "local": "int_lm.method.estimator.local:LOCAL",
        "deep": "int_lm.method.estimator.deep:DEEP",
        "exact": "int_lm.method.estimator.exact:EXACT",
    },
    "update": {
        "threshold": "int_lm.method.update.threshold:THRESHOLD",
        "carry": "int_lm.method.update.carry:CARRY",
        "adaptive": "int_lm.method.update.adaptive:ADAPTIVE",
    },
    "task": {
        "countdown": "int_lm.tasks.countdown:COUNTDOWN",
        "countdown3": "int_lm.tasks.countdown:COUNTDOWN3",
        "countdown4": "int_lm.tasks.countdown:COUNTDOWN4",
        "countdown_graded": "int_lm.tasks.countdown:COUNTDOWN_GRADED",
        "countdown3_graded": "int_lm.tasks.countdown:COUNTDOWN3_GRADED",
        "countdown4_graded": "int_lm.tasks.countdown:COUNTDOWN4_GRADED",
        "digit_sums": "int_lm.tasks.digit_sums:DIGIT_SUMS",
        "sorting": "int_lm.tasks.sorting:SORTING",
        "brackets": "int_lm.tasks.brackets:BRACKETS",
        "copying": "int_lm.tasks.copying:COPYING",
    },
    "environment": {
        "CartPole": "int_lm.control.cart_pole:CART_POLE",
        "Pendulum": "int_lm.control.pendulum:PENDULUM",
        "Acrobot": "int_lm.control.acrobot:ACROBOT",
    },
}
# field of a configuration -> kind of value that it names
FIELDS = {
    "model.architecture": "architecture",
    "es.objective": "objective",
    "es.votes": "estimator",
    "es.update": "update",
}
_FULL_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_trusted: set[str] = set()


def _installed(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points of a kind, by name."""
    prefix = f"{kind}."
    return {
        entry.name.removeprefix(prefix): entry
        for entry in importlib.metadata.entry_points(group=GROUP)
        if entry.name.startswith(prefix)
    }


def names(kind: str) -> list[str]:
    """The names that a configuration can use, of one kind, besides those in full."""
    return [*BUILT_IN[kind], *sorted(_installed(kind).keys() - BUILT_IN[kind].keys())]


def is_full(name: str) -> bool:
    """Whether a name is one in full, "module:name"."""
    return _FULL_NAME.fullmatch(name) is not None


def check(kind: str, name: str, where: str) -> None:
    """Refuse a name that nothing has, or a name in full of another form; imports nothing.

    Raises:
      UserError: with `where` the name stands, and the nearest known one.
    """
    require(
        ":" not in name or is_full(name),
        f"{where} is {name!r}, expected module:name, as in my_package.gru:GRU",
    )
    if not is_full(name) and name not in names(kind):
        known = names(kind)
        expected = ", ".join(known) + nearest(name, known, otherwise="")
        raise UserError(f"{where} is {name!r}, expected one of {expected}, or module:name")


def trust(*full_names: str) -> None:
    """Let these names in full be imported: the user gave them."""
    _trusted.update(filter(is_full, full_names))


def trust_settings(settings: Any) -> None:
    """Let the names in full of a configuration that the user wrote be imported."""
    trust(*full_names(settings))


def full_names(settings: Any, kinds: Iterable[str] = tuple(BUILT_IN)) -> list[str]:
    """The names in full that a configuration has, of some kinds of values or of all."""
    found = []
    for field, kind in FIELDS.items():
        section, key = field.split(".")
        name = getattr(getattr(settings, section), key)
        if kind in kinds and is_full(name) and name not in found:
            found.append(name)
    return found


def flags(full_names: Iterable[str]) -> str:
    """What a command needs to read a run or an export with these names: " --plugin NAME" each."""
    return "".join(f" --plugin {name}" for name in full_names)


def resolve(kind: str, name: str, of: type) -> Any:
    """The value that a name stands for.

    Args:
      of: the class that it must be of.

    Raises:
      UserError: nothing has this name, it is not trusted, it cannot be imported, or it is something
        else.
    """
    check(kind, name, f"the {kind}")
    target = BUILT_IN[kind].get(name) or name
    if ":" not in target:
        target = _installed(kind)[name].value
    elif target == name and name not in _trusted:
        raise UserError(
            f"the {kind} {name} is code outside int_lm; if you trust it, add --plugin {name}"
        )
    value = attribute(target, f"the {kind} {name}")
    if not isinstance(value, of):
        raise UserError(
            f"the {kind} {name} is of type {type(value).__name__}, expected {of.__name__}"
        )
    return value


def attribute(target: str, what: str) -> Any:
    """The attribute that "module:name" stands for.

    Raises:
      UserError: there is no such module, it raises an exception, or it has no such attribute.
    """
    module, _, name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # last: a module here hides none that is installed
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{what} cannot be imported from {module} ({reason}); mend it") from error
    if not hasattr(found, name):
        raise UserError(f"{what}: {module} has no {name}")
    return getattr(found, name)
