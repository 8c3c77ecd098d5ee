"""Objectives: what members do with a batch, and how they are scored.

An objective is one `Objective` value, in one file.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Activity
from int_lm.model.params import Parameters, Tree
from int_lm.settings import StrategySettings

# (activity, logits [P, V], targets int32 [P], log-likelihoods int32 [P]) -> record of one token
Keep = Callable[[Activity, Array, Array, Array], Any]


class Objective(NamedTuple):
    """How members are scored. Any function that gives an integer score will do.

    Attributes:
      run: (model, members, state, tokens [P, T+1], keep) -> (state, scores int32 [P], records).
        `members` holds the members' perturbed parameters. `state` is their recurrent state, which
        carries over from step to step. A higher score is better. `records` holds what `keep`
        returned for each token, stacked over T; None if the objective has no log-likelihood of
        every token.
      has_token_likelihoods: whether it has a log-likelihood of every token. All estimators need it
        except those that use the fitness.
      score_max: (es) -> the largest possible magnitude of a score.
      in_bits: whether scores are log-likelihoods in units of 2^-16 bit.
      written: whether members write completions, which a reward function judges (`method.tuning`);
        `run` then refuses to run.
    """

    run: Callable[[LanguageModel, Parameters, Tree, Array, Keep], tuple[Tree, Array, Any]]
    has_token_likelihoods: bool
    score_max: Callable[[StrategySettings], int]
    in_bits: bool = False
    written: bool = False


def get(name: str) -> Objective:
    """The objective that a configuration names.

    Raises:
      UserError: as `plugins.resolve`.
    """
    return plugins.resolve("objective", name, Objective)
