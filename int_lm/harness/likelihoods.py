"""Exact log-likelihoods of continuations: each distinct context is read once, and then left behind.

A context c1..cn is read as [0, c1..cn] from a fresh state: 0, the separator, stands before every
document. A continuation k1..km of it is read from there, with the targets k1..km, and the
separator after km if the end of the text counts. Lanes hold whole texts, padded with separators,
which reset the state: before contexts, so that all of them end together, and after continuations.

Axes: P lanes, T tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from int_lm.harness.lanes import MOST, Lanes, State
from int_lm.limits import SEPARATOR


class Continuation(NamedTuple):
    """What is measured: ids after a context, and whether the separator that ends them counts."""

    context: int  # its index
    ids: np.ndarray
    end: bool


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices of the lengths, the largest length first; of equals, the lower index."""
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def taken(lanes: Lanes, state: State, index_P: np.ndarray) -> State:
    """The state of some lanes, in the order of `index_P`, with `lanes.rows` lanes."""
    padded = np.zeros(lanes.rows(len(index_P)), np.int64)
    padded[: len(index_P)] = index_P
    return lanes.combined(lambda leaf: leaf[:, padded], state)


def states_before_last(
    lanes: Lanes, contexts: Sequence[np.ndarray], progress: Callable[[int], None]
) -> State:
    """The state after [0, *context] but its last token, of every context: lanes in their order.

    Args:
      lanes: the model.
      contexts: ids of at most `MOST` contexts, the longest first.
      progress: called with the number of tokens just read.
    """
    segments, left = [], len(contexts[0])
    while left > 0:
        segments.append(lanes.length(left))
        left -= segments[-1]
    T, lengths_P = sum(segments), np.array([len(ids) for ids in contexts])
    state, have, start = lanes.begin(lanes.rows(1)), lanes.rows(1), 0
    for segment in segments:
        end = start + segment
        begun = max(1, int((lengths_P >= T + 1 - end).sum()))  # their 0 is read before `end`
        if lanes.rows(begun) > have:
            fresh = lanes.begin(lanes.rows(begun) - have)
            state = lanes.combined(lambda *leaves: np.concatenate(leaves, axis=1), state, fresh)
            have = lanes.rows(begun)
        tokens_PT = np.full((have, segment + 1), SEPARATOR, np.int64)
        for lane, ids in enumerate(contexts[:begun]):
            shift = start - (T + 1 - len(ids))  # the id at the segment's first token
            part = ids[max(shift, 0) : shift + segment + 1]
            tokens_PT[lane, segment + 1 - len(part) :] = part
        state, _, _ = lanes.read(state, tokens_PT)
        progress(int(np.minimum(np.maximum(end - T + lengths_P, 0), segment).sum()))
        start = end
    if lanes.rows(len(contexts)) > have:  # empty contexts: nothing is read of them yet
        fresh = lanes.begin(lanes.rows(len(contexts)) - have)
        state = lanes.combined(lambda *leaves: np.concatenate(leaves, axis=1), state, fresh)
    return state


def last_token(context: np.ndarray) -> int:
    """The last token of [0, *context]."""
    return int(context[-1]) if len(context) else SEPARATOR


def measured(
    lanes: Lanes,
    contexts: Sequence[np.ndarray],
    continuations: Sequence[Continuation],
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The log2-likelihood of every continuation, and whether it is what the model would write.

    Args:
      lanes: the model.
      contexts: ids of distinct contexts.
      continuations: each has a token, or its end counts.
      progress: called with the number of tokens just read.

    Returns:
      int64 [continuations], in units of 2^-16 bit; and bool [continuations], True where every token
      (the end apart) is the likeliest one.
    """
    units = np.zeros(len(continuations), np.int64)
    greedy = np.ones(len(continuations), bool)
    of_context: list[list[int]] = [[] for _ in contexts]
    for number, continuation in enumerate(continuations):
        of_context[continuation.context].append(number)
    order = longest_first([len(ids) for ids in contexts])
    for first in range(0, len(order), MOST):
        chosen = order[first : first + MOST]
        state = states_before_last(lanes, [contexts[index] for index in chosen], progress)
        lane_of = {index: lane for lane, index in enumerate(chosen)}
        numbers = [number for index in chosen for number in of_context[index]]
        targets = [len(continuations[n].ids) + continuations[n].end for n in numbers]
        numbers = [numbers[place] for place in longest_first(targets)]
        for begin in range(0, len(numbers), MOST):
            part = numbers[begin : begin + MOST]
            lane_P = np.array([lane_of[continuations[n].context] for n in part])
            lasts = [last_token(contexts[continuations[n].context]) for n in part]
            units[part], greedy[part] = _part(
                lanes,
                taken(lanes, state, lane_P),
                lasts,
                [continuations[n] for n in part],
                progress,
            )
    return units, greedy


def _part(
    lanes: Lanes,
    state: State,
    lasts: Sequence[int],
    continuations: Sequence[Continuation],
    progress: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """`measured`, of at most `MOST` continuations, the longest first, from states."""
    ids_P = np.array([len(each.ids) for each in continuations])
    targets_P = ids_P + np.array([each.end for each in continuations], np.int64)
    units_P, missed_P = np.zeros(len(ids_P), np.int64), np.zeros(len(ids_P), bool)
    start, left, have = 0, int(targets_P[0]), lanes.rows(len(ids_P))
    while left > 0:
        segment = lanes.length(left)
        active = int((targets_P > start).sum())
        rows = lanes.rows(active)
        if rows < have:
            state = lanes.combined(lambda leaf, rows=rows: leaf[:, :rows], state)
            have = rows
        tokens_PT = np.full((rows, segment + 1), SEPARATOR, np.int64)
        for lane, each in enumerate(continuations[:active]):
            ids = each.ids[max(start - 1, 0) : start + segment]
            at = 1 if start == 0 else 0
            tokens_PT[lane, at : at + len(ids)] = ids
            if start == 0:
                tokens_PT[lane, 0] = lasts[lane]
        state, found_PT, hits_PT = lanes.read(state, tokens_PT)
        places_T = start + np.arange(segment)
        counted_PT = places_T < targets_P[:active, None]
        units_P[:active] += (found_PT[:active] * counted_PT).sum(axis=1)
        missed_P[:active] |= (~hits_PT[:active] & (places_T < ids_P[:active, None])).any(axis=1)
        progress(int(counted_PT.sum()))
        start, left = start + segment, left - segment
    return units_P, ~missed_P
