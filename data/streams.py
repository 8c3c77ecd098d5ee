"""Token streams for training: what each stream reads at each step, as a pure function.

There are S streams, and a segment has T tokens. Text lies in windows of whole documents (see
`shards`). A stream reads one window to its end, T tokens per step. If there are fewer windows than
streams, it reads an equal part of a window. Then all streams move to other windows: this is the end
of a round. The state of the members that read a stream is carried from segment to segment, so that
they read whole documents.

Every window of a source is read once per epoch, in an order that is a keyed permutation of the
seed and the epoch. There is no iterator: the tokens of any step can be computed, in any
order, at the same cost. They do not depend on the number of devices or processes. Several sources
share the streams in proportion to their weights, exactly over every `BLOCK` windows.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data import shards
from data.documents import Document
from data.order import Permutation, key
from data.shards import Shard
from int_lm.errors import UserError, counted
from tokenization.interface import Tokenizer

BLOCK = 1024  # windows in which the shares of a mixture are exact
TOLERANCE = 0.1  # relative error of a share from which on a message is printed


@dataclass(frozen=True)
class Place:
    """The origin of a token.

    Attributes:
      source: name of the source.
      document: number of the document in the source.
      offset: position of the token in the document.
    """

    source: str
    document: int
    offset: int


class Part:
    """The windows of one source, divided into units of at most `span` tokens."""

    def __init__(
        self, name: str, pieces: Sequence[Shard], span: int, seed: int, stage: int = 0
    ) -> None:
        self.name, self._pieces, self._seed, self._stage = name, pieces, seed, stage
        counts = [len(shard.windows) - 1 for shard in pieces]
        self._first_window = np.cumsum([0, *counts])
        lengths = [np.diff(shard.windows) for shard in pieces]
        units = -(-np.concatenate([np.zeros(0, np.int64), *lengths]) // span)
        self._first_unit = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
        self.units = int(self._first_unit[-1])
        self.tokens = sum(len(shard.tokens) for shard in pieces)

    def unit(self, number: int) -> tuple[Shard, int, int]:
        """(shard, begin, end) of the `number`-th unit read, counted over all epochs."""
        epoch, index = divmod(number, self.units)
        unit = Permutation(self.units, key(self._seed, self.name, epoch + self._stage))[index]
        window = int(np.searchsorted(self._first_unit, unit, side="right")) - 1
        piece = int(np.searchsorted(self._first_window, window, side="right")) - 1
        shard = self._pieces[piece]
        local = window - int(self._first_window[piece])
        begin, end = (int(x) for x in shard.windows[local : local + 2])
        part, parts = (
            unit - int(self._first_unit[window]),
            int(self._first_unit[window + 1] - self._first_unit[window]),
        )
        size = end - begin
        return shard, begin + part * size // parts, begin + (part + 1) * size // parts


class Mixture:
    """Which source every slot reads, from the weights and the rounds at which they changed.

    Attributes:
      phases: (first round, weight of each source), the first from round 0 on.
    """

    def __init__(
        self,
        phases: Sequence[tuple[int, Sequence[float]]],
        streams: int,
        seed: int,
    ) -> None:
        self.phases = [(first, tuple(weights)) for first, weights in phases]
        self._streams, self._seed = streams, seed
        sources = len(self.phases[0][1])
        self._bases = [np.zeros(sources, np.int64)]  # windows of each source before every phase
        for (first, _), (then, _) in zip(self.phases, self.phases[1:], strict=False):
            slots = (then - first) * streams
            self._bases.append(self._bases[-1] + self._read(len(self._bases) - 1, slots))

    def _bounds(self, phase: int) -> np.ndarray:
        """Cumulative counts of the sources in a block: largest remainders, at least one each.

        A source of weight 0 has none.
        """
        weights = np.array(self.phases[phase][1])
        exact = weights / weights.sum() * BLOCK
        counts = np.maximum(np.floor(exact).astype(np.int64), weights > 0)
        order = sorted(np.flatnonzero(weights), key=lambda i: (counts[i] - exact[i], i))
        for index in range(abs(BLOCK - int(counts.sum()))):
            step = 1 if counts.sum() < BLOCK else -1
            counts[order[index % len(order)] if step > 0 else int(counts.argmax())] += step
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a mixture lives as long as the run
    def _block(self, phase: int, block: int) -> np.ndarray:
        """The source of every slot of a block, int64 [BLOCK]."""
        order = Permutation(BLOCK, key(self._seed, "mixture", phase, block))
        places = np.array([order[index] for index in range(BLOCK)])
        return np.searchsorted(self._bounds(phase), places, side="right") - 1

    def _read(self, phase: int, slots: int) -> np.ndarray:
        """Windows of each source among the first `slots` of a phase, int64."""
        sources = len(self.phases[0][1])
        if sources == 1:
            return np.array([slots], np.int64)
        whole, rest = divmod(slots, BLOCK)
        partial = np.bincount(self._block(phase, whole)[:rest], minlength=sources)
        return whole * np.diff(self._bounds(phase)) + partial

    def _at(self, round_number: int) -> tuple[int, int]:
        """(phase, slots of it before a round)."""
        phase = sum(first <= round_number for first, _ in self.phases) - 1
        return phase, (round_number - self.phases[phase][0]) * self._streams

    def before(self, round_number: int) -> np.ndarray:
        """Windows of each source read before a round, int64."""
        phase, slots = self._at(round_number)
        return self._bases[phase] + self._read(phase, slots)

    def round(self, round_number: int) -> list[tuple[int, int]]:
        """(source, number of the window in its order) of each stream."""
        counts = self.before(round_number)
        phase, slots = self._at(round_number)
        picked = []
        for slot in range(slots, slots + self._streams):
            source = 0
            if len(counts) > 1:
                source = int(self._block(phase, slot // BLOCK)[slot % BLOCK])
            picked.append((source, int(counts[source])))
            counts[source] += 1
        return picked


class Streams:
    """S streams over the windows of one or more sources. Make them with `over` or `build`."""

    def __init__(
        self,
        parts: Sequence[Part],
        mixture: Mixture,
        *,
        tokenizer: Tokenizer,
        length: int,
        span: int,
    ) -> None:
        self._parts, self._tokenizer, self._length = parts, tokenizer, length
        self.mixture = mixture
        self.steps_per_round = -(-span // length)
        # a round's places are found once and read at many steps
        self._round = functools.lru_cache(maxsize=2)(self._find_round)

    def _find_round(self, number: int) -> list[tuple[Part, Shard, int, int]]:
        found = []
        for source, window in self.mixture.round(number):
            part = self._parts[source]
            found.append((part, *part.unit(window)))
        return found

    def at(self, step: int) -> np.ndarray:
        """Tokens [S, T + 1] of `step` >= 0, in the tokenizer's dtype.

        Columns 0 to T - 1 are the inputs and columns 1 to T their targets. The last column is the
        first one of the next step, except for a stream that moves to another window: that begins
        with a separator. A stream at the end of its window reads separators.
        """
        number, segment = divmod(step, self.steps_per_round)
        separator, length = self._tokenizer.separator, self._length
        places = self._round(number)
        tokens_ST = np.full((len(places), length + 1), separator, self._tokenizer.dtype)
        for stream, (_, shard, begin, end) in enumerate(places):
            column = 0 if segment else 1  # the first input of a window is a separator
            first = begin + segment * length - 1 + column
            read = shard.tokens[first : min(first + length + 1 - column, end)]
            tokens_ST[stream, column : column + len(read)] = read
        return tokens_ST

    def text_bytes(self, step: int) -> int:
        """Bytes of raw text among the S x T targets of `step`; separators count none."""
        return self._tokenizer.count_bytes(self.at(step)[:, 1:])

    def locate(self, step: int) -> list[list[Place | None]]:
        """The origin of each target of a step, [S][T]; None in the padding."""
        number, segment = divmod(step, self.steps_per_round)
        found: list[list[Place | None]] = []
        for part, shard, begin, end in self._round(number):
            row: list[Place | None] = []
            for position in range(
                begin + segment * self._length, begin + (segment + 1) * self._length
            ):
                if position >= end:
                    row.append(None)
                    continue
                piece = int(np.searchsorted(shard.places[:, 0], position, side="right")) - 1
                start, document, offset = (int(x) for x in shard.places[piece])
                row.append(Place(part.name, document, offset + position - start))
            found.append(row)
        return found

    def shares(self, step: int, first: int = 0) -> dict[str, float]:
        """The share that each source has of the tokens read from step `first` on until `step`.

        Units of a source count with their mean length.
        """
        if len(self._parts) == 1:
            return {self._parts[0].name: 1.0}
        counts = self._windows(step) - self._windows(first)
        tokens = [
            float(count) * part.tokens / max(1, part.units)
            for count, part in zip(counts, self._parts, strict=True)
        ]
        total = max(1.0, sum(tokens))
        names = [part.name for part in self._parts]
        return {name: count / total for name, count in zip(names, tokens, strict=True)}

    def _windows(self, step: int) -> np.ndarray:
        """Windows of each source read before a step; a round under way counts in proportion."""
        number, segment = divmod(step, self.steps_per_round)
        before, after = self.mixture.before(number), self.mixture.before(number + 1)
        return before + (after - before) * (segment / self.steps_per_round)

    def shares_missed(self, steps: int) -> str | None:
        """A message if `steps` steps miss a share of the last weights by over a tenth, or None."""
        first_round, weights = self.mixture.phases[-1]
        first = first_round * self.steps_per_round
        names = [part.name for part in self._parts]
        if len(names) == 1:
            return None
        if first >= steps:
            return (
                f"the weights of data.mixture hold from step {first} on, when the streams move to "
                f"other windows, and run.steps is {steps}: they change nothing; raise --run.steps"
            )
        total = sum(weights)
        asked = {name: weight / total for name, weight in zip(names, weights, strict=True)}
        found = self.shares(steps, first)
        if all(abs(found[name] - asked[name]) <= asked[name] * TOLERANCE for name in names):
            return None
        shown = ", ".join(f"{name} {found[name]:.3%} (asked {asked[name]:.3%})" for name in names)
        return (
            f"shares of the tokens of steps {first + 1} to {steps} will be {shown}: sources take "
            f"turns by windows, exactly over {BLOCK} of them, a source that is read has at least "
            "one of these, and windows of small sources are shorter; more steps or other weights "
            "come nearer"
        )


def over(
    sources: Sequence[tuple[str, Sequence[Shard]]],
    tokenizer: Tokenizer,
    *,
    streams: int,
    segment_length: int,
    seed: int,
    phases: Sequence[tuple[int, Sequence[float]]] = ((0, (1.0,)),),
    at_most: int | None = None,
) -> Streams:
    """Lay streams over the shards of one or more sources.

    Args:
      sources: (name, shards) of each.
      streams: S >= 1, es.population / es.members_per_stream.
      segment_length: T >= 1, tokens read per step.
      seed: sets the order.
      phases: weights of the sources, and the round from which they hold.
      at_most: tokens that a stream reads before it moves on; longer windows are read in parts.
        None: windows are read to their ends.

    Raises:
      UserError: fewer tokens than the streams read in one step, so that all would read the same.
    """
    weights = phases[0][1]  # later ones must not change the length of a round
    shares = [weight / sum(weights) for weight in weights]
    widest, target = 0, at_most or shards.WINDOW
    for (name, pieces), share in zip(sources, shares, strict=True):
        if share == 0:
            continue
        count = sum(len(shard.tokens) for shard in pieces)
        readers = max(1, round(streams * share))
        needed = readers * segment_length
        if count < needed:
            raise UserError(
                f"the training text of {name} has {counted(count, 'token')}, but "
                f"{counted(readers, 'stream')} of {segment_length} tokens "
                f"{'reads' if readers == 1 else 'read'} {needed} per step; give more text, or "
                "lower es.population or es.segment_length"
            )
        target = min(target, count // readers)
        widest = max(widest, *(int(np.diff(shard.windows).max(initial=1)) for shard in pieces))
    span = -(-widest // -(-widest // target))  # windows in equal parts that are no longer than that
    parts = [Part(name, pieces, span, seed) for name, pieces in sources]
    mixture = Mixture(phases, streams, seed)
    return Streams(parts, mixture, tokenizer=tokenizer, length=segment_length, span=span)


def build(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    streams: int,
    segment_length: int,
    seed: int = 0,
) -> Streams:
    """Streams over documents in memory. Arguments and errors are those of `over`."""
    ids = tokenizer.encode_all([document.text for document in documents])
    shard = shards.lay_out(ids, [], first=0, tokenizer=tokenizer)
    return over(
        [("text", [shard])], tokenizer, streams=streams, segment_length=segment_length, seed=seed
    )
