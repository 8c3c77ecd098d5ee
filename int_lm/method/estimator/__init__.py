"""Estimators: how votes are made of what a population did. An estimator is one value, in one file.

A vote is what the population says of one weight: an int32 sum over its pairs, whose sign is the way
to go. Two kinds of estimators make them:

    of fitness    from the pairs' scores alone, whatever the objective (`eggroll`, the paper's)
    of tokens     from every token's log-likelihood and what the forward pass knows (`trace`,
                  `unit`, `exact`): far less noise, for log-likelihood only

`choose` says which estimator votes on which tensors.

Axes: T tokens of a segment, I pairs, D width, V vocabulary; L layers are stacked in front.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.errors import UserError, require
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec, Tree
from int_lm.model.perturb import Weight
from int_lm.settings import StrategySettings

Noise = tuple[Array, Array | None]  # (A, B) of a matrix, (n, None) of a VECTOR: `perturb`


class Segment(NamedTuple):
    """What the pairs of a chunk did with their segment: arrays of the first member of every pair.

    Attributes:
      network: tree of the pairs' `perturb.Weight`s.
      difference_TI: log-likelihood of the first member less that of the second, int32 in units of
        2^-16 bit.
      errors_TIV: onehot(target) - p, int8, 127 >> spare bits make 1 (`credit.readout_errors`);
        None unless an estimator needs them.
      residual_TID, gain_TID: see `layers.Activity`, int8.
      rounding: the dithers of this segment.
    """

    network: Tree
    difference_TI: Array
    errors_TIV: Array | None
    residual_TID: Array
    gain_TID: Array
    rounding: Rounding


class TokenVotes(NamedTuple):
    """Votes made token by token.

    Attributes:
      record: (spec, use) -> what one token leaves for one tensor, a tree of arrays with pairs
        instead of members.
      prepare: (segment) -> what all tensors need, computed once.
      votes: (spec, weight, records, through, prepared, rounding) -> int32 sums of the tensor's
        shape, of one layer of a stacked tensor. `weight` is the pairs' `Weight`, `records` is of
        `record` with T in front, `through` the int8 values of the tensor that `spec.through`
        names, or None.
      needs_errors: whether it needs the errors of an exact readout.
    """

    record: Callable[[Spec, Use], Any]
    prepare: Callable[[Segment], Any]
    votes: Callable[[Spec, Weight, Any, Array | None, Any, Rounding], Array]
    needs_errors: bool = False


class Estimator(NamedTuple):
    """How votes are made.

    Attributes:
      name: as in the configuration.
      roles: of the tensors it can vote on.
      perturbed: of these, the roles whose tensors members perturb.
      of_fitness: (es, noise of one tensor, fitness int8 [I]) -> int32 sums of its shape; or None.
      of_tokens: instead, for votes made token by token.
      sums: (es, specs of its tensors) -> (what is summed, the largest magnitude it can reach) of
        every int32 sum of its own; specs come by path.
      operations: (spec) -> multiplications and additions per token of the votes on a tensor,
        counted for each member; 0 for what does not grow with the number of tokens.
    """

    name: str
    roles: frozenset[Role]
    perturbed: frozenset[Role]
    of_fitness: Callable[[StrategySettings, Noise, Array], Array] | None
    of_tokens: TokenVotes | None
    sums: Callable[[StrategySettings, dict[str, Spec]], list[tuple[str, int]]]
    operations: Callable[[Spec], int]


def get(name: str) -> Estimator:
    """The estimator that a configuration names; errors as of `plugins.resolve`."""
    return plugins.resolve("estimator", name, Estimator)


def choose(es: StrategySettings) -> tuple[Estimator, ...]:
    """The estimators of a configuration: the first one that can vote on a tensor does.

    An exact readout comes first, then what `es.votes` names, then `eggroll`, which can vote on
    everything.

    Raises:
      UserError: `es.votes` names none, one whose parts contradict each other, or one that needs an
        exact readout which there is not.
    """
    main, exact = get(es.votes), [get("exact")] if es.readout == "exact" else []
    one_way = (main.of_fitness is None) != (main.of_tokens is None)
    require(one_way, f"es.votes {es.votes} must have one of of_fitness and of_tokens")
    possible = frozenset(Role) - {Role.TABLE} - ({Role.VECTOR} if main.of_tokens else set())
    impossible = main.roles - (possible if main.of_tokens else possible & main.perturbed)
    names = ", ".join(sorted(role.name for role in impossible))
    require(not impossible, f"es.votes {es.votes} cannot vote on {names}: nothing is known of them")
    if main.of_tokens and main.of_tokens.needs_errors and not exact:
        raise UserError(
            f"es.votes {es.votes} needs the readout's exact errors; add --es.readout exact"
        )
    return (*exact, main, get("eggroll"))


def votes_on(estimators: Sequence[Estimator], role: Role) -> Estimator:
    """Which of the chosen estimators votes on tensors of a role."""
    return next(estimator for estimator in estimators if role in estimator.roles)
