"""Reading: a model reads tokens one after another, and values are kept for each token.

Axes: P members (or any batch), T tokens, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.model import likelihood
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Tree


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

    def step(state: Tree, pair: tuple[Array, Array]) -> tuple[Tree, Any]:
        token_P, target_P = pair
        state, logits_PV, activity = model.step(weights, state, token_P)
        return state, keep(activity, logits_PV, token_P, target_P)

    tokens_TP = tokens_PT.astype(jnp.int32).T
    return jax.lax.scan(step, state, (tokens_TP[:-1], tokens_TP[1:]))


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
