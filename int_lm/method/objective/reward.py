"""`reward`: a member writes completions of prompts; a Python function computes its score.

The scores are not computed inside of a step, because the function may be any Python function.
`write` is the part of the objective that the population runs; `method.tuning` has the steps of
training. Members carry no state from step to step: every prompt begins at a document's start.

Axes: P members, N tokens of a prompt, C tokens of a completion, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.errors import UserError
from int_lm.limits import INT32_MAX, SEPARATOR
from int_lm.method.objective import Keep, Objective
from int_lm.model import sampler
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Tree


def write(
    model: LanguageModel,
    members: Parameters,
    prompts_PN: Array,
    ends_V: Array,
    length: int,
    draws: tuple[Array, Array] | None,
) -> Array:
    """Completions of prompts, int32 [P, C].

    A completion ends with its first token that `ends_V` marks; separators follow. All prompts have
    the same length: shorter ones begin with more separators. These change nothing, because a
    separator resets the state.

    Args:
      members: a `perturb.Weight` for every tensor.
      prompts_PN: int32, at least one token each.
      ends_V: bool, whether a token ends a completion; True for the separator.
      length: C, at least 1.
      draws: (weights, of `sampler.weights`; random words, uint32 [P, C]); None for the likeliest
        token every time.
    """
    state = model.initial_state(len(prompts_PN))

    def read(state: Tree, token_P: Array) -> tuple[Tree, None]:
        return model.step(members, state, token_P)[0], None

    state, _ = jax.lax.scan(read, state, prompts_PN[:, :-1].T)

    def unfinished(carry: tuple[Array, Tree, Array, Array, Array]) -> Array:
        t, _, _, done_P, _ = carry
        return (t < length) & ~jnp.all(done_P)

    def add(
        carry: tuple[Array, Tree, Array, Array, Array],
    ) -> tuple[Array, Tree, Array, Array, Array]:
        t, state, token_P, done_P, written_CP = carry
        state, logits_PV, _ = model.step(members, state, token_P)
        if draws is None:
            token_P = sampler.greedy(logits_PV)
        else:
            weights, words_PC = draws
            word_P = jax.lax.dynamic_index_in_dim(words_PC, t, axis=1, keepdims=False)
            token_P = sampler.drawn(logits_PV, weights, word_P)
        token_P = jnp.where(done_P, SEPARATOR, token_P)
        written_CP = jax.lax.dynamic_update_index_in_dim(written_CP, token_P, t, axis=0)
        return t + 1, state, token_P, done_P | ends_V[token_P], written_CP

    written_CP = jnp.full((length, len(prompts_PN)), SEPARATOR, jnp.int32)
    start = jnp.int32(0), state, prompts_PN[:, -1], jnp.zeros(len(prompts_PN), bool), written_CP
    return jax.lax.while_loop(unfinished, add, start)[-1].T


def _run(
    model: LanguageModel, members: Parameters, state: Tree, tokens_PT: Array, keep: Keep
) -> tuple[Tree, Array, Any]:
    raise UserError(
        "es.objective reward needs what members write to be judged between the parts of a step; "
        "start it with python -m int_lm.tune"
    )


REWARD = Objective(
    run=_run, has_token_likelihoods=False, score_max=lambda es: INT32_MAX, written=True
)
