"""Context tables: int8 tables that add logits chosen by the last k tokens.

They are the maximum-entropy features, or direct connections, of RNNLM (Mikolov et al., "Strategies
for training large scale neural network language models", ASRU 2011). For every context length k in
`model.direct` there is a table of 2^direct_bits rows of V logits, q4. A hash of the last k tokens
selects a row, which is added to the recurrent network's logits. Different contexts may share a row.
Tokens before a document's start count as separators.

For every number n in `model.words` there is one more table, whose row is selected by the last n
words. A word is a run of letters; the last one is the word that is being written, which is empty
after a token that is no letter. The state has the hashes of these words.

The logits are linear in a row, so the gradient of a row is the sum of the errors onehot(target) - p
of the tokens that read it. No perturbation is needed, and only rows that were read change. Let h be
the number of times that a row was read in this step, e the mean error of these h tokens, and n the
number of steps so far that have read the row:

    row += direct_rate e / sqrt(max(1, floor(n / h)))      rounded up or down by a dither

A row moves by the full rate when it is read first, and by less in later steps. A row that is read
often in each step keeps the full rate for more steps. So one rate suits both rare contexts, which
must not be memorised, and frequent contexts, which must not learn too slowly.

Axes: P members, I pairs, K context lengths, W words, J = T I tokens and pairs of a segment, V
vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.arithmetic import constants, fixed
from int_lm.limits import DIRECT_LENGTH_MAX, SEPARATOR, spare_bits
from int_lm.model import perturb
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings, StrategySettings

CONTEXT, WORDS = "context", "words"  # in a state: the last tokens, and hashes of the last words
HELD = "held"  # in a state, while a pool is trained: whether the document is held back
LIMIT = "limit"  # in a state, while training: tables of longer contexts are left out
COUNT_MAX = 2**31 - 1
HELD_LENGTH, HELD_BITS = 16, 4  # `held_back`: after so many tokens, one document in 2^4
_ROW_KEY = np.uint32(0x85EBCA77)  # a hash times it, its highest bits: the row
_SHARE_BITS = 10  # fractional bits of a share of the streams
# an error has 7 fractional bits
_MOVE_BITS = fixed.DIRECT_STEP_BITS + fixed.DIRECT_MEAN_BITS + 7


def names(model: ModelSettings) -> list[str]:
    """Names of the tables: "context_k" for every length k, then "words_n" for every number n."""
    return [f"context_{length}" for length in model.direct] + [f"words_{n}" for n in model.words]


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """A `Spec` of shape [2^direct_bits, V] for every table by name."""
    shape = 1 << model.direct_bits, vocab_size
    return {name: Spec(shape, Role.TABLE, init=0) for name in names(model)}


def initial_state(model: ModelSettings, batch: int, least: int = 1) -> Tree:
    """What the tables, and the document cache, need of the text before: at a document's start.

    Args:
      least: number of last tokens that the state has at least.

    Returns:
      {"context": the last tokens, separators, int32 [max k, P], the newest first}, and with
      `model.words` "words": hashes of the last words, 0 for none, int32 [max n, P]; the first is
      that of the word that is being written.
    """
    if not (model.direct or model.words or model.cache):
        return {}
    longest = max((least, *model.direct, *model.cache))
    state = {CONTEXT: jnp.full((longest, batch), SEPARATOR, jnp.int32)}
    return state | ({WORDS: jnp.zeros((max(model.words), batch), jnp.int32)} if model.words else {})


def step(state: Tree, tokens_P: Array) -> Tree:
    """`initial_state` after one more token."""
    after = {CONTEXT: following(state[CONTEXT], tokens_P)}
    return after | ({WORDS: following_words(state[WORDS], tokens_P)} if WORDS in state else {})


def following(context_KP: Array, tokens_P: Array) -> Array:
    """The context after one more token; a separator replaces all earlier tokens by separators."""
    longer = jnp.concatenate([tokens_P[None], context_KP[:-1]])
    return jnp.where((tokens_P != SEPARATOR)[None], longer, SEPARATOR)


def following_words(words_WP: Array, tokens_P: Array) -> Array:
    """Hashes of the last words after one more token; a separator forgets all of them.

    A letter makes the word longer that is being written, and any other token ends it. Tokens are
    bytes: letters are those of ASCII, capital or small, and all bytes of which others are made.
    """
    now_1P = words_WP[:1].astype(jnp.uint32)
    small_P = jnp.where(tokens_P < 128, tokens_P | 32, tokens_P)  # where they are letters
    longer_1P = _mixed(now_1P, small_P[None].astype(jnp.uint32)).astype(jnp.int32)
    longer_WP = jnp.concatenate([longer_1P, words_WP[1:]])
    ended_WP = jnp.concatenate([jnp.zeros_like(longer_1P), words_WP[:-1]])
    ended_WP = jnp.where(now_1P != 0, ended_WP, words_WP)
    ended_WP = jnp.where((tokens_P != SEPARATOR)[None], ended_WP, 0)
    letters_P = ((small_P >= ord("a")) & (small_P <= ord("z"))) | (tokens_P >= 128)
    return jnp.where(letters_P[None], longer_WP, ended_WP)


def _mixed(words: Array, numbers: Array) -> Array:
    """Hashes with one more number each, uint32."""
    longer = (words ^ numbers) * np.uint32(fixed.GOLDEN_RATIO)
    return longer ^ (longer >> np.uint32(15))


def hashed(lengths: Sequence[int], context_KP: Array) -> Array:
    """Hashes of so many last tokens, or words, seeded with their number: uint32 [lengths, P]."""
    sizes_K1 = jnp.asarray(lengths, jnp.uint32)[:, None]
    words_KP = jnp.broadcast_to(sizes_K1, (len(lengths), context_KP.shape[1]))
    for place, token_P in enumerate(context_KP[: max(lengths)].astype(jnp.uint32)):
        words_KP = jnp.where(sizes_K1 > place, _mixed(words_KP, token_P[None]), words_KP)
    return words_KP


def rows(model: ModelSettings, state: Tree) -> dict[str, Array]:
    """The row of each context table that is added: int32 [P] by name.

    The row is the top `direct_bits` bits of a 32-bit multiplicative hash of the last k tokens,
    seeded with k, or of the hashes of the last n words, seeded with n.

    Args:
      state: of `initial_state`, after the last token.
    """
    hashes = [hashed(model.direct, state[CONTEXT])] if model.direct else []
    hashes += [hashed(model.words, state[WORDS])] if model.words else []
    found = []
    for words_KP in hashes:
        words_KP = words_KP * _ROW_KEY
        found.extend((words_KP >> np.uint32(32 - model.direct_bits)).astype(jnp.int32))
    return dict(zip(names(model), found, strict=True))


def held_back(held_1P: Array, context_KP: Array) -> Array:
    """Whether the documents that are read are held back from all but trust (`method.pool`).

    One document in 2^`HELD_BITS` is, by a hash of its first `HELD_LENGTH` tokens, so it is the same
    ones in every reading of a text. Up to there none is.

    Args:
      held_1P: the same before the last token, int32.
      context_KP: the last tokens, at least `HELD_LENGTH` + 1, the newest first, int32.

    Returns:
      1 or 0, int32 [1, P].
    """
    hashes_1P = hashed([HELD_LENGTH], context_KP)
    drawn_1P = (hashes_1P >> np.uint32(32 - HELD_BITS) == 0).astype(jnp.int32)
    before_P, first_P = context_KP[HELD_LENGTH], context_KP[HELD_LENGTH - 1]
    decided_P = (before_P == SEPARATOR) & (first_P != SEPARATOR)
    held_1P = jnp.where(decided_P[None], drawn_1P, held_1P)
    return jnp.where((context_KP[0] != SEPARATOR)[None], held_1P, 0)


def limits(es: StrategySettings, pairs_I: Array) -> Tree:
    """Which streams are read without the tables of long contexts: a part of a state.

    {"limit": int32 [1, P]}, for each member of these pairs the longest context of a table that it
    reads; tables of words count as longer than any. Empty without `es.direct_dropout`.
    """
    if not es.direct_dropout:
        return {}
    share = round(es.direct_dropout * (1 << _SHARE_BITS))
    streams_P = perturb.members(pairs_I) // es.members_per_stream & ((1 << _SHARE_BITS) - 1)
    before_P, after_P = ((n * share) >> _SHARE_BITS for n in (streams_P, streams_P + 1))
    few, all_of_them = jnp.int32(es.direct_dropout_above), jnp.int32(DIRECT_LENGTH_MAX + 1)
    return {LIMIT: jnp.where(after_P > before_P, few, all_of_them)[None]}


def limited(model: ModelSettings, picked: dict[str, Array], limit_P: Array) -> dict[str, Array]:
    """`rows`, with the number of rows, which is none, where a table's contexts are too long."""
    lengths = [*model.direct, *([DIRECT_LENGTH_MAX + 1] * len(model.words))]
    none = jnp.int32(1 << model.direct_bits)
    return {
        name: jnp.where(limit_P < length, none, rows_P)
        for length, (name, rows_P) in zip(lengths, picked.items(), strict=True)
    }


@native.accelerated(cpu="direct_added")
def added(
    weights: Tree, picked: dict[str, Array], logits_PV: Array, partial: bool = False
) -> Array:
    """Logits plus the selected rows, clipped to [-32767, 32767]: int16 q4 [P, V].

    Args:
      weights: context tables, int8 [rows, V] by name.
      picked: of `rows`, int32 [P] by name.
      logits_PV: of the recurrent network, int8 or int16 q4.
      partial: whether `picked` may be of `limited`; then the number of rows adds nothing.
    """
    total_PV = logits_PV.astype(jnp.int32)
    for name, rows_P in picked.items():
        last = len(weights[name]) - 1
        if partial:
            row_PV = weights[name][jnp.minimum(rows_P, last)]
            row_PV = jnp.where((rows_P <= last)[:, None], row_PV, 0)
        else:
            row_PV = weights[name][rows_P]
        total_PV = total_PV + row_PV.astype(jnp.int32)
    return fixed.narrow(total_PV, jnp.int16)


def initial_counts(model: ModelSettings) -> dict[str, Array]:
    """Number of steps that have read each row: int32 zeros [2^direct_bits] by name."""
    return {name: jnp.zeros(1 << model.direct_bits, jnp.int32) for name in names(model)}


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
