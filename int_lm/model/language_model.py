"""A language model: an architecture's network, with context tables beside it where there are any.

Everything that reads or writes text with a model calls `LanguageModel`: training, evaluation,
samples. Axes: P members (or any batch), V vocabulary.
"""

import dataclasses
import functools

from jax import Array

from int_lm.model import architecture, context_tables
from int_lm.model.architecture import Architecture
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Tree
from int_lm.settings import ModelSettings


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Sizes and equations, without weights; hashable, so that compiled programs can depend on it.

    Attributes:
      settings: the section `model` of a configuration.
      vocab_size: V.
    """

    settings: ModelSettings
    vocab_size: int

    @functools.cached_property
    def architecture(self) -> Architecture:
        return architecture.get(self.settings.architecture)

    @functools.cached_property
    def specs(self) -> Parameters:
        """The `params.Spec` of every tensor of the network, and of every context table."""
        return Parameters(
            network=self.architecture.specs(self.settings, self.vocab_size),
            tables=context_tables.specs(self.settings, self.vocab_size),
        )

    def initial_state(self, batch: int) -> Tree:
        """The state at a document's start: arrays with the batch as their second axis."""
        state = self.architecture.initial_state(self.settings, batch)
        if not self.settings.direct:
            return state
        return state | {"context": context_tables.initial_context(self.settings, batch)}

    def step(
        self, weights: Parameters, state: Tree, tokens_P: Array
    ) -> tuple[Tree, Array, Activity]:
        """Read one token: (next state, logits q4 [P, V], activity).

        Args:
          weights: `perturb.Weight`s of the network, and int8 tables.
          state: of `initial_state`. tokens_P: int32.
        """
        if not self.settings.direct:
            return self.architecture.step(weights.network, state, tokens_P)
        recurrent = {name: leaf for name, leaf in state.items() if name != "context"}
        recurrent, logits_PV, activity = self.architecture.step(
            weights.network, recurrent, tokens_P
        )
        context_KP = context_tables.following(state["context"], tokens_P)
        rows = context_tables.rows(self.settings, context_KP)
        return (
            recurrent | {"context": context_KP},
            context_tables.added(weights.tables, rows, logits_PV),
            dataclasses.replace(activity, rows=rows),
        )
