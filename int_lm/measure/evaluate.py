"""Evaluation: the exact integer log-likelihood of documents under the bare model.

A document of ids d1..dn is coded as d1..dn and the separator that ends it, read from a fresh
state after a separator: inputs [0, d1..dn], targets [d1..dn, 0]. Documents are placed end to end
in lanes that are read side by side. Separators reset the state between documents, so the placement
changes no bit of the result.

Axes: B lanes, T tokens of a segment.
"""

import functools
import heapq
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.limits import SEPARATOR
from int_lm.measure.code_length import CodeLengths
from int_lm.model import compiling, likelihood, perturb, reading
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters

LANES_AT_MOST = 256  # documents read side by side
FEWER_LANES = (64, 16, 4, 1)  # lane counts after the other lanes have ended; each compiles once
WORTH_COMPILING = 16  # segments that are left when the count of lanes becomes smaller, at least
SEGMENT_LENGTH = 1024  # tokens per call of the compiled reader
PIECE_BYTES = 2 * SEGMENT_LENGTH - 1  # of validation documents; with a separator: 2 segments


def greedy_hit(logits_PV: Array, targets_P: Array) -> Array:
    """1 where the target is the likeliest token, else 0: int32 [P].

    Of several tokens that are equally likely, the one with the lowest id counts.
    """
    return (jnp.argmax(logits_PV, axis=-1).astype(jnp.int32) == targets_P).astype(jnp.int32)


@functools.cache
def _reader(
    model: LanguageModel, metric: Callable[[Array, Array], Array], rows: int
) -> compiling.Program:
    """`reading.measured` of so many lanes: (weights, state, tokens) -> (state, values)."""
    measured = functools.partial(reading.measured, model, metric=metric)
    return compiling.Program(lambda: jax.jit(measured, donate_argnums=1))


def _rows(lengths: Sequence[int]) -> list[int]:
    """The number of lanes to read in every segment: all at first, fewer when many have ended.

    Args:
      lengths: of every lane, its length in segments; the longest lane first.
    """
    rows = [len(lengths)] * lengths[0]
    for count in FEWER_LANES:
        ended = lengths[count] if count < len(lengths) else lengths[0]
        if lengths[0] - ended >= WORTH_COMPILING:
            rows[ended:] = [count] * (lengths[0] - ended)
    return rows


def _most_lanes() -> int:
    """The count of lanes beyond which reading is not faster."""
    return min(LANES_AT_MOST, native.at_once() or LANES_AT_MOST)


def _lanes(documents: Sequence[np.ndarray], most: int) -> int:
    """The fewest lanes that are read as soon as `most` of them.

    A long document takes its time, whatever is read beside it: a few full lanes are less work than
    many that end early.
    """
    lengths = sorted((len(document) + 1 for document in documents), reverse=True)
    most = min(len(lengths), most)
    soonest = _longest(lengths, most)
    low = -(-sum(lengths) // soonest)
    while low < most:
        middle = (low + most) // 2
        low, most = (low, middle) if _longest(lengths, middle) <= soonest else (middle + 1, most)
    return most


def _longest(lengths: Sequence[int], lanes: int) -> int:
    """The length of the longest lane of `_lay_out`, for lengths in descending order."""
    queue = [0] * lanes
    for length in lengths:
        heapq.heapreplace(queue, queue[0] + length)
    return max(queue)


def _lay_out(
    documents: Sequence[np.ndarray], lanes: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Place documents in lanes: the longest document first, each into the shortest lane.

    A lane is as long as its documents, rounded up to whole segments. So many short documents beside
    a long one need no more than their own length.

    Returns:
      tokens: of every lane, [n + 1]: separators stand before, between and after documents.
      owners: of every lane, signed [n]: the index of the document to which target t+1 belongs;
        -1 in the padding. The longest lane comes first in both lists.
    """
    queue = [(0, lane) for lane in range(lanes)]
    contents: list[list[int]] = [[] for _ in range(lanes)]
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        length, lane = heapq.heappop(queue)
        contents[lane].append(index)
        heapq.heappush(queue, (length + len(documents[index]) + 1, lane))
    tokens, owners = [], []
    for length, lane in sorted(queue, reverse=True):
        steps = -(-length // SEGMENT_LENGTH) * SEGMENT_LENGTH
        ids = np.full(steps + 1, SEPARATOR, documents[0].dtype)
        owner = np.full(steps, -1, np.min_scalar_type(-len(documents)))
        position = 0
        for index in contents[lane]:
            end = position + len(documents[index])
            ids[position + 1 : end + 1] = documents[index]
            owner[position : end + 1] = index
            position = end + 1
        tokens.append(ids)
        owners.append(owner)
    return tokens, owners


def _from(owners: np.ndarray, documents: Sequence[np.ndarray], firsts: Sequence[int]) -> np.ndarray:
    """`owners` of a lane with -1 for separators and for targets before `firsts`."""
    counted = np.full_like(owners, -1)
    edges = np.flatnonzero(np.diff(owners, prepend=-2))
    for begin in edges[owners[edges] >= 0].tolist():
        index = int(owners[begin])
        counted[begin + firsts[index] : begin + len(documents[index])] = index
    return counted


def _side_by_side(
    lanes: Sequence[np.ndarray], start: int, end: int, rows: int, filler: int
) -> np.ndarray:
    """Entries start:end of the lanes: [rows, end - start]; rows without a lane hold `filler`."""
    together = np.full((rows, end - start), filler, lanes[0].dtype)
    for row, lane in enumerate(lanes):
        together[row] = lane[start:end]
    return together


def log2_likelihoods(
    model: LanguageModel,
    weights: Parameters,
    documents: Sequence[np.ndarray],
    *,
    progress: Callable[[int], None] = lambda tokens: None,
    metric: Callable[[Array, Array], Array] = likelihood.log2_likelihood,
    firsts: Sequence[int] | None = None,
) -> np.ndarray:
    """The exact log2-likelihood of every document: int64 [documents], in units of 2^-16 bit.

    With another `metric`, the sum of its values over the tokens of every document.

    Args:
      model: architecture and sizes.
      weights: int8.
      documents: at least one array of ids, all of one unsigned dtype.
      progress: called after every segment with the number of tokens just read.
      metric: (logits [P, V], targets int32 [P]) -> int32 [P].
      firsts: for every document, the index of the first token that counts; then its separator does
        not count. None: all tokens and the separator count.
    """
    tokens, owners = _lay_out(documents, _lanes(documents, _most_lanes()))
    counted = owners
    if firsts is not None:
        counted = [_from(lane, documents, firsts) for lane in owners]
    totals = np.zeros(len(documents) + 1, np.int64)  # the last entry takes the padding
    state = model.fresh_state(len(owners))  # each call overwrites it
    bare = jax.tree.map(jnp.asarray, perturb.unperturbed(weights))

    def add(counted_BT: np.ndarray, values_TB: Array, read: int) -> None:
        np.add.at(totals, counted_BT.T, np.asarray(values_TB))
        progress(read)

    going: tuple[np.ndarray, Array, int] | None = None  # computed while the last one is added
    for segment, rows in enumerate(_rows([len(lane) // SEGMENT_LENGTH for lane in owners])):
        # lanes that have ended are not read any more: they are the last ones
        start, end = segment * SEGMENT_LENGTH, (segment + 1) * SEGMENT_LENGTH
        going_on = sum(len(lane) > start for lane in owners)
        segment_BT = _side_by_side(tokens[:going_on], start, end + 1, rows, SEPARATOR)
        if rows < jax.tree.leaves(state)[0].shape[1]:
            state = jax.tree.map(lambda leaf, rows=rows: leaf[:, :rows], state)
        state, values_TB = _reader(model, metric, rows)(bare, state, segment_BT)
        if going:
            add(*going)
        counted_BT = _side_by_side(counted[:going_on], start, end, rows, -1)
        read = sum(int(np.count_nonzero(lane[start:end] >= 0)) for lane in owners[:going_on])
        going = counted_BT, values_TB, read
    if going:
        add(*going)
    return totals[:-1]


def prepare(model: LanguageModel, weights: Parameters, documents: Sequence[np.ndarray]) -> None:
    """Compile what `evaluate` needs for these documents, so that it does not have to.

    Args:
      model: architecture and sizes.
      weights: int8, or `jax.ShapeDtypeStruct`s of their shapes and dtypes.
      documents: as for `log2_likelihoods`.
    """
    tokens, _ = _lay_out(documents, _lanes(documents, _most_lanes()))
    bare = jax.eval_shape(perturb.unperturbed, weights)
    for rows in sorted(set(_rows([len(lane) // SEGMENT_LENGTH for lane in tokens]))):
        state = jax.eval_shape(lambda rows=rows: model.initial_state(rows))
        segment = jax.ShapeDtypeStruct((rows, SEGMENT_LENGTH + 1), documents[0].dtype)
        _reader(model, likelihood.log2_likelihood, rows).compile(bare, state, segment)


def evaluate(
    model: LanguageModel,
    weights: Parameters,
    documents: Sequence[np.ndarray],
    text_bytes: Sequence[int],
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> CodeLengths:
    """The code lengths of documents under the unperturbed model.

    Args:
      model: architecture and sizes.
      weights: int8.
      documents: as for `log2_likelihoods`.
      text_bytes: of every document, the number of bytes of its raw text.
      progress: as for `log2_likelihoods`.
    """
    return CodeLengths(
        log2_likelihoods=log2_likelihoods(model, weights, documents, progress=progress),
        text_bytes=np.asarray(text_bytes, np.int64),
        tokens=np.array([len(document) + 1 for document in documents], np.int64),
    )
