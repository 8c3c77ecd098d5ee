"""An objective: the number of tokens of a segment for which the likeliest token is the target.

The score has no gradient, and no log-likelihood of every token. So only estimators that use the
fitness of pairs can use it (`--es.votes eggroll --es.readout perturbed`).

Axes: P members, T segment length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.limits import SEPARATOR
from int_lm.method.objective import Keep, Objective
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Tree
from int_lm.settings import StrategySettings


def guess(
    model: LanguageModel, members: Parameters, state: Tree, tokens_PT: Array, keep: Keep
) -> tuple[Tree, Array, Any]:
    """Read tokens one after another: (state after token T-1, tokens guessed int32 [P], None).

    A separator after a separator is padding, which counts for nothing.

    Args:
      tokens_PT: any integer dtype [P, T+1]; token t+1 is the target of token t.
    """

    def step(carry: tuple[Tree, Array], token: tuple[Array, Array]):
        state, score_P = carry
        token_P, target_P = token
        state, logits_PV, _ = model.step(members, state, token_P)
        guessed_P = jnp.argmax(logits_PV, axis=-1).astype(jnp.int32) == target_P
        padding_P = (token_P == SEPARATOR) & (target_P == SEPARATOR)
        return (state, score_P + (guessed_P & ~padding_P).astype(jnp.int32)), None

    tokens_TP = tokens_PT.astype(jnp.int32).T
    start = state, jnp.zeros(len(tokens_PT), jnp.int32)
    (state, score_P), _ = jax.lax.scan(step, start, (tokens_TP[:-1], tokens_TP[1:]))
    return state, score_P, None


def _score_max(es: StrategySettings) -> int:
    return es.segment_length


HITS = Objective(run=guess, has_token_likelihoods=False, score_max=_score_max)
