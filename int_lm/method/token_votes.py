"""Votes made token by token: the record of each token, and the votes of a whole segment.

Axes: T tokens of a segment, I voters, J = T I, R rank, V vocabulary; L layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.errors import require
from int_lm.limits import spare_bits
from int_lm.method import pool
from int_lm.method.clock import Clock
from int_lm.method.estimator import Segment, TokenVotes, credit
from int_lm.method.estimator.rounding import Rounding
from int_lm.method.objective import Keep
from int_lm.method.pool import Held
from int_lm.method.recipe import Recipe
from int_lm.model import document_cache, perturb
from int_lm.model.document_cache import Reading
from int_lm.model.language_model import with_tables
from int_lm.model.layers import Activity, Use
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Parameters, Role, Spec, flatten

VotesByPath = dict[str, Array]  # int32 arrays, each of its tensor's shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowErrors:
    """Row errors: the rows that each token read, and its errors. Context tables learn from them.

    Attributes:
      rows: index of the row that each token read, int32 [J] by name of the context table; for
        padding the number of rows, which is no row.
      errors_JV: onehot(target) - p, int8, in units of 1 / (127 >> spare_bits).
      cache: the same of the weights of the document cache; None without it.
      held: tokens from which none of these learn, but trust does; None but of a pool.
    """

    rows: dict[str, Array]
    errors_JV: Array
    cache: "CacheErrors | None" = None
    held: Held | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheErrors:
    """The weights of the document cache that each token used, one for a slot, and their errors.

    Attributes:
      weights: index of each weight, int32 [J F]; the number of weights for none.
      errors: error of the slot's token, int8 [J F, 1].
    """

    weights: Array
    errors: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of one token for the votes. Stacked over a segment, every array has T in front.

    Attributes:
      tensors: what the tensor's estimator recorded, by path.
      rows: row that every voter read, int32 [I] by name of the context table.
      cache: what the document cache said to every voter; None without it.
      difference_I: log-likelihood of a pair's first member minus that of its second, int32 in units
        of 2^-16 bit; None where each member reads a stream of its own.
      logits_IV: of the voters, int8 or int16 q4.
      targets_I: of the voters, int32; `NO_TARGET` for padding.
      residual_ID: residual stream of the voters, int8 q4.
      gain_ID: weight of the last norm, of the voters, int8.
      held_I: 1 where the voter's document is held back from all but trust, int32; None but of a
        pool.
    """

    tensors: dict[str, Any]
    rows: dict[str, Array]
    cache: Reading | None
    difference_I: Array | None
    logits_IV: Array
    targets_I: Array
    residual_ID: Array
    gain_ID: Array
    held_I: Array | None = None


def _voting(recipe: Recipe) -> dict[str, tuple[Spec, TokenVotes]]:
    """By path, the tensors whose votes are made token by token: (spec, how)."""
    return {
        path: (spec, estimator.of_tokens)
        for estimator, specs in recipe.voting.items()
        if estimator.of_tokens
        for path, spec in specs.items()
    }


def keep(recipe: Recipe) -> Keep:
    """The function that an objective calls at every token; it returns the token's `Record`."""

    def record(
        activity: Activity, logits_PV: Array, targets_P: Array, log_likelihood_P: Array
    ) -> Record:
        uses = _checked(recipe, dict(flatten(activity.uses)))
        difference_I = log_likelihood_P[0::2] - log_likelihood_P[1::2] if paired else None
        targets_I = _voting_members(paired, targets_P)
        return Record(
            tensors={
                path: votes.record(spec, _of_voters(paired, spec, uses[path]))
                for path, (spec, votes) in _voting(recipe).items()
            },
            rows={name: _voting_members(paired, rows_P) for name, rows_P in activity.rows.items()},
            cache=document_cache.of_pairs(activity.cache, len(targets_I)),
            held_I=None if activity.held is None else _voting_members(paired, activity.held),
            difference_I=difference_I,
            logits_IV=_voting_members(paired, logits_PV),
            targets_I=targets_I,
            residual_ID=_voting_members(paired, activity.residual),
            gain_ID=_voting_members(paired, activity.gain).astype(jnp.int8),
        )

    paired = recipe.es.members_per_stream > 1
    return record


def _voting_members(paired: bool, leaf_P: Array) -> Array:
    """The rows of the voters: the first member of every pair, or every member."""
    return leaf_P[0::2] if paired else leaf_P


def _of_voters(paired: bool, spec: Spec, use: Use) -> Use:
    """A `Use` whose inputs and responses are those of the voters; effects are those of all."""
    if not paired:
        return use
    if spec.role is Role.EMBEDDING:
        return Use(use.inputs[0::2])
    own = dataclasses.replace(use, effect=None)
    own = jax.tree.map(lambda leaf: leaf[..., 0::2, :], own)
    return dataclasses.replace(own, effect=use.effect)


def _checked(recipe: Recipe, uses: dict[str, Use]) -> dict[str, Use]:
    """The uses by path.

    Raises:
      UserError: the architecture gives none of a tensor, or not the field of it that is needed.
    """
    where = f"the architecture {recipe.model.settings.architecture}"
    for path, (spec, votes) in _voting(recipe).items():
        require(path in uses, f"{where} gives no Use of {path}; add it to the uses of its Activity")
        require(
            not votes.needs
            or spec.role is not Role.MATRIX
            or getattr(uses[path], votes.needs) is not None,
            f"{where} gives no {votes.needs} of {path}, which es.votes {recipe.es.votes} needs; "
            "add it to its Use",
        )
    return uses


def votes(
    recipe: Recipe, members: Parameters, records: Record, pairs_I: Array, clock: Clock
) -> tuple[VotesByPath, RowErrors | None]:
    """Votes of one segment by path, and its row errors; None for a model without context tables.

    Args:
      members: a `perturb.Weight` for every tensor of the network, with these pairs' perturbations.
      records: of the function that `keep` returns, stacked over the segment's T tokens.
      pairs_I: indices of the pairs, int32.
      clock: seed and step.
    """
    alone = recipe.es.members_per_stream == 1
    numbers_I = perturb.members(pairs_I) if alone else pairs_I
    rounding = Rounding(numbers_I, clock.step, spare_bits(recipe.es))
    errors_TIV, targets_TI, held = None, records.targets_I, None
    if records.held_I is not None:
        held = pool.picked(
            records.held_I, targets_TI, records.logits_IV, records.rows, records.cache, rounding
        )
        targets_TI = jnp.where(records.held_I != 0, NO_TARGET, targets_TI)
    if recipe.needs_errors:
        errors_TIV = credit.readout_errors(records.logits_IV, targets_TI, rounding)
    segment = Segment(
        network=members.network,
        difference_TI=records.difference_I,
        errors_TIV=errors_TIV,
        residual_TID=records.residual_ID,
        gain_TID=records.gain_ID,
        rounding=rounding,
        tensors=records.tensors,
        architecture=recipe.model.architecture,
    )
    voting = _voting(recipe)
    kinds = dict.fromkeys(kind for _, kind in voting.values())
    prepared = {kind: kind.prepare(segment) for kind in kinds if kind.prepare}
    weights, sums = dict(flatten(members.network)), {}
    for kind in kinds:
        if kind.together:
            own = {path: spec for path, (spec, which) in voting.items() if which is kind}
            sums |= kind.together(segment, own)
    for path, (spec, kind) in voting.items():
        if path in sums:
            continue
        through = weights[spec.through].value if spec.through else None
        operands = weights[path], records.tensors[path], through

        def of_layer(operands: Any, spec: Spec = spec, kind: TokenVotes = kind) -> Array:
            weight, record, through = operands
            assert kind.votes is not None
            return kind.votes(spec, weight, record, through, prepared[kind], rounding)

        if not spec.layers:
            sums[path] = of_layer(operands)
        elif kind.of_layers and spec.role in (Role.MATRIX, Role.PROJECTION):
            records_L = _layers_first(records.tensors[path])
            sums[path] = kind.of_layers(
                spec, weights[path], records_L, through, prepared[kind], rounding
            )
        else:
            sums[path] = _by_layer(of_layer, operands)
    if not records.rows and records.cache is None:
        return sums, None
    assert errors_TIV is not None
    if held is not None:
        errors_TIV = _errors_apart(members.tables, records, targets_TI, rounding)
    return sums, RowErrors(
        rows={
            name: _rows_read(recipe, name, rows_TI, targets_TI)
            for name, rows_TI in records.rows.items()
        },
        errors_JV=errors_TIV.reshape(-1, errors_TIV.shape[-1]),
        cache=_cache_errors(recipe, records, targets_TI, errors_TIV) if records.cache else None,
        held=held,
    )


def _errors_apart(
    tables: dict[str, Array], records: Record, targets_TI: Array, rounding: Rounding
) -> Array:
    """`credit.readout_errors` of the tables and the document cache, as if there were no network."""
    flat = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))
    none_JV = jnp.zeros((targets_TI.size, records.logits_IV.shape[-1]), jnp.int16)
    logits_JV = with_tables(tables, flat(records.rows), flat(records.cache), none_JV)
    return credit.readout_errors(logits_JV.reshape(records.logits_IV.shape), targets_TI, rounding)


def _cache_errors(
    recipe: Recipe, records: Record, targets_TI: Array, errors_TIV: Array
) -> CacheErrors:
    """The errors of the document cache's weights over a segment."""
    assert records.cache is not None
    past = math.prod(recipe.model.specs.tables[document_cache.NAME].shape)
    none_TI1 = (targets_TI == NO_TARGET)[..., None]
    return CacheErrors(
        weights=jnp.where(none_TI1, past, records.cache.weights_PF).reshape(-1),
        errors=document_cache.errors_of(records.cache.tokens_PF, errors_TIV).reshape(-1, 1),
    )


def _by_layer(function: Callable[[Any], Array], operands: Any) -> Array:
    """Apply `function` to one layer after another, and stack the results: int32 [L, ...].

    Args:
      function: takes the operands of one layer, which are weight, records [T, ...] and `through`.
      operands: weight [L, ...], records [T, L, ...], and `through` [L, ...] or None.
    """
    weight, records, through = operands
    return jax.lax.map(function, (weight, _layers_first(records), through))


def _layers_first(records: Any) -> Any:
    """Records [T, L, ...] as [L, T, ...]."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), records)


def _rows_read(recipe: Recipe, name: str, rows_TI: Array, targets_TI: Array) -> Array:
    """Row of a context table that each token read, int32 [J]; for padding the number of rows."""
    past = recipe.model.specs.tables[name].shape[0]
    return jnp.where(targets_TI == NO_TARGET, past, rows_TI).reshape(-1)
