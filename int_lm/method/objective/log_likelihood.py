"""`log_likelihood`: a member reads a segment of text; its score is the text's log-likelihood.

Axes: P members, T segment length, V vocabulary.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from int_lm.limits import LOG2_FRACTION_BITS, SEPARATOR, WORST_BITS_PER_TOKEN
from int_lm.method.objective import Keep, Objective
from int_lm.model import likelihood, reading
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Activity
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Parameters, Tree
from int_lm.settings import StrategySettings


def run(
    model: LanguageModel, members: Parameters, state: Tree, tokens_PT: Array, keep: Keep
) -> tuple[Tree, Array, Any]:
    """Read tokens one after another, and sum the log-likelihood of each given those before it.

    No document is empty, so a separator after a separator is padding: it adds nothing to the score
    and has no target.

    Args:
      members: the members' perturbed parameters.
      state: recurrent states, leaves [L, P, ...].
      tokens_PT: any integer dtype [P, T+1]; token t+1 is the target of token t.
      keep: called for every token; its results are the records.

    Returns:
      The state after token T-1, scores int32 [P] in units of 2^-16 bit, and records.
    """

    def kept(
        activity: Activity, logits_PV: Array, token_P: Array, target_P: Array
    ) -> tuple[Array, Any]:
        padding_P = (token_P == SEPARATOR) & (target_P == SEPARATOR)
        log_likelihood_P = jnp.where(padding_P, 0, likelihood.log2_likelihood(logits_PV, target_P))
        target_P = jnp.where(padding_P, NO_TARGET, target_P)
        return log_likelihood_P, keep(activity, logits_PV, target_P, log_likelihood_P)

    state, (log_likelihood_TP, records) = reading.read(model, members, state, tokens_PT, kept)
    return state, jnp.sum(log_likelihood_TP, axis=0), records


def _score_max(es: StrategySettings) -> int:
    return es.segment_length * WORST_BITS_PER_TOKEN << LOG2_FRACTION_BITS


LOG_LIKELIHOOD = Objective(run=run, has_token_likelihoods=True, score_max=_score_max, in_bits=True)
