"""Context tables: int8 tables from the last k tokens straight to the logits.

They are the maximum-entropy features, or direct connections, of RNNLM (Mikolov et al., "Strategies
for training large scale neural network language models", ASRU 2011). For every context length k in
`model.direct` there is a table of 2^direct_bits rows of V logits, q4; the row that a hash of the
last k tokens picks is added to the recurrent network's logits. Different contexts may share a row.
Tokens before a document's start count as separators.

The logits are linear in a row, so its gradient is the sum of the errors onehot(target) - p of the
tokens that were read with it: no perturbation, and only rows that were read change. With e the mean
error over the h times it was read in a step, and n the number of steps that have read it,

    row += direct_rate e / sqrt(max(1, floor(n / h)))      rounded up or down by a dither

so that a context seen once learns at once, and a frequent one settles, the later the more often it
is read in a step. One rate then suits both: rare contexts, which must not be learnt by heart, and
frequent ones, which must not learn too slowly.

Axes: P members, I pairs, K context lengths, J = T I tokens and pairs of a segment, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed, tables
from int_lm.limits import SEPARATOR, spare_bits
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings, StrategySettings

COUNT_MAX = 2**31 - 1
# 2^7 units of an error make 1
_MOVE_BITS = fixed.DIRECT_STEP_BITS + fixed.DIRECT_MEAN_BITS + 7


def _name(length: int) -> str:
    return f"context_{length}"


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """{"context_k": [2^direct_bits, V]} for every context length k."""
    shape = 1 << model.direct_bits, vocab_size
    return {_name(length): Spec(shape, Role.TABLE, init=0) for length in model.direct}


def initial_context(model: ModelSettings, batch: int) -> Array:
    """The tokens before a document's start, the last one first: int32 [max k, P]."""
    return jnp.full((max(model.direct), batch), SEPARATOR, jnp.int32)


def following(context_KP: Array, tokens_P: Array) -> Array:
    """The context after one more token; a separator forgets all before it."""
    longer = jnp.concatenate([tokens_P[None], context_KP[:-1]])
    return jnp.where((tokens_P != SEPARATOR)[None], longer, SEPARATOR)


def rows(model: ModelSettings, context_KP: Array) -> dict[str, Array]:
    """Which row each table adds: {"context_k": int32 [P]}.

    A multiplicative hash of the last k tokens, seeded with k, in 32 bits; its top bits are used.
    """
    picked = {}
    for length in model.direct:
        word = jnp.full(context_KP.shape[1:], length, jnp.uint32)
        for token_P in context_KP[:length]:
            word = (word ^ token_P.astype(jnp.uint32)) * np.uint32(0x9E3779B1)
            word = word ^ (word >> np.uint32(15))
        word = word * np.uint32(0x85EBCA77)
        picked[_name(length)] = (word >> np.uint32(32 - model.direct_bits)).astype(jnp.int32)
    return picked


@native.accelerated(cpu="direct_added")
def added(weights: Tree, picked: dict[str, Array], logits_PV: Array) -> Array:
    """Logits + the picked rows, clipped to 16 bits: int16 q4 [P, V]. `weights`: int8 tables."""
    total_PV = logits_PV.astype(jnp.int32)
    for name, rows_P in picked.items():
        total_PV = total_PV + weights[name][rows_P].astype(jnp.int32)
    return fixed.narrow(total_PV, jnp.int16)


def initial_counts(model: ModelSettings) -> dict[str, Array]:
    """Steps that have read each row: {"context_k": int32 zeros [2^direct_bits]}."""
    return {_name(length): jnp.zeros(1 << model.direct_bits, jnp.int32) for length in model.direct}


def _row_step(rate: int, counts_J: Array) -> Array:
    """direct_rate / sqrt(count), in units of 2^-8 of 1/16 bit: int32, for counts from 1 up.

    Counts are brought below 2^12 by an even shift, whose root is half of it.
    """
    width_J = 32 - jax.lax.clz(counts_J)
    halves_J = (jnp.maximum(width_J - tables.ROOT_INDEX_BITS, 0) + 1) >> 1
    root_J = jnp.asarray(tables.reciprocal_root())[counts_J >> (2 * halves_J)]
    return fixed.shift_down(rate * root_J, tables.ROOT_BITS) >> halves_J


def update(
    es: StrategySettings,
    table: Array,
    counts: Array,
    rows_J: Array,
    errors_JV: Array,
    step: Array,
) -> tuple[Array, Array]:
    """A table and its counts after one step.

    Args:
      table: int8 [rows, V]. counts: int32 [rows].
      rows_J: int32, the row that was read, one past the table for padding.
      errors_JV: int8, of `credit.readout_errors`; 127 >> spare bits make 1.
      step: of the run, uint32 scalar.
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
    """`update` at a rate in units of 2^-8, of errors that are short of int8 by the spare bits.

    The errors of one row are summed where it was read last. So work and memory grow with J, but for
    a word of memory for each row.
    """
    count, size = len(rows_J), len(table)
    place_J = jnp.arange(count, dtype=jnp.int32)
    last = jnp.zeros(size, jnp.int32).at[rows_J].max(place_J, mode="drop")
    last_J = jnp.where(rows_J < size, last.at[rows_J].get(mode="clip"), place_J)
    hits_J = jnp.zeros(count, jnp.int32).at[last_J].add(1)
    error_JV = jnp.zeros(errors_JV.shape, jnp.int32).at[last_J].add(errors_JV.astype(jnp.int32))
    # where a row is read again later, and padding: rows past the table, which are dropped
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
