"""Votes made token by token: what every token leaves behind, and the votes of a segment.

Axes: T tokens of a segment, I pairs, J = T I, R rank, V vocabulary; L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.limits import spare_bits
from int_lm.method.clock import Clock
from int_lm.method.estimator import Segment, TokenVotes, credit
from int_lm.method.estimator.rounding import Rounding
from int_lm.method.objective import Keep
from int_lm.method.recipe import Recipe
from int_lm.model.layers import Activity
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Parameters, Spec, flatten

VotesByPath = dict[str, Array]  # int32, of the tensors' shapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowErrors:
    """What context tables learn from, instead of votes: the rows that were read, and the errors.

    Attributes:
      rows: by name of the table, int32 [J]; one past the table for padding.
      errors_JV: onehot(target) - p, int8; 127 >> spare bits make 1.
    """

    rows: dict[str, Array]
    errors_JV: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """What one token leaves for the votes: of one token, or with a T axis in front.

    Attributes:
      tensors: by path, what the tensor's estimator recorded.
      rows: of the context tables, int32 [..., I] by name.
      difference_I: of the two members' log-likelihoods, int32 in units of 2^-16 bit.
      logits_IV, targets_I, residual_ID, gain_ID: of the first member of every pair.
    """

    tensors: dict[str, Any]
    rows: dict[str, Array]
    difference_I: Array
    logits_IV: Array
    targets_I: Array
    residual_ID: Array
    gain_ID: Array


def _voting(recipe: Recipe) -> dict[str, tuple[Spec, TokenVotes]]:
    """The tensors whose votes are made of tokens, by path."""
    return {
        path: (spec, estimator.of_tokens)
        for estimator, specs in recipe.voting.items()
        if estimator.of_tokens
        for path, spec in specs.items()
    }


def keep(recipe: Recipe) -> Keep:
    """What an objective calls at every token; its results make the records of `votes`."""

    def record(
        activity: Activity, logits_PV: Array, targets_P: Array, log_likelihood_P: Array
    ) -> Record:
        uses = dict(flatten(activity.uses))
        return Record(
            tensors={
                path: votes.record(spec, uses[path])
                for path, (spec, votes) in _voting(recipe).items()
            },
            rows={name: rows_P[0::2] for name, rows_P in activity.rows.items()},
            difference_I=log_likelihood_P[0::2] - log_likelihood_P[1::2],
            logits_IV=logits_PV[0::2],
            targets_I=targets_P[0::2],
            residual_ID=activity.residual[0::2],
            gain_ID=activity.gain[0::2].astype(jnp.int8),
        )

    return record


def votes(
    recipe: Recipe, members: Parameters, records: Record, pairs_I: Array, clock: Clock
) -> tuple[VotesByPath, RowErrors | None]:
    """Votes of one segment, and what the context tables learn from it, if there are any.

    Args:
      members: `perturb.Weight`s of the pairs.
      records: of `keep`, stacked over the segment's T tokens.
      pairs_I: numbers of the pairs, int32.
    """
    rounding = Rounding(pairs_I, clock.step, spare_bits(recipe.es))
    errors_TIV = None
    if recipe.needs_errors:
        errors_TIV = credit.readout_errors(records.logits_IV, records.targets_I, rounding)
    segment = Segment(
        network=members.network,
        difference_TI=records.difference_I,
        errors_TIV=errors_TIV,
        residual_TID=records.residual_ID,
        gain_TID=records.gain_ID,
        rounding=rounding,
    )
    voting = _voting(recipe)
    kinds = dict.fromkeys(kind for _, kind in voting.values())
    prepared = {kind: kind.prepare(segment) for kind in kinds}
    weights, sums = dict(flatten(members.network)), {}
    for path, (spec, kind) in voting.items():
        through = weights[spec.through].value if spec.through else None
        operands = weights[path], records.tensors[path], through

        def of_layer(operands: Any, spec: Spec = spec, kind: TokenVotes = kind) -> Array:
            weight, record, through = operands
            return kind.votes(spec, weight, record, through, prepared[kind], rounding)

        sums[path] = _by_layer(of_layer, operands) if spec.layers else of_layer(operands)
    if not records.rows:
        return sums, None
    assert errors_TIV is not None
    return sums, RowErrors(
        rows={
            name: _rows_read(recipe, name, rows_TI, records.targets_I)
            for name, rows_TI in records.rows.items()
        },
        errors_JV=errors_TIV.reshape(-1, errors_TIV.shape[-1]),
    )


def _by_layer(function: Callable[[Any], Array], operands: Any) -> Array:
    """`function` of one layer after another: records [T, L, ...] go to [L, T, ...]."""
    weight, records, through = operands
    records = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), records)
    return jax.lax.map(function, (weight, records, through))


def _rows_read(recipe: Recipe, name: str, rows_TI: Array, targets_TI: Array) -> Array:
    """Rows of a table that learn, int32 [J]: one past the table for what padding read."""
    past = recipe.model.specs.tables[name].shape[0]
    return jnp.where(targets_TI == NO_TARGET, past, rows_TI).reshape(-1)
