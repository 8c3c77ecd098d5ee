"""The registry of architectures: one file and one line here for each.

An architecture is a module with

    specs(model, vocab_size) -> tree of Spec
    initial_state(model, batch) -> tree of arrays [L, batch, ...]
    step(weights, state, tokens_P) -> (next state, int8 logits q4 [P, V])

where `weights` is the tree of `perturb.Weight`s; token 0 must reset the state.
"""

from types import ModuleType

from int_lm.models import egg

ARCHITECTURES: dict[str, ModuleType] = {"egg": egg}


def get(architecture: str) -> ModuleType:
    """The module of an architecture that `config` has accepted."""
    return ARCHITECTURES[architecture]
