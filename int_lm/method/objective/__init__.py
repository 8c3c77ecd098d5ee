"""Objectives: what members do with a batch, and the score of it. An objective is one value."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Tree
from int_lm.settings import StrategySettings

# (activity, logits [P, V], targets int32 [P], log-likelihoods int32 [P]) -> what votes need of it
Keep = Callable[[Activity, Array, Array, Array], Any]


class Objective(NamedTuple):
    """What a population is scored by. Whatever gives an integer will do.

    Attributes:
      name: as in the configuration.
      run: (model, members, state, tokens [P, T+1], keep) -> (state, scores int32 [P], records).
        `members` are the members' perturbed parameters, `state` their recurrent state, which goes
        on from one step to the next; the higher the score, the better. `records` are what `keep`
        returned for each token, stacked over T; None if the objective has no log-likelihood of
        every token.
      of_tokens: whether it has one, which all estimators but those of fitness need.
      score_max: (es) -> the largest magnitude of a score.
      in_bits: whether scores are log-likelihoods in units of 2^-16 bit.
    """

    name: str
    run: Callable[[LanguageModel, Parameters, Tree, Array, Keep], tuple[Tree, Array, Any]]
    of_tokens: bool
    score_max: Callable[[StrategySettings], int]
    in_bits: bool = False


def get(name: str) -> Objective:
    """The objective that a configuration names; errors as of `plugins.resolve`."""
    return plugins.resolve("objective", name, Objective)
