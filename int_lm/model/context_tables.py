"""Context tables: int8 tables that add logits chosen by the last k tokens.

They are the maximum-entropy features, or direct connections, of RNNLM (Mikolov et al., "Strategies
for training large scale neural network language models", ASRU 2011). For every context length k in
`model.direct` there is a table of 2^direct_bits rows of V logits, q4. A hash of the last k tokens
selects a row, which is added to the recurrent network's logits. Different contexts may share a row.
Tokens before a document's start count as separators.

The logits are linear in a row, so the gradient of a row is the sum of the errors onehot(target) - p
of the tokens that read it. No perturbation is needed, and only rows that were read change. Let h be
the number of times that a row was read in this step, e the mean error of these h tokens, and n the
number of steps so far that have read the row:

    row += direct_rate e / sqrt(max(1, floor(n / h)))      rounded up or down by a dither

A row moves by the full rate when it is read first, and by less in later steps. A row that is read
often in each step keeps the full rate for more steps. So one rate suits both rare contexts, which
must not be memorised, and frequent contexts, which must not learn too slowly.

Axes: P members, I pairs, K context lengths, J = T I tokens and pairs of a segment, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.arithmetic import constants, fixed
from int_lm.limits import SEPARATOR, spare_bits
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings, StrategySettings

COUNT_MAX = 2**31 - 1
# an error has 7 fractional bits
_MOVE_BITS = fixed.DIRECT_STEP_BITS + fixed.DIRECT_MEAN_BITS + 7


def _name(length: int) -> str:
    return f"context_{length}"


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """{"context_k": `Spec` of shape [2^direct_bits, V]} for every context length k."""
    shape = 1 << model.direct_bits, vocab_size
    return {_name(length): Spec(shape, Role.TABLE, init=0) for length in model.direct}


def initial_context(model: ModelSettings, batch: int) -> Array:
    """The context at a document's start: separators, int32 [max k, P]; row 0 is the last token.

    The document cache reads it, too.
    """
    longest = max((*model.direct, *model.cache))
    return jnp.full((longest, batch), SEPARATOR, jnp.int32)


def following(context_KP: Array, tokens_P: Array) -> Array:
    """The context after one more token; a separator replaces all earlier tokens by separators."""
    longer = jnp.concatenate([tokens_P[None], context_KP[:-1]])
    return jnp.where((tokens_P != SEPARATOR)[None], longer, SEPARATOR)


def hashed(lengths: Sequence[int], context_KP: Array) -> Array:
    """Hashes of so many last tokens, each seeded with its number: uint32 [lengths, P]."""
    sizes_K1 = jnp.asarray(lengths, jnp.uint32)[:, None]
    words_KP = jnp.broadcast_to(sizes_K1, (len(lengths), context_KP.shape[1]))
    for place, token_P in enumerate(context_KP[: max(lengths)].astype(jnp.uint32)):
        longer_KP = (words_KP ^ token_P[None]) * np.uint32(fixed.GOLDEN_RATIO)
        longer_KP = longer_KP ^ (longer_KP >> np.uint32(15))
        words_KP = jnp.where(sizes_K1 > place, longer_KP, words_KP)
    return words_KP


def rows(model: ModelSettings, context_KP: Array) -> dict[str, Array]:
    """The row of each context table that is added: {"context_k": int32 [P]}.

    The row is the top `direct_bits` bits of a 32-bit multiplicative hash of the last k tokens,
    seeded with k.
    """
    if not model.direct:
        return {}
    words_KP = hashed(model.direct, context_KP) * np.uint32(0x85EBCA77)
    rows_KP = (words_KP >> np.uint32(32 - model.direct_bits)).astype(jnp.int32)
    return {_name(length): rows_P for length, rows_P in zip(model.direct, rows_KP, strict=True)}


@native.accelerated(cpu="direct_added")
def added(weights: Tree, picked: dict[str, Array], logits_PV: Array) -> Array:
    """Logits plus the selected rows, clipped to [-32767, 32767]: int16 q4 [P, V].

    Args:
      weights: context tables, int8 [rows, V] by name.
      picked: of `rows`, int32 [P] by name.
      logits_PV: of the recurrent network, int8 or int16 q4.
    """
    total_PV = logits_PV.astype(jnp.int32)
    for name, rows_P in picked.items():
        total_PV = total_PV + weights[name][rows_P].astype(jnp.int32)
    return fixed.narrow(total_PV, jnp.int16)


def initial_counts(model: ModelSettings) -> dict[str, Array]:
    """Number of steps that have read each row: {"context_k": int32 zeros [2^direct_bits]}."""
    return {_name(length): jnp.zeros(1 << model.direct_bits, jnp.int32) for length in model.direct}


def _row_step(rate: int, counts_J: Array) -> Array:
    """direct_rate / sqrt(count) for counts >= 1: int32 [J], in units of 2^-8 of 1/16 bit.

    A count is shifted right by an even number 2 k of bits until it is below 2^12. The lookup table
    gives the reciprocal root of the rest, and 1 / sqrt(2^(2 k)) is a right shift by k bits.

    Args:
      rate: direct_rate in units of 2^-8.
      counts_J: int32.
    """
    width_J = 32 - jax.lax.clz(counts_J)
    halves_J = (jnp.maximum(width_J - constants.ROOT_INDEX_BITS, 0) + 1) >> 1
    root_J = jnp.asarray(constants.reciprocal_root())[counts_J >> (2 * halves_J)]
    return fixed.shift_down(rate * root_J, constants.ROOT_BITS) >> halves_J


def update(
    es: StrategySettings,
    table: Array,
    counts: Array,
    rows_J: Array,
    errors_JV: Array,
    step: Array,
) -> tuple[Array, Array]:
    """A context table and its counts after one step.

    Args:
      es: `direct_rate`, and the sizes from which `limits.spare_bits` follows.
      table: int8 [rows, V].
      counts: number of steps that have read each row, int32 [rows].
      rows_J: row that each token read, int32; the number of rows for padding.
      errors_JV: of `credit.readout_errors`, int8 in units of 1 / (127 >> spare_bits).
      step: number of steps done before, uint32 scalar.

    Returns:
      The table, int8, and the counts, int32, of the same shapes.
    """
    rate = round(es.direct_rate * (1 << fixed.DIRECT_STEP_BITS))  # below 2^15
    return learnt(table, counts, rows_J, errors_JV, step, rate, spare_bits(es))


@native.accelerated(cpu="direct_update")
def learnt(
    table: Array,
    counts: Array,
    rows_J: Array,
    errors_JV: Array,
    step: Array,
    rate: int,
    spare_bits: int,
) -> tuple[Array, Array]:
    """`update` with the rate in units of 2^-8 and the spare bits of the errors as arguments.

    The errors of a row are summed at the last index j that read the row. So work and memory grow
    with J and not with the size of the table, except for one int32 for each row.
    """
    count, size = len(rows_J), len(table)
    place_J = jnp.arange(count, dtype=jnp.int32)
    last = jnp.zeros(size, jnp.int32).at[rows_J].max(place_J, mode="drop")
    last_J = jnp.where(rows_J < size, last.at[rows_J].get(mode="clip"), place_J)
    hits_J = jnp.zeros(count, jnp.int32).at[last_J].add(1)
    error_JV = jnp.zeros(errors_JV.shape, jnp.int32).at[last_J].add(errors_JV.astype(jnp.int32))
    # padding, and all but the last index of each row, get indices past the table: they are dropped
    row_J = jnp.where((last_J == place_J) & (rows_J < size), rows_J, size + place_J)
    count_J = counts.at[row_J].get(mode="fill", fill_value=0)
    count_J = count_J + (count_J < COUNT_MAX).astype(jnp.int32)
    step_J = _row_step(rate, jnp.maximum(count_J // jnp.maximum(hits_J, 1), 1))
    factor_J = (step_J << fixed.DIRECT_MEAN_BITS) // jnp.maximum(hits_J, 1)  # error x factor < 2^30
    columns_V = jnp.arange(table.shape[1], dtype=jnp.int32)
    dither_JV = fixed.dither(row_J[:, None], columns_V[None], step, _MOVE_BITS)
    error_JV = error_JV << spare_bits
    move_JV = (error_JV * factor_J[:, None] + dither_JV) >> _MOVE_BITS
    old_JV = table.at[row_J].get(mode="fill", fill_value=0).astype(jnp.int32)
    moved_JV = fixed.saturate(old_JV + move_JV)
    options = {"mode": "drop", "unique_indices": True}
    return table.at[row_J].set(moved_JV, **options), counts.at[row_J].set(count_J, **options)
