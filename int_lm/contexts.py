"""What of the text before selects weights, in integers, with NumPy alone: words, rows, repetitions.

`int_lm.runtime` computes context tables and the document cache with it, and the runtime.py of an
export holds this file's text. In JAX it is `model.context_tables` and `model.document_cache`.

Axes: P documents read side by side, K contexts, W words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from int_lm.sampling import SEPARATOR

Tensors = dict[str, np.ndarray]


def table_names(direct: Sequence[int], words: Sequence[int]) -> list[str]:
    """Names of the context tables of so many last tokens, and of so many last words."""
    return [f"context_{length}" for length in direct] + [f"words_{number}" for number in words]


def longer(hashes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Hashes of one more number each, mod 2^32: uint32."""
    mixed = (hashes ^ numbers) * np.uint32(0x9E3779B1)
    return mixed ^ mixed >> np.uint32(15)


def of_bits(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits, int64, that differ where hashes do as often as they can."""
    return ((hashes * np.uint32(0x85EBCA77)) >> np.uint32(32 - bits)).astype(np.int64)


def following_words(words_WP: np.ndarray, tokens_P: np.ndarray) -> np.ndarray:
    """Hashes of the last words after one more token, int32: that being written first, 0 for none.

    Tokens are bytes. A word is a run of letters of ASCII, capital or small, and bytes from 128 on.
    """
    tokens_P, words = tokens_P.astype(np.uint32), words_WP.view(np.uint32)
    small_P = np.where(tokens_P < 128, tokens_P | 32, tokens_P)
    longer_P = longer(words[0], small_P)
    letters_P = (tokens_P >= 128) | (small_P - np.uint32(ord("a")) < 26)
    ended = np.concatenate([np.zeros_like(words[:1]), words[:-1]])
    ended = np.where((words[0] != 0) & (tokens_P != SEPARATOR), ended, words)
    ended[:, tokens_P == SEPARATOR] = 0
    return np.where(letters_P, np.concatenate([longer_P[None], words[1:]]), ended).view(np.int32)


def context_rows(context_KP: np.ndarray, lengths: Sequence[int], bits: int) -> np.ndarray:
    """Rows of context tables, [lengths, P]; arguments as of `context_hashes`."""
    return of_bits(context_hashes(context_KP, lengths), bits)


def context_hashes(context_KP: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Hashes of so many last tokens, or words, mod 2^32: uint32 [lengths, P].

    Args:
      context_KP: the last one first. lengths: descending.
    """
    words = np.array(lengths, np.uint32)[:, None].repeat(context_KP.shape[1], axis=1)
    for number, token_P in enumerate(context_KP.astype(np.uint32)):
        count = sum(length > number for length in lengths)
        words[:count] = longer(words[:count], token_P)
    return words


def cache_step(
    lengths: Sequence[int], state: Tensors, context_KP: np.ndarray, tokens_P: np.ndarray
) -> tuple[Tensors, np.ndarray, np.ndarray]:
    """Write a token into the document cache, in place, and look up what followed the context.

    A row of `state["cache"]`, int32 [lengths, P, rows, 3]: the place of its last write; check,
    run and newest token in 11, 4 and 16 bits; the two tokens before that differ.

    Args:
      lengths: of contexts, descending. context_KP: the last tokens with this one, newest first.

    Returns:
      Its leaves of the next state; for every slot of every length, [3 lengths, P]: the index of its
      weight (-1 for none) and its token.
    """
    rows, (place_P, start_P) = state["cache"], state["cache_place"].view(np.uint32)
    sizes, lanes_P = np.array(lengths, np.uint32)[:, None], np.arange(len(tokens_P))
    begins_P = tokens_P == SEPARATOR

    def found(words: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        bits = np.uint32(32 - (rows.shape[2].bit_length() - 1))
        checks = (words * np.uint32(0xC2B2AE35) >> np.uint32(21)).astype(np.int32)
        where = np.arange(len(lengths))[:, None], lanes_P, words * np.uint32(0x85EBCA6B) >> bits
        row, long = rows[where], place_P - start_P >= sizes
        same = place_P - row[..., 0].view(np.uint32) < place_P - start_P
        return where, row, checks, long & same & (row[..., 1] >> 20 == checks)

    where, row, checks, same = found(state["cache_hash"].view(np.uint32))
    known = ~begins_P & (place_P - start_P >= sizes)
    head, others = np.where(same, row[..., 1], 0), np.where(same, row[..., 2], 0)
    first, second, third = head & 0xFFFF, others & 0xFFFF, others >> 16 & 0xFFFF
    again = first == tokens_P
    run = np.where(again, np.minimum((head >> 16 & 15) + 1, 15), 1)
    third = np.where(again | (second == tokens_P), third, second)
    second = np.where(again, second, first)
    place_P = place_P + np.uint32(1)
    head = (checks << 20 | run << 16 | tokens_P).astype(np.int32)
    others = (second.astype(np.uint32) | third.astype(np.uint32) << np.uint32(16)).view(np.int32)
    new = np.stack([np.broadcast_to(place_P.view(np.int32), head.shape), head, others], axis=-1)
    rows[where] = np.where(known[..., None], new, row)

    start_P = np.where(begins_P, place_P, start_P)
    words = context_hashes(context_KP, lengths)
    _, row, _, full = found(words)
    slots = np.stack([row[..., 1], row[..., 2], row[..., 2] >> 16]) & 0xFFFF
    count, longest_P = len(lengths), full.argmax(axis=0)
    above_P, weights_FP, slots_FP = np.zeros(len(tokens_P), np.int32), [], []
    for k, slot in np.ndindex(count, 3):
        token_P, used_P = slots[slot, k], full[k] & (slots[slot, k] != SEPARATOR)
        row_P = ((longest_P * count + k) * 3 + slot) * 2 + (token_P == above_P)
        weights_FP.append(np.where(used_P, row_P * 16 + (row[k, :, 1] >> 16 & 15), -1))
        slots_FP.append(np.where(used_P, token_P, 0))
        if slot == 2:
            above_P = np.where(full[k], slots[0, k], above_P)
    places_2P = np.stack([place_P, start_P]).view(np.int32)
    following = {"cache": rows, "cache_place": places_2P, "cache_hash": words.view(np.int32)}
    return following, np.stack(weights_FP), np.stack(slots_FP)
