"""What an architecture is: one value, made of pure integer functions, in one file."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.model.layers import Activity
from int_lm.model.params import Tree
from int_lm.settings import ModelSettings


class Architecture(NamedTuple):
    """A recurrent network that reads one token after another.

    The logits are the tensor `head` (READOUT) applied to a norm of the residual stream, which
    begins as a row of the tensor `embedding` and which every layer adds to.

    Attributes:
      name: as in the configuration.
      specs: (model, vocabulary size) -> nested dict of `params.Spec`.
      initial_state: (model, batch) -> dict of arrays [L, batch, ...], the state at a document's
        start.
      step: (weights, state, tokens int32 [P]) -> (next state, logits int8 or int16 q4 [P, V],
        `Activity`). `weights` is the tree of `perturb.Weight`s; token 0 must reset the state.
      runtime: "module:Class" of the same network in NumPy, for exports (see
        `runtime.Architecture`). The module imports NumPy and the standard library only, and is
        copied into exports.
    """

    name: str
    specs: Callable[[ModelSettings, int], Tree]
    initial_state: Callable[[ModelSettings, int], Tree]
    step: Callable[[Tree, Tree, Array], tuple[Tree, Array, Activity]]
    runtime: str


def get(name: str) -> Architecture:
    """The architecture that a configuration names; errors as of `plugins.resolve`."""
    return plugins.resolve("architecture", name, Architecture)
