"""The document cache: which tokens followed the same context earlier in the same document.

A cache language model (Kuhn and De Mori, "A cache-based natural language model for speech
recognition", PAMI 1990) for contexts of several lengths, as programs that compress text have them.
It is a part of a member's recurrent state, not of the weights: it holds nothing but the document
that is being read, and a separator empties it. What is learnt is how much to trust it.

For every length k in `model.cache` the state has 2^cache_bits rows. A hash of the last k tokens
selects a row, and more bits of the hash are stored in it as a check: a row that another context has
written counts as empty. A row holds the last `SLOTS` different tokens that followed the context,
the newest first, and the run: how often the newest one came in succession, up to `RUN_MAX`.

After each token, the row of every length is looked up, and each of its slots adds to the logit of
its token one weight, int8 q4, of the table `direct/cache`. The weight is chosen by

    m      the longest length whose row is not empty (index in descending order)
    k      the length of the row
    slot   0 for the newest token
    agree  whether the newest token of the next longer row that is not empty is the same
    run    of the row

So the probabilities stay one softmax over the vocabulary. The logits are linear in these weights:
they learn from exact errors, by the rule of the context tables (`context_tables.learnt`).

Words of a row, int32: 0 the place at which it was written (0: never); 1 the check (11 bits), the
run (4 bits) and the newest token (16 bits); 2 the other two tokens. Token 0 is an empty slot: a
separator never follows. Places count the tokens that a member has read, modulo 2^32.

All this depends on nothing but the tokens, so it is read a segment ahead of the network
(`over_tokens`). On CPUs kernels do it, and add the weights to the logits (native/cache.inc).

Axes: P members (or any batch), T tokens of a segment, K lengths, the longest first, R rows, F = K
`SLOTS` features, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import limits, native
from int_lm.arithmetic import fixed
from int_lm.limits import SEPARATOR
from int_lm.model import context_tables
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings

NAME = "cache"  # of the table of weights, and of the rows in a state
PLACE = "cache_place"  # in a state: tokens read so far, and how many of them before the document
HASH = "cache_hash"  # in a state: the hash of the last tokens, for every length
SLOTS, RUN_BITS, CHECK_BITS = limits.CACHE_SLOTS, limits.CACHE_RUN_BITS, limits.CACHE_CHECK_BITS
TOKEN_BITS = limits.CACHE_TOKEN_BITS
RUN_MAX = (1 << RUN_BITS) - 1
_TOKEN = (1 << TOKEN_BITS) - 1

_Rows = tuple[Array, Array, Array]  # of a state: its rows, places and hashes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reading:
    """What the cache says of the next token.

    Attributes:
      weights_PF: index of the weight of every slot, int32; the number of weights if it is empty.
      tokens_PF: the token of every slot, int32; 0 if it is empty.
    """

    weights_PF: Array
    tokens_PF: Array


def lengths(model: ModelSettings) -> list[int]:
    """The lengths of contexts, the longest first."""
    return sorted(model.cache, reverse=True)


def specs(model: ModelSettings) -> Tree:
    """{"cache": `Spec` of shape [K K SLOTS, 2 (RUN_MAX + 1)]}; empty without a cache."""
    count = len(model.cache)
    if not count:
        return {}
    shape = count * count * SLOTS, 2 * (RUN_MAX + 1)
    return {NAME: Spec(shape, Role.TABLE, init=0)}


def initial_state(model: ModelSettings, batch: int) -> Tree:
    """Empty rows, int32 [K, P, R, 3], places, int32 [2, P], and hashes, int32 [K, P]."""
    shape = len(model.cache), batch, 1 << model.cache_bits, 3
    return {
        NAME: jnp.zeros(shape, jnp.int32),
        PLACE: jnp.zeros((2, batch), jnp.int32),
        HASH: jnp.zeros(shape[:2], jnp.int32),  # read after a token only
    }


def initial_counts(model: ModelSettings) -> dict[str, Array]:
    """Number of steps that have used each weight: {"cache": int32 zeros [weights]}."""
    return {
        name: jnp.zeros(int(np.prod(spec.shape)), jnp.int32) for name, spec in specs(model).items()
    }


def _places(bits: int, hashes_KP: Array) -> tuple[Array, Array]:
    """Row and check of a context, from its hash, for every length: int32 [K, P] each."""
    words_KP = hashes_KP.astype(jnp.uint32)
    rows_KP = (words_KP * np.uint32(fixed.MIX_FIRST)) >> np.uint32(32 - bits)
    checks_KP = (words_KP * np.uint32(fixed.MIX_SECOND)) >> np.uint32(32 - CHECK_BITS)
    return rows_KP.astype(jnp.int32), checks_KP.astype(jnp.int32)


def _age(place: Array, since: Array) -> Array:
    """Tokens from `since` to `place`, modulo 2^32: uint32."""
    return (place - since).astype(jnp.uint32)


def step(
    model: ModelSettings, state: Tree, context_KP: Array, tokens_P: Array
) -> tuple[Tree, Reading]:
    """Write a token into the rows of the context before it, and look up the context that follows.

    Args:
      state: of `initial_state` or of the step before.
      context_KP: the last tokens with this one, the newest first, int32.
      tokens_P: the token, int32; a separator empties the cache.
    """
    rows = state[NAME], state[PLACE], state[HASH]
    following, reading = _step(lengths(model), model.cache_bits, rows, context_KP, tokens_P)
    return dict(zip((NAME, PLACE, HASH), following, strict=True)), reading


def over_tokens(
    model: ModelSettings, state: Tree, context_KP: Array, tokens_TP: Array
) -> tuple[Tree, Reading]:
    """`step` for one token after another.

    Args:
      state: of `initial_state` or of the step before.
      context_KP: the tokens before the first one, the newest first, int32.
      tokens_TP: int32.

    Returns:
      The state after token T-1, and a `Reading` after every token, with T in front.
    """
    rows = state[NAME], state[PLACE], state[HASH]
    sizes = tuple(lengths(model))
    *following, weights_TPF, tokens_TPF = _over_tokens(
        sizes, model.cache_bits, *rows, context_KP, tokens_TP
    )
    return dict(zip((NAME, PLACE, HASH), following, strict=True)), Reading(weights_TPF, tokens_TPF)


@native.accelerated(cpu="cache_over_tokens")
def _over_tokens(
    sizes: tuple[int, ...],
    bits: int,
    words: Array,
    places_2P: Array,
    hashes_KP: Array,
    context_KP: Array,
    tokens_TP: Array,
) -> tuple[Array, ...]:
    """`over_tokens`: words, places, hashes, weights [T, P, F] and tokens [T, P, F]."""

    def one(carried: tuple[_Rows, Array], tokens_P: Array) -> tuple[tuple[_Rows, Array], Reading]:
        rows, context_KP = carried
        context_KP = context_tables.following(context_KP, tokens_P)
        rows, reading = _step(sizes, bits, rows, context_KP, tokens_P)
        return (rows, context_KP), reading

    start = (words, places_2P, hashes_KP), context_KP
    (rows, _), reading = jax.lax.scan(one, start, tokens_TP)
    return *rows, reading.weights_PF, reading.tokens_PF


def _step(
    sizes: Sequence[int], bits: int, rows: _Rows, context_KP: Array, tokens_P: Array
) -> tuple[_Rows, Reading]:
    """`step` with the arrays of the state, the lengths and the bits of a row's place."""
    words, places_2P, hashes_KP = rows
    sizes_K1 = jnp.asarray(sizes, jnp.uint32)[:, None]
    members_1P, tokens_1P = jnp.arange(len(tokens_P), dtype=jnp.int32)[None], tokens_P[None]
    of_K1 = jnp.arange(len(sizes_K1), dtype=jnp.int32)[:, None]
    place_1P, start_1P = places_2P[:1], places_2P[1:]

    rows_KP, checks_KP = _places(bits, hashes_KP)
    known_KP = (tokens_1P != SEPARATOR) & (_age(place_1P, start_1P) >= sizes_K1)
    old_KP3 = words[of_K1, members_1P, rows_KP]
    same_KP = _valid(old_KP3, checks_KP, place_1P, start_1P)
    new_KP3 = _written(old_KP3, same_KP, checks_KP, tokens_1P, place_1P + 1)
    rows_KP = jnp.where(known_KP, rows_KP, words.shape[2])  # past the end: not written
    words = words.at[of_K1, members_1P, rows_KP].set(new_KP3, mode="drop", unique_indices=True)

    place_1P = place_1P + 1
    start_1P = jnp.where(tokens_1P == SEPARATOR, place_1P, start_1P)
    hashes_KP = context_tables.hashed(sizes, context_KP).astype(jnp.int32)
    rows_KP, checks_KP = _places(bits, hashes_KP)
    found_KP3 = words[of_K1, members_1P, rows_KP]
    full_KP = _valid(found_KP3, checks_KP, place_1P, start_1P)
    full_KP = full_KP & (_age(place_1P, start_1P) >= sizes_K1)
    places_2P = jnp.concatenate([place_1P, start_1P])
    return (words, places_2P, hashes_KP), _reading(found_KP3, full_KP)


def of_pairs(reading: Reading | None, pairs: int) -> Reading | None:
    """What the caches of streams said, for every pair that reads them: [..., S, F] to [..., I, F].

    Where every member has a stream of its own, nothing is repeated.

    Args:
      reading: of streams that are each read by as many pairs in succession; None stays None.
      pairs: I.
    """

    def repeated(leaf: Array) -> Array:
        streams = leaf.shape[-2]
        return jnp.repeat(leaf, pairs // streams, axis=-2) if pairs > streams else leaf

    return jax.tree.map(repeated, reading)


def _valid(words_KP3: Array, checks_KP: Array, place_1P: Array, start_1P: Array) -> Array:
    """Whether rows were written by the same context in this document: bool [K, P]."""
    inside = _age(place_1P, words_KP3[..., 0]) < _age(place_1P, start_1P)
    return inside & (words_KP3[..., 1] >> (RUN_BITS + TOKEN_BITS) == checks_KP)


def _slots(words_KP3: Array) -> tuple[Array, Array, Array]:
    """The three tokens of rows: int32 [K, P] each."""
    others = words_KP3[..., 2]
    return words_KP3[..., 1] & _TOKEN, others & _TOKEN, (others >> TOKEN_BITS) & _TOKEN


def _written(
    old_KP3: Array, same_KP: Array, checks_KP: Array, tokens_1P: Array, place_1P: Array
) -> Array:
    """Rows after a token: it comes first, and the others keep their order."""
    first, second, third = (jnp.where(same_KP, slot, 0) for slot in _slots(old_KP3))
    run = jnp.where(same_KP, (old_KP3[..., 1] >> TOKEN_BITS) & RUN_MAX, 0)
    again = first == tokens_1P
    run = jnp.where(again, jnp.minimum(run + 1, RUN_MAX), 1)
    third = jnp.where(again | (second == tokens_1P), third, second)
    second = jnp.where(again, second, first)
    newest = jnp.broadcast_to(tokens_1P, first.shape)
    head = (checks_KP << (RUN_BITS + TOKEN_BITS)) | (run << TOKEN_BITS) | newest
    place_KP = jnp.broadcast_to(place_1P, first.shape)
    return jnp.stack([place_KP, head, second | (third << TOKEN_BITS)], axis=-1)


def _reading(words_KP3: Array, full_KP: Array) -> Reading:
    """The weights and tokens of all slots."""
    count = len(full_KP)
    tokens_KSP = jnp.stack(_slots(words_KP3), axis=1)
    run_KP = (words_KP3[..., 1] >> TOKEN_BITS) & RUN_MAX
    above, newest = [jnp.full_like(full_KP[0], SEPARATOR, jnp.int32)], tokens_KSP[:, 0]
    for k in range(count - 1):  # the newest token of the rows of longer contexts
        above.append(jnp.where(full_KP[k], newest[k], above[k]))
    agree_KSP = (tokens_KSP == jnp.stack(above)[:, None]).astype(jnp.int32)
    longest_P = jnp.argmax(full_KP, axis=0).astype(jnp.int32)
    row_KS = jnp.arange(count * SLOTS, dtype=jnp.int32).reshape(count, SLOTS, 1)
    row_KSP = longest_P[None, None] * (count * SLOTS) + row_KS
    index_KSP = (row_KSP * 2 + agree_KSP) * (RUN_MAX + 1) + run_KP[:, None]
    used_KSP = full_KP[:, None] & (tokens_KSP != SEPARATOR)
    none = count * count * SLOTS * 2 * (RUN_MAX + 1)
    weights_KSP = jnp.where(used_KSP, index_KSP, none)
    tokens_KSP = jnp.where(used_KSP, tokens_KSP, 0)
    batch = full_KP.shape[1]
    return Reading(weights_KSP.reshape(-1, batch).T, tokens_KSP.reshape(-1, batch).T)


@native.accelerated(cpu="cache_added")
def added(table: Array, reading: Reading, logits_PV: Array) -> Array:
    """Logits plus the weights of all slots, clipped to [-32767, 32767]: int16 q4 [P, V].

    Args:
      table: int8 [weights / 32, 32].
      reading: of `step`; of S streams, each read by P / S members in succession.
      logits_PV: int8 or int16 q4.
    """
    count, size = len(reading.tokens_PF), logits_PV.shape[1]
    weights = table.reshape(-1)
    boosts_SF = weights.at[reading.weights_PF].get(mode="fill", fill_value=0).astype(jnp.int16)
    streams_S1 = jnp.arange(count, dtype=jnp.int32)[:, None]
    boosts_SV = jnp.zeros((count, size), jnp.int16).at[streams_S1, reading.tokens_PF].add(boosts_SF)
    total_SRV = logits_PV.reshape(count, -1, size).astype(jnp.int32)
    total_SRV = total_SRV + boosts_SV[:, None].astype(jnp.int32)
    return fixed.narrow(total_SRV, jnp.int16).reshape(logits_PV.shape)


def errors_of(reading_tokens: Array, errors: Array) -> Array:
    """The errors of the tokens of all slots, int8 [..., F].

    Args:
      reading_tokens: tokens of `Reading`, int32 [..., F].
      errors: onehot(target) - p, int8 [..., V].
    """
    return jnp.take_along_axis(errors, reading_tokens, axis=-1)
