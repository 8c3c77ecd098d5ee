"""Architectures: an architecture is one `Architecture` value of pure integer functions."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.errors import require
from int_lm.model.layers import Activity
from int_lm.model.params import TABLES, Role, Tree, flatten
from int_lm.settings import ModelSettings


class Architecture(NamedTuple):
    """A recurrent network that reads one token after another.

    The residual stream begins as a row of the tensor `embedding`, and every layer adds to it. The
    logits are the tensor `head` (READOUT) applied to a norm of the residual stream.

    Attributes:
      specs: (model, vocabulary size) -> nested dict of `params.Spec`.
      initial_state: (model, batch) -> dict of arrays [L, batch, ...], the state at a document's
        start. `LanguageModel` puts it in place of a member's state before a separator is read.
      step: reads one token: (weights, state, tokens int32 [P]) -> (next state, logits int8 or int16
        q4 [P, V], `Activity`). `weights` is a tree of `perturb.Weight`s.
      runtime: "module:Class" of the same network in NumPy, for exports (see
        `runtime.Architecture`). The module is copied into exports; it may import NumPy and the
        standard library only.
    """

    specs: Callable[[ModelSettings, int], Tree]
    initial_state: Callable[[ModelSettings, int], Tree]
    step: Callable[[Tree, Tree, Array], tuple[Tree, Array, Activity]]
    runtime: str


def check(name: str, specs: Tree) -> None:
    """Refuse an architecture whose tensors would get wrong votes.

    Args:
      name: name of the architecture.
      specs: its tree of `params.Spec`s.

    Raises:
      UserError: a tensor has the wrong role or shape, or is missing. The sentence names its path
        and says what it must be.
    """
    by_path, where = dict(flatten(specs)), f"the architecture {name}"
    for path, role in (("embedding", Role.EMBEDDING), ("head", Role.READOUT)):
        found = by_path[path].role if path in by_path else None
        require(found is role, f"{where} must have the tensor {path}, of the role {role.name}")
    for path, spec in by_path.items():
        own = spec.role is not Role.TABLE and path.split("/")[0] != TABLES
        require(own, f"{where} has a tensor {path}, which only context tables may be")
        single = spec.role is not Role.READOUT or path == "head"
        require(single, f"{where} has a second tensor of the role READOUT, {path}")
        if spec.through is None:
            continue
        through = by_path.get(spec.through)
        require(
            through is not None
            and (through.role, through.layers) == (Role.PROJECTION, spec.layers)
            and spec.shape[0] % through.shape[-1] == 0,
            f"{where} has {path} act through {spec.through}, which must be a PROJECTION of as many "
            f"layers ({spec.layers}), whose inputs divide its {spec.shape[0]} outputs",
        )


def get(name: str) -> Architecture:
    """The architecture that a configuration names.

    Raises:
      UserError: as `plugins.resolve`.
    """
    return plugins.resolve("architecture", name, Architecture)
