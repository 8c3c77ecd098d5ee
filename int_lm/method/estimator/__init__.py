"""Estimators: how votes are computed. An estimator is one `Estimator` value, in one file.

A vote is an int32 sum over the pairs, one for each weight. Its sign is the direction in which the
weight should move. There are two kinds of estimators:

    of fitness    use only the fitness of the pairs, so they work with any objective (`eggroll`)
    of tokens     use the log-likelihood of every token and the activations of the forward pass;
                  they have far less noise, but need a log-likelihood (`trace`, `unit`, `local`,
                  `exact`)

`choose` says which estimator votes on which tensors. The voters are the first member of every pair,
or, if nothing is perturbed, every member (`limits.voters`).

Axes: T tokens of a segment, I voters, D width, V vocabulary; L layers are stacked in front.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.errors import UserError, require
from int_lm.method.estimator.rounding import Rounding
from int_lm.model.architecture import Architecture
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec, Tree
from int_lm.model.perturb import Noise, Weight
from int_lm.settings import StrategySettings


class Segment(NamedTuple):
    """Records of a chunk's pairs over one segment, for token votes.

    Attributes:
      network: tree of `perturb.Weight`s with the pairs' perturbations.
      difference_TI: log-likelihood of a pair's first member minus that of its second, int32 in
        units of 2^-16 bit; None where each member reads a stream of its own.
      errors_TIV: onehot(target) - p of the voters, int8 in units of
        1 / (127 >> spare_bits) (`credit.readout_errors`); None if no estimator needs them.
      residual_TID: residual stream of the voters, int8 q4.
      gain_TID: weight of the last norm, of the voters, int8.
      rounding: the dithers of this segment.
      tensors: by path, the records of every tensor that is voted on token by token.
      architecture: the network's.
    """

    network: Tree
    difference_TI: Array | None
    errors_TIV: Array | None
    residual_TID: Array
    gain_TID: Array
    rounding: Rounding
    tensors: dict[str, Any]
    architecture: Architecture


class TokenVotes(NamedTuple):
    """Votes made token by token.

    Attributes:
      record: (spec, use) -> the record of one token for one tensor, a tree of arrays with an axis
        of voters in place of the axis of members. Inputs and responses of the use are those of the
        voters, effects are those of all members.
      prepare: (segment) -> what the votes on all tensors need; computed once for a segment.
      votes: (spec, weight, records, through, prepared, rounding) -> int32 sums of `spec.shape`. It
        is called once for each layer of a stacked tensor. `weight` is the `Weight` with the pairs'
        perturbations. `records` holds the results of `record`, with T in front. `through` holds the
        int8 values of the tensor that `spec.through` names; it is None if there is none.
      needs_errors: whether `prepare` needs the errors of the exact readout.
      needs: what `record` needs of every MATRIX: a field of its `Use`, "" for none.
      of_layers: the same as `votes` for all layers of a stacked MATRIX or PROJECTION at once: all
        arrays have L in front, and so have the sums. None if there is nothing faster.
      together: (segment, specs of its tensors by path) -> int32 sums by path, in place of `prepare`
        and `votes`, for votes that cannot be made tensor by tensor.
      check: (architecture, specs of its tensors by path) raises a UserError if `together` cannot
        vote on them; called before anything is compiled.
    """

    record: Callable[[Spec, Use], Any]
    prepare: Callable[[Segment], Any] | None = None
    votes: Callable[[Spec, Weight, Any, Array | None, Any, Rounding], Array] | None = None
    needs_errors: bool = False
    needs: Literal["", "effect", "responses", "stream"] = ""
    of_layers: Callable[[Spec, Weight, Any, Array | None, Any, Rounding], Array] | None = None
    together: Callable[[Segment, dict[str, Spec]], dict[str, Array]] | None = None
    check: Callable[[Architecture, dict[str, Spec]], None] | None = None


class Estimator(NamedTuple):
    """How votes are computed. It has one of `of_fitness` and `of_tokens`; the other one is None.

    Attributes:
      roles: roles of the tensors that it can vote on.
      perturbed: those of `roles` whose tensors members perturb.
      of_fitness: (es, noise of one tensor, fitness int8 [I]) -> int32 sums of the tensor's shape.
      of_tokens: votes made token by token.
      sums: (es, specs of its tensors by path) -> for each int32 sum that it computes, (what is
        summed, the largest magnitude that it can reach).
      operations: (spec) -> multiplications and additions of the votes on a tensor, per token and
        member, if one member of a pair votes; 0 if their number does not grow with the number of
        tokens.
      plain: whether votes of fitness are plain votes, sum_i f_i A_i B_i^T. The update `threshold`
        then knows their standard deviation under pure noise; otherwise it estimates it from the
        votes, whatever their scale.
    """

    roles: frozenset[Role]
    perturbed: frozenset[Role]
    of_fitness: Callable[[StrategySettings, Noise, Array], Array] | None
    of_tokens: TokenVotes | None
    sums: Callable[[StrategySettings, dict[str, Spec]], list[tuple[str, int]]]
    operations: Callable[[Spec], int]
    plain: bool = False


def get(name: str) -> Estimator:
    """The estimator that a configuration names.

    Raises:
      UserError: as `plugins.resolve`.
    """
    return plugins.resolve("estimator", name, Estimator)


def choose(es: StrategySettings) -> tuple[Estimator, ...]:
    """The estimators of a configuration, in order: the first one that can vote on a tensor does.

    First `exact` (if es.readout is exact), then the one that `es.votes` names, then `eggroll`,
    which can vote on every tensor of the network.

    Raises:
      UserError: `es.votes` names no estimator, names one whose attributes contradict each other, or
        names one that needs the errors of the exact readout while es.readout is not exact.
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
    """The one of the chosen estimators that votes on tensors of this role."""
    return next(estimator for estimator in estimators if role in estimator.roles)
