"""Parameters: every tensor has one `Spec`: its shape, role and initial value.

A network declares its tensors as nested dicts of `Spec`s. The role of a tensor decides how it is
perturbed and which estimator votes on it. The tensors of the layers are stacked along a leading
axis L. A path is written like `layers/forget_input`; that of a context table like
`direct/context_3`.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.arithmetic import constants
from int_lm.limits import INT8_MAX

Tree = dict[str, Any]  # nested dict with one leaf per tensor
TABLES = "direct"  # first part of the paths of context tables


class Role(enum.Enum):
    """What the network does with a tensor. It decides how the tensor is perturbed and voted on."""

    MATRIX = "matrix"  # [..., M, N]: y = x W^T, perturbed by A B^T
    PROJECTION = "projection"  # [..., D, N]: a matrix whose outputs the residual stream adds up
    READOUT = "readout"  # [V, N]: the matrix whose outputs are the logits
    TABLE = "table"  # [rows, V]: a context table; the context selects a row, added to the logits
    EMBEDDING = "embedding"  # [V, N]: one row is looked up, perturbed by A[row] B^T
    VECTOR = "vector"  # [..., N]: norm weights and biases, perturbed entry by entry


@dataclasses.dataclass(frozen=True)
class Spec:
    """One int8 tensor: its shape, role and initial value.

    Attributes:
      shape: shape of the tensor of one layer.
      role: see `Role`.
      init: constant initial value, or None for gaussian noise of `constants.initial_scale`.
      layers: number of layers that are stacked in front of `shape`; 0 for a tensor outside the
        layers.
      through: for a MATRIX, path of the PROJECTION whose inputs are the MATRIX's effects; None if
        the effects are added to the residual stream directly.
    """

    shape: tuple[int, ...]
    role: Role
    init: int | None = None
    layers: int = 0
    through: str | None = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor: of all layers if they are stacked."""
        return (self.layers, *self.shape) if self.layers else self.shape


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf, sorted by path. Tensors are numbered in this order."""
    for key in sorted(tree):
        path = f"{prefix}{key}"
        if isinstance(tree[key], dict):
            yield from flatten(tree[key], f"{path}/")
        else:
            yield path, tree[key]


def unflatten(leaves: dict[str, Any]) -> Tree:
    """The nested dict whose `flatten` gives `leaves`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function(leaf, *other_leaves)` leaf by leaf; all trees have the same structure."""
    return {
        key: map_leaves(function, value, *(other[key] for other in others))
        if isinstance(value, dict)
        else function(value, *(other[key] for other in others))
        for key, value in tree.items()
    }


def count(specs: Tree) -> int:
    """Number of weights of a tree of `Spec`s."""
    return sum(int(np.prod(spec.full_shape)) for _, spec in flatten(specs))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parameters:
    """One leaf for every tensor of a language model: a `Spec`, an int8 array or a `Weight`.

    Attributes:
      network: leaves of the recurrent network, a nested dict.
      tables: leaves of the context tables, by name; empty for a model without them.
    """

    network: Tree
    tables: Tree = dataclasses.field(default_factory=dict)

    def by_path(self) -> dict[str, Any]:
        """Every leaf by its path, sorted by path. Tensors are numbered in this order."""
        return dict(flatten({**self.network, **({TABLES: self.tables} if self.tables else {})}))

    @classmethod
    def of_paths(cls, leaves: dict[str, Any]) -> "Parameters":
        """The inverse of `by_path`."""
        tree = unflatten(leaves)
        tables = tree.pop(TABLES, {})
        return cls(tree, tables)


def tensor_ids(specs: Parameters) -> dict[str, int]:
    """The number of every tensor, by path; a stacked tensor takes `layers` consecutive numbers."""
    numbers, following = {}, 0
    for path, spec in specs.by_path().items():
        numbers[path] = following
        following += max(1, spec.layers)
    return numbers


def initialise(specs: Parameters, seed: int) -> Parameters:
    """Initial int8 weights as NumPy arrays. They depend on (specs, seed) alone."""
    quantiles = constants.gaussian_quantiles().astype(np.float64)
    numbers, leaves = tensor_ids(specs), {}
    for path, spec in specs.by_path().items():
        if spec.init is not None:
            leaves[path] = np.zeros(spec.full_shape, np.int8)  # no memory until it is written to
            if spec.init:
                leaves[path][...] = spec.init
            continue
        # raw Philox output is stable across NumPy versions; Generator's methods are not
        philox = np.random.Philox(key=[seed, numbers[path]])
        raw = philox.random_raw(int(np.prod(spec.full_shape)))
        draws = quantiles[raw >> 48].reshape(spec.full_shape)
        scale = 1.0 if spec.role is Role.EMBEDDING else constants.initial_scale(spec.shape[-1]) / 16
        leaves[path] = np.clip(np.rint(draws * scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return Parameters.of_paths(leaves)


@native.accelerated(cpu="counts")
def counts(new: Array, old: Array) -> Array:
    """How many int8 weights differ, and how many of the new ones are at +-127: int32 [2]."""
    both = new != old, jnp.abs(new) == INT8_MAX
    return jnp.stack([jnp.sum(found, dtype=jnp.int32) for found in both])
