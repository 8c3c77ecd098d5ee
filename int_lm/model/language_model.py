"""A language model: an architecture's recurrent network and, if configured, context tables.

Training, evaluation and sampling use a model through `LanguageModel` only.

Axes: P members (or any batch), V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.errors import require
from int_lm.limits import SEPARATOR
from int_lm.model import architecture, compiling, context_tables, document_cache
from int_lm.model.architecture import Architecture
from int_lm.model.context_tables import CONTEXT, HELD, LIMIT, WORDS
from int_lm.model.document_cache import Reading
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Tree
from int_lm.settings import ModelSettings

# what a state has beside the recurrent network
BESIDES = (CONTEXT, WORDS, HELD, LIMIT)
BESIDES += (document_cache.NAME, document_cache.PLACE, document_cache.HASH)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model's sizes and equations, without weights.

    Hashable, so that it can be a static argument of compiled programs.

    Attributes:
      settings: the section `model` of a configuration.
      vocab_size: size V of the vocabulary.
      apart: whether logits are those of the network alone, and tables are read but not added: what
        learns is then a pool (`method.pool`).
    """

    settings: ModelSettings
    vocab_size: int
    apart: bool = False

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture that the settings name."""
        return architecture.get(self.settings.architecture)

    @functools.cached_property
    def specs(self) -> Parameters:
        """The `params.Spec` of every tensor of the network, and of every context table."""
        return Parameters(
            network=self.architecture.specs(self.settings, self.vocab_size),
            tables=context_tables.specs(self.settings, self.vocab_size)
            | document_cache.specs(self.settings),
        )

    def initial_state(self, batch: int, readers: int = 1) -> Tree:
        """The state at a document's start: a dict of arrays [..., batch, ...].

        The batch is the second axis of each array.

        Args:
          batch: number of members, or of documents read side by side.
          readers: so many members in succession will always read the same tokens. They share what
            depends on nothing else, the document cache: its second axis is batch / readers.
        """
        state = self.architecture.initial_state(self.settings, batch)
        for name in BESIDES:
            require(
                name not in state,
                f"the architecture {self.settings.architecture} has a state named {name}, which "
                "the context tables use; give it another name",
            )
        least = context_tables.HELD_LENGTH + 1 if self.apart else 1
        state = state | context_tables.initial_state(self.settings, batch, least)
        if self.apart:
            state[HELD] = jnp.zeros((1, batch), jnp.int32)
        if self.settings.cache:
            state = state | document_cache.initial_state(self.settings, batch // readers)
        return state

    def fresh_state(self, batch: int) -> Tree:
        """`initial_state` by one compiled program: arrays of their own, each can be donated."""
        return _compiled_initial_state(self)(batch)

    def _reset(self, recurrent: Tree, tokens_P: Array) -> Tree:
        """The network's state, with the initial one where the token is a separator."""
        start = self.architecture.initial_state(self.settings, len(tokens_P))

        def chosen(leaf: Array, first: Array) -> Array:
            keep = (tokens_P != SEPARATOR).reshape(1, -1, *([1] * (leaf.ndim - 2)))
            return jnp.where(keep, leaf, first)

        return jax.tree.map(chosen, recurrent, start)

    def step(
        self, weights: Parameters, state: Tree, tokens_P: Array
    ) -> tuple[Tree, Array, Activity]:
        """Read one token: (next state, logits q4 [P, V], activity).

        A separator, token 0, begins a document: the state is reset before it is read.

        Args:
          weights: a `perturb.Weight` for every tensor of the network, and the int8 context tables.
          state: of `initial_state` or of the step before.
          tokens_P: int32.
        """
        cached = functools.partial(self._cached, state, tokens_P)
        return self._step(weights, state, tokens_P, cached if self.settings.cache else None)

    def read_ahead(self, state: Tree, tokens_TP: Array) -> tuple[Tree, Reading | None]:
        """What the document cache says of tokens that follow: its state after them, and readings.

        It depends on no weight. A model without a cache has an empty state of it and no readings.

        Args:
          state: of `initial_state` or of the step before.
          tokens_TP: int32.

        Returns:
          The cache's part of the state, and a `Reading` of every stream with T in front.
        """
        if not self.settings.cache:
            return {}, None
        readers = self._readers(state, tokens_TP[0])
        context_KP = state[CONTEXT][:, ::readers]
        return document_cache.over_tokens(self.settings, state, context_KP, tokens_TP[:, ::readers])

    def step_after(
        self, weights: Parameters, state: Tree, tokens_P: Array, reading: Reading | None
    ) -> tuple[Tree, Array, Activity]:
        """`step` of a token that `read_ahead` has read.

        Args:
          state: that of `step`; the cache's part of it is not read, and not returned.
          reading: the token's; of streams that are each read by as many members in succession.
        """
        cached = (lambda context_KP: ({}, reading)) if reading is not None else None
        return self._step(weights, state, tokens_P, cached)

    def _readers(self, state: Tree, tokens_P: Array) -> int:
        """So many members in succession read the same tokens."""
        return len(tokens_P) // state[document_cache.PLACE].shape[1]

    def _cached(self, state: Tree, tokens_P: Array, context_KP: Array) -> tuple[Tree, Reading]:
        """The document cache's state after a token, and what it says of the next one."""
        readers = self._readers(state, tokens_P)
        return document_cache.step(
            self.settings, state, context_KP[:, ::readers], tokens_P[::readers]
        )

    def _step(
        self,
        weights: Parameters,
        state: Tree,
        tokens_P: Array,
        cached: Callable[[Array], tuple[Tree, Reading]] | None,
    ) -> tuple[Tree, Array, Activity]:
        """`step`; `cached` gives the cache's state and reading, from the context of the token."""
        recurrent = {name: leaf for name, leaf in state.items() if name not in BESIDES}
        recurrent, logits_PV, activity = self.architecture.step(
            weights.network, self._reset(recurrent, tokens_P), tokens_P
        )
        if CONTEXT not in state:
            return recurrent, logits_PV, activity
        context, partial = context_tables.step(state, tokens_P), LIMIT in state
        rows = context_tables.rows(self.settings, context)
        if partial:
            context[LIMIT] = state[LIMIT]
            rows = context_tables.limited(self.settings, rows, state[LIMIT][0])
        cache, reading = cached(context[CONTEXT]) if cached else ({}, None)
        following = recurrent | context | cache
        activity = dataclasses.replace(activity, rows=rows, cache=reading)
        if self.apart:
            following[HELD] = context_tables.held_back(state[HELD], context[CONTEXT])
            return following, logits_PV, dataclasses.replace(activity, held=following[HELD][0])
        return following, with_tables(weights.tables, rows, reading, logits_PV, partial), activity


def with_tables(
    tables: dict[str, Array],
    rows: dict[str, Array],
    reading: Reading | None,
    logits_PV: Array,
    partial: bool = False,
) -> Array:
    """Logits of a network plus those of the context tables and the document cache: int16 q4 [P, V].

    Args:
      tables: context tables, and the cache's weights, int8 by name.
      rows: int32 [P] by name.
      reading: of the cache; None without it.
      logits_PV: int8 or int16 q4.
      partial: as of `context_tables.added`.
    """
    logits_PV = context_tables.added(tables, rows, logits_PV, partial)
    if reading is None:
        return logits_PV
    return document_cache.added(tables[document_cache.NAME], reading, logits_PV)


@functools.cache
def _compiled_initial_state(model: LanguageModel) -> Callable[[int], Tree]:
    return compiling.quick_jit(model.initial_state, static_argnums=0)
