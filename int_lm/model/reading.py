"""Reading: a model reads tokens one after another, and values are kept for each token.

Axes: P members (or any batch), T tokens, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.model import document_cache, likelihood, params
from int_lm.model.document_cache import Reading
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Spec, Tree
from int_lm.model.perturb import Weight


def read(
    model: LanguageModel,
    weights: Parameters,
    state: Tree,
    tokens_PT: Array,
    keep: Callable[[Activity, Array, Array, Array], Any],
) -> tuple[Tree, Any]:
    """Read tokens one after another; token t+1 is the target of token t.

    Args:
      weights: of `perturb.unperturbed`, or with perturbations.
      state: of `initial_state`, leaves [L, P, ...].
      tokens_PT: any integer dtype [P, T+1].
      keep: (activity, logits [P, V], token int32 [P], target int32 [P]) -> what is kept of the
        token, a tree of arrays.

    Returns:
      The state after token T-1, and what was kept of every token, stacked along T in front.
    """

    def token(
        weights: Parameters,
        state: Tree,
        reading: Reading | None,
        token_P: Array,
        target_P: Array,
    ) -> tuple[Tree, Any]:
        state, logits_PV, activity = model.step_after(weights, state, token_P, reading)
        return state, keep(activity, logits_PV, token_P, target_P)

    tokens_TP = tokens_PT.astype(jnp.int32).T
    cache, readings = model.read_ahead(state, tokens_TP[:-1])
    state = {name: leaf for name, leaf in state.items() if name not in cache}
    work = tokens_TP.size * params.count(model.specs.network)
    following, kept = native.over_tokens(
        token,
        weights,
        _members(model, weights),
        state,
        tokens_TP,
        model.vocab_size,
        work,
        each=document_cache.of_pairs(readings, tokens_TP.shape[1] // 2),
    )
    return following | cache, kept


def _members(model: LanguageModel, weights: Parameters) -> Parameters:
    """Where the members are in every array of the weights: a `native.Members` for each."""

    def of_weight(spec: Spec, weight: Weight) -> Weight:
        own = weight.value.ndim > len(spec.full_shape)  # a perturbed VECTOR
        pairs = None if weight.left is None else native.Members(weight.left.ndim - 3, 2)
        value = native.Members(weight.value.ndim - 2 if own else None)
        return Weight(value, pairs, pairs, shift=weight.shift)  # type: ignore[arg-type]

    return Parameters(
        params.map_leaves(of_weight, model.specs.network, weights.network),
        jax.tree.map(lambda table: native.Members(), weights.tables),
    )


def measured(
    model: LanguageModel,
    weights: Parameters,
    state: Tree,
    tokens_PT: Array,
    metric: Callable[[Array, Array], Array] = likelihood.log2_likelihood,
) -> tuple[Tree, Array]:
    """`read`, which keeps `metric(logits [P, V], target int32 [P])` of every token: [T, P]."""

    def keep(activity: Activity, logits_PV: Array, token_P: Array, target_P: Array) -> Array:
        return metric(logits_PV, target_P)

    return read(model, weights, state, tokens_PT, keep)
