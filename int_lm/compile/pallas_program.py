"""One program of the kernel of a segment (`pallas_kernel`), as Pallas traces it.

Axes: P members, I pairs of a tile, T tokens of a segment, L layers, B columns of a block.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from int_lm.compile import places, program
from int_lm.compile.pallas_operations import broadcast
from int_lm.compile.pallas_segment import Segment
from int_lm.compile.pallas_values import Values, indices
from int_lm.compile.places import Columns, Cuts, Gathered, Index, Member, Pair, Place, Turn
from int_lm.compile.program import Loop, Node, UnsupportedError
from int_lm.compile.tile_writing import resized


def table_key(array: np.ndarray) -> Any:
    """What tells constant arrays from one another."""
    return str(array.dtype), array.shape, array.tobytes()


@dataclasses.dataclass(frozen=True)
class _Target:
    """An array of outputs: of a state, or of a result.

    Attributes:
      ref: the array.
      shape: of one token of a tile as it is traced, with axes of length 1.
      token: the axis of `ref` that holds the tokens; 0 for a state, of which it holds two.
      is_state: whether it is a state.
    """

    ref: Any
    shape: program.Shape
    token: int
    is_state: bool


class Program:
    """One program of the grid, as it is traced."""

    def __init__(
        self,
        segment: Segment,
        outputs: Sequence[Node],
        tables: Sequence[np.ndarray],
        refs: Sequence[Any],
        interpret: bool,
    ) -> None:
        self.segment, self.interpret = segment, interpret
        self.cuts = Cuts()
        self.numbers = {table_key(table): k for k, table in enumerate(tables)}
        count, after = len(segment.arguments), len(segment.arguments) + len(tables)
        self.arguments, self.tables = list(refs[:count]), refs[count:after]
        self.targets: list[tuple[Node, _Target]] = []
        for k, node in enumerate(outputs):
            ref = refs[after + k]
            if k < len(segment.states):
                place = segment.states[k]
                self.arguments[place] = ref  # the state is read where it is written
                shape, token = segment.arguments[place].of_tile(places.MEMBERS), 0
            else:
                result = segment.results[k - len(segment.states)]
                token, tile = result.members, places.MEMBERS // result.group
                shape = resized(result.shape, token, tile)
            target = _Target(ref, shape, token, k < len(segment.states))
            self.targets.append((node, target))
        self.loops = [node.value for node in program.reached(outputs) if node.operation == "loop"]
        self.collected: dict[Node, frozenset[int]] = {}
        self.ranks: dict[Node, int] = {}

    # -- The rows of a tile ------------------------------------------------------------------------

    def run(self) -> None:
        """Read all tokens."""
        pairs, members = self.segment.pairs, self.segment.members
        lane = lax.broadcasted_iota(jnp.int32, (pairs, 1), 0)
        pair_I1 = pl.program_id(0) * pairs + lane
        whole = members % (2 * pairs) == 0
        self.rows: dict[Place, Array] = {}
        self.beyond: dict[Place, Array] = {}
        self.valid: dict[Place, Array | None] = {}
        for place, row_I1, size in (
            (Member(0), 2 * pair_I1, members),
            (Member(1), 2 * pair_I1 + 1, members),
            (Pair(), pair_I1, members // 2),
        ):
            self.valid[place] = None if whole else row_I1 < size
            self.beyond[place] = row_I1
            self.rows[place] = row_I1 if whole else jnp.minimum(row_I1, max(size - 1, 0))
        lax.fori_loop(0, self.segment.length, self.token, np.int32(0))

    def token(self, number: Array, _: Array) -> Array:
        """Read one token."""
        self.number, self.turns = number, dict[int, Array]()
        self.before, self.after = number & 1, 1 - (number & 1)  # of the two states
        values = Values(self.load, self.cuts)
        wanted = [
            (node, target, index)
            for node, target in self.targets
            if not self.loops_of(node)
            for index in self.lattice(target.shape, None, node)
        ]
        for loop in self.loops:
            self.turn_all(values, loop)
        self.store_all(values, wanted, [])
        if not self.interpret:  # no thread reads the next token's state before all have written it
            pallas_triton.debug_barrier()
        return _

    def turn_all(self, values: Values, loop: Loop) -> None:
        """Compute a loop: what it carries stays in registers, what it collects is written."""
        if loop.reverse:
            raise UnsupportedError("a loop from its end")
        number, carried = id(loop), []
        for place in sorted(loop.live):
            if place < len(loop.hands):
                hand = loop.hands[place]
                carried += [(place, index) for index in self.lattice(hand.shape, None, hand)]
        wanted = [
            (node, target, index)
            for node, target in self.targets
            if number in self.loops_of(node)
            for index in self.lattice(target.shape, loop, node)
        ]

        def block(values: Values, node: Node, index: Index) -> Array:
            found = values.at(node, index)
            return broadcast(found, self.block_shape(index)).astype(node.dtype)

        def turn(k: Array, blocks: list[Array]) -> list[Array]:
            self.turns[number] = k
            inner = Values(self.load, self.cuts, values)
            inner.known["index", number] = k
            for key, found in zip(carried, blocks, strict=True):
                inner.known["carried", number, *key] = found
            hands = [(loop.hands[place], index) for place, index in carried]
            self.store_all(inner, wanted, hands)
            return [block(inner, node, index) for node, index in hands]

        starts = [block(values, loop.starts[place], index) for place, index in carried]
        after = lax.fori_loop(0, loop.length, turn, starts)
        for key, found in zip(carried, after, strict=True):
            values.known["result", number, *key] = found

    def store_all(
        self,
        values: Values,
        wanted: Sequence[tuple[Node, _Target, Index]],
        hands: Sequence[tuple[Node, Index]],
    ) -> None:
        """Compute blocks of outputs and of what a loop hands on; write them as soon as they are."""
        todo: list[tuple[Node, _Target | None, Index]] = [*wanted]
        todo += [(node, None, index) for node, index in hands]
        for node, target, index in sorted(todo, key=lambda item: self.rank(item[0])):
            found = values.at(node, _kept(index, target) if target else index)
            if target is not None:
                self.store(target, index, found)

    # -- The graph ---------------------------------------------------------------------------------

    def loops_of(self, node: Node) -> frozenset[int]:
        """The ids of the loops, results of whose every turn are read."""
        if node not in self.collected:
            found = [self.loops_of(x) for x in node.operands if node.operation != "turn"]
            if node.operation == "turn" and node.value >= len(node.operands[0].value.hands):
                found.append(frozenset([id(node.operands[0].value)]))
            self.collected[node] = frozenset().union(*found)
        return self.collected[node]

    def rank(self, node: Node) -> int:
        """How many operations lie before a node, at most."""
        if node not in self.ranks:
            before = node.operands
            if node.operation == "turn":
                before = (node.operands[0].value.results[node.value],)
            self.ranks[node] = 1 + max(map(self.rank, before), default=0)
        return self.ranks[node]

    def lattice(self, shape: program.Shape, loop: Loop | None, node: Node) -> list[Index]:
        """Indices of blocks that together hold an array of one token or of one turn of a loop.

        Args:
          shape: of the array; axes of length 1 have a place, too.
          loop: the axis before the members counts its turns; None for no such axis.
          node: what the array will hold; its cuts are those of the blocks.
        """
        kept = [axis for axis, size in enumerate(shape) if size != 1]
        choices: list[list[Place]] = []
        turns = 0
        for axis, size in enumerate(shape):
            if size == places.MEMBERS:
                choices.append([Member(0), Member(1)])
            elif size == places.PAIRS:
                choices.append([Pair()])
            elif loop is not None and not turns and size == loop.length:
                turns += 1
                choices.append([Turn(id(loop))])
            elif axis == len(shape) - 1 and size > 1:
                cuts = self.cuts.of(node, kept.index(axis)) if node.shape else []
                choices.append(list(places.blocks(size, cuts)))
            else:
                choices.append(list(range(size)))
        if loop is not None and not turns:
            raise UnsupportedError("a result without an axis of turns")
        # members change first: a linear is computed of both
        order = sorted(range(len(shape)), key=lambda axis: shape[axis] == places.MEMBERS)
        chosen = itertools.product(*(choices[axis] for axis in order))
        return [tuple(index[order.index(axis)] for axis in range(len(shape))) for index in chosen]

    def block_shape(self, index: Index) -> tuple[int, int]:
        rows = any(isinstance(place, Member | Pair) for place in index)
        columns = [place.block for place in index if isinstance(place, Columns)]
        return self.segment.pairs if rows else 1, math.prod(columns)

    # -- Memory ------------------------------------------------------------------------------------

    def load(self, node: Node, index: Index) -> Any:
        """A block of an input or of a table."""
        if node.operation == "constant":
            ref, full = self.tables[self.numbers[table_key(node.value)]], index
            return pallas_triton.load(ref.at[tuple(self.spread(full))])
        place, arguments = int(node.value), self.segment.arguments
        ref, argument = self.arguments[place], arguments[place]
        rest = iter(index)
        full = tuple(next(rest) if n > 1 else 0 for n in argument.of_tile(places.MEMBERS))
        if place in self.segment.states:
            return pallas_triton.load(ref.at[self.before, *self.spread(full)])
        if argument.each:
            return pallas_triton.load(ref.at[self.number, *self.spread(full)])
        if place < len(arguments) - 2:
            return pallas_triton.load(ref.at[tuple(self.spread(full))])
        tokens = pallas_triton.load(ref.at[self.number, *self.spread(full)])
        return jnp.clip(tokens, 0, argument.high)

    def store(self, target: _Target, index: Index, value: Any) -> None:
        """Write a block, without its repetitions."""
        shape = self.block_shape(index)
        masks = [self.valid[place] for place in index if place in self.valid]
        for place in index:
            if isinstance(place, Columns) and place.size < place.block:
                masks.append(lax.broadcasted_iota(jnp.int32, (1, place.block), 1) < place.size)
        masks = [broadcast(mask, shape) for mask in masks if mask is not None]
        mask = None
        for one in masks:
            mask = one if mask is None else mask & one
        value = broadcast(value, shape).astype(target.ref.dtype)
        # without repetitions: what is masked is elsewhere than what is not
        own = tuple(replace(x, size=x.block) if isinstance(x, Columns) else x for x in index)
        found = self.spread(own, self.beyond)
        found.insert(target.token, self.after if target.is_state else self.number)
        pallas_triton.store(target.ref.at[tuple(found)], value, mask=mask)

    def spread(self, index: Index, rows: Mapping[Place, Array] | None = None) -> list[Any]:
        """An index of a reference."""
        rows = self.rows if rows is None else rows
        found: list[Any] = []
        columns = [place for place in index if isinstance(place, Columns)]
        for place in index:
            if isinstance(place, int):
                found.append(place)
            elif isinstance(place, Turn):
                found.append(self.turns[place.loop])
            elif isinstance(place, Gathered):
                found.append(place.value + np.asarray(place.added, place.value.dtype))
            elif isinstance(place, Columns):
                numbers = indices(place)
                turned = len(columns) == 2 and place is columns[0]
                found.append(broadcast_rows(numbers) if turned else numbers)
            else:
                found.append(rows[place])
        shape = np.broadcast_shapes(*(np.shape(x) for x in found))
        return [broadcast(x, shape) if np.ndim(x) else x for x in found]


def broadcast_rows(numbers_1B: Array) -> Array:
    """Numbers [1, B] as [B, 1]."""
    return numbers_1B.reshape(-1, 1)


def _kept(index: Index, target: _Target) -> Index:
    """An index without the places of axes of length 1."""
    return tuple(place for place, size in zip(index, target.shape, strict=True) if size != 1)
