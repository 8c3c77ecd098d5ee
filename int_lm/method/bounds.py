"""Bounds: the largest magnitude that each int32 sum of a recipe can reach.

The `Spec`s bound dot products and perturbations, the objective bounds the score, and the estimators
bound the votes. docs/arithmetic.md lists these sums. `recipe.of` refuses a configuration whose
bound exceeds int32.
"""

from collections.abc import Mapping

from int_lm.limits import INT8_MAX, noise_max
from int_lm.method.estimator import Estimator
from int_lm.method.objective import Objective
from int_lm.model.params import Role, Spec, Tree, flatten
from int_lm.settings import StrategySettings

MATRICES = (Role.MATRIX, Role.PROJECTION, Role.READOUT)


def widest_inputs(network: Tree) -> int:
    """The largest number of inputs of a matrix; `network` is a tree of `Spec`s."""
    return max(spec.shape[-1] for _, spec in flatten(network) if spec.role in MATRICES)


def sums(
    es: StrategySettings,
    network: Tree,
    objective: Objective,
    voting: Mapping[Estimator, dict[str, Spec]],
) -> list[tuple[str, int]]:
    """(what is summed, the largest magnitude that it can reach) of every int32 sum.

    Args:
      network: tree of `Spec`s.
      objective: bounds the score.
      voting: the estimators in use, each with the `Spec`s of its tensors by path.
    """
    widest = widest_inputs(network)
    entry = es.rank * noise_max(es) ** 2  # the largest entry of A B^T
    perturbation = f"the perturbation of {widest} inputs at rank {es.rank} ({es.noise})"
    return [
        (f"a dot over {widest} inputs", widest * INT8_MAX * INT8_MAX * 2),
        (perturbation, widest * INT8_MAX * entry),
        *(total for estimator, specs in voting.items() for total in estimator.sums(es, specs)),
        (f"the score of {es.segment_length} tokens", objective.score_max(es)),
    ]
