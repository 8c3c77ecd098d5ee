"""Reading: a model reads tokens, and each token is scored given the tokens before it.

Axes: P members (or any batch), T tokens, L layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.model import likelihood
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Tree


def read(
    model: LanguageModel,
    weights: Parameters,
    state: Tree,
    tokens_PT: Array,
    score: Callable[[Array, Array], Array] = likelihood.log2_likelihood,
) -> tuple[Tree, Array]:
    """Read tokens one after another, and score each token given the tokens before it.

    Args:
      weights: of `perturb.unperturbed`, or with perturbations.
      state: of `initial_state`, leaves [L, P, ...].
      tokens_PT: any integer dtype [P, T+1]; token t+1 is the target of token t.
      score: (logits [P, V], targets int32 [P]) -> scores [P].

    Returns:
      The state after token T-1, and the scores [T, P]; log2-likelihoods are int32 in units of
      2^-16 bit.
    """

    def step(state: Tree, pair: tuple[Array, Array]) -> tuple[Tree, Array]:
        token_P, target_P = pair
        state, logits_PV, _ = model.step(weights, state, token_P)
        return state, score(logits_PV, target_P)

    tokens_TP = tokens_PT.astype(jnp.int32).T
    return jax.lax.scan(step, state, (tokens_TP[:-1], tokens_TP[1:]))
