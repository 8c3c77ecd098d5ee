"""The state of a run: the arrays that it carries from step to step and that checkpoints store."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from int_lm.model import params
from int_lm.model.params import Parameters, Tree

STORED = frozenset(
    {"weights", "members", "counts", "trust"}
)  # a checkpoint's other names are update memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """Context tables. They learn by a rule of their own, not by votes (`model.context_tables`).

    Attributes:
      values: the rows, int8 [rows, V] by name.
      counts: number of steps that have read each row, int32 [rows] by name.
      trust: of a pool, int32 (`method.pool`); None where network and tables learn together.
    """

    values: dict[str, Array] = dataclasses.field(default_factory=dict)
    counts: dict[str, Array] = dataclasses.field(default_factory=dict)
    trust: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The arrays that a run carries from step to step. A checkpoint stores all of them.

    Attributes:
      network: weights of the recurrent network, a tree of int8 arrays.
      tables: context tables; empty for a model without them.
      members: recurrent state of every member, leaves [L, P, ...].
      memory: arrays that the update keeps of each tensor, by name and then by path.
    """

    network: Tree
    tables: Tables
    members: Tree
    memory: dict[str, dict[str, Array]]

    @property
    def weights(self) -> Parameters:
        """All weights that a step changes: of the network and of the context tables."""
        return Parameters(self.network, self.tables.values)

    def stored(self) -> dict[str, Any]:
        """The state as a tree with a checkpoint's names, such as `weights/head`."""
        weights = params.unflatten(self.weights.by_path())
        return {
            "weights": weights,
            "members": self.members,
            **self.memory,
            "counts": self.tables.counts,
            **({} if self.tables.trust is None else {"trust": self.tables.trust}),
        }

    @classmethod
    def of_stored(cls, tree: Mapping[str, Any]) -> "State":
        """The inverse of `stored`."""
        weights = Parameters.of_paths(dict(params.flatten(tree["weights"])))
        memory = {name: tree[name] for name in tree if name not in STORED}
        tables = Tables(weights.tables, tree["counts"], tree.get("trust"))
        return cls(weights.network, tables, tree["members"], memory)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Figures of one step.

    Attributes:
      scores_P: score of every member over its segment, int32, in the units of the objective.
      changed: number of the network's weights that the step changed, int32 scalar.
      saturated: number of the network's weights that are at +-127, int32 scalar.
    """

    scores_P: Array
    changed: Array
    saturated: Array
