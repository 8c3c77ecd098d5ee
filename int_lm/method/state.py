"""The state of a run: what it carries from step to step, and all that a checkpoint must hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from int_lm.model import params
from int_lm.model.params import Parameters, Tree

STORED = frozenset({"weights", "members", "counts"})  # of a checkpoint, beside an update's memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """Context tables, which learn on their own.

    Attributes:
      values: int8 [rows, V] by name. counts: steps that have read each row, int32 [rows].
    """

    values: dict[str, Array] = dataclasses.field(default_factory=dict)
    counts: dict[str, Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run carries from step to step, and all that a checkpoint must hold.

    Attributes:
      network: int8 weights, a tree. tables: context tables; empty for a model without.
      members: recurrent state of every member, leaves [L, P, ...].
      memory: of the update, by name and then by path of the weights.
    """

    network: Tree
    tables: Tables
    members: Tree
    memory: dict[str, dict[str, Array]]

    @property
    def weights(self) -> Parameters:
        """The model."""
        return Parameters(self.network, self.tables.values)

    def stored(self) -> dict[str, Any]:
        """The state as a checkpoint names its arrays: `weights/head`, `remainders/head`."""
        weights = params.unflatten(self.weights.by_path())
        return {
            "weights": weights,
            "members": self.members,
            **self.memory,
            "counts": self.tables.counts,
        }

    @classmethod
    def of_stored(cls, tree: Mapping[str, Any]) -> "State":
        """The inverse of `stored`."""
        weights = Parameters.of_paths(dict(params.flatten(tree["weights"])))
        memory = {name: tree[name] for name in tree if name not in STORED}
        tables = Tables(weights.tables, tree["counts"])
        return cls(weights.network, tables, tree["members"], memory)
