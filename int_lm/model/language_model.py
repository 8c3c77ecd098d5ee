"""The registry of architectures: one file and one line here for each.

An architecture is a module with

    specs(model, vocab_size) -> tree of Spec
    initial_state(model, batch) -> tree of arrays [L, batch, ...]
    step(weights, state, tokens_P) -> (next state, int8 or int16 logits q4 [P, V], layers.Activity)

where `weights` is the tree of `perturb.Weight`s; token 0 must reset the state. The logits are the
tensor `head` (READOUT) applied to a norm of the residual stream, which begins as a row of the
tensor `embedding` and which every layer adds to. The functions of the same names here are what the
rest of the program calls: they put direct connections (`direct`) beside any architecture.
"""

from types import ModuleType

from jax import Array

from int_lm.config import ModelConfig
from int_lm.model import context_tables, egg, rwkv
from int_lm.model.layers import Activity, Use
from int_lm.model.params import Tree, without_direct

ARCHITECTURES: dict[str, ModuleType] = {"egg": egg, "rwkv": rwkv}


def get(architecture: str) -> ModuleType:
    """The module of an architecture that `config` has accepted."""
    return ARCHITECTURES[architecture]


def specs(model: ModelConfig, vocab_size: int) -> Tree:
    """The parameter tree of a model."""
    tree = get(model.architecture).specs(model, vocab_size)
    return tree | {"direct": context_tables.specs(model, vocab_size)} if model.direct else tree


def initial_state(model: ModelConfig, batch: int) -> Tree:
    """The state at a document's start: arrays with the batch as their second axis."""
    state = get(model.architecture).initial_state(model, batch)
    return (
        state | {"context": context_tables.initial_context(model, batch)} if model.direct else state
    )


def step(
    model: ModelConfig, weights: Tree, state: Tree, tokens_P: Array
) -> tuple[Tree, Array, Activity]:
    """Read one token: (next state, logits q4 [P, V], activity).

    Args:
      weights: tree of `perturb.Weight`s. state: of `initial_state`. tokens_P: int32.
    """
    architecture = get(model.architecture)
    if not model.direct:
        return architecture.step(weights, state, tokens_P)
    recurrent = {name: leaf for name, leaf in state.items() if name != "context"}
    recurrent, logits_PV, activity = architecture.step(without_direct(weights), recurrent, tokens_P)
    context_KP = context_tables.following(state["context"], tokens_P)
    picked = context_tables.rows(model, context_KP)
    tables = {name: weight.value for name, weight in weights["direct"].items()}
    uses = activity.uses | {"direct": {name: Use(rows_P) for name, rows_P in picked.items()}}
    return (
        recurrent | {"context": context_KP},
        context_tables.added(tables, picked, logits_PV),
        Activity(uses, activity.residual, activity.gain),
    )
