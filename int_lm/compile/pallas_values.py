"""Computes blocks of the nodes of a program, inside of a Pallas kernel.

`Values.at` is the counterpart of the writer of C: a value is found through views, computed from
its operands, or loaded. What has been computed is kept, so that each block is computed once.
Values are arrays [rows, columns], where either may be 1, or scalars.

Axes: I pairs of a tile, B columns of a block, K inputs of a block.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from int_lm.compile import pallas_calls, places, program
from int_lm.compile.pallas_operations import broadcast, indices, inside, pointwise, shape_of
from int_lm.compile.places import Columns, Cuts, Gathered, Index, Member, Place, Turn
from int_lm.compile.program import Node, UnsupportedError

_MEMORY = {"input", "constant", "broadcast", "slice", "take", "transpose", "reshape", "pick"}
_COMBINED = {"sum": jnp.add, "largest": jnp.maximum, "smallest": jnp.minimum}

# (argument, or number of a table; index, a place for every axis longer than 1; block that is
# loaded is one of a matrix, whose rows are a block of `Columns`) -> block
Load = Callable[[Node, Index], Any]


class Values:
    """Blocks that are known at a place of the kernel: of a token, or of a turn of a loop in it.

    Args:
      load: a block of an input or of a constant array.
      cuts: where axes are cut.
      outer: the blocks known outside of the loop.
    """

    def __init__(self, load: Load, cuts: Cuts, outer: "Values | None" = None) -> None:
        self.load, self.cuts, self.outer = load, cuts, outer
        self.known: dict[Any, Any] = {}

    def find(self, key: Any) -> Any:
        """What is known under a key; None for nothing."""
        values: Values | None = self
        while values is not None:
            if key in values.known:
                return values.known[key]
            values = values.outer
        return None

    def at(self, node: Node, index: Index) -> Any:
        """The block of a node at an index."""
        index = index if node.shape else ()
        key = node, index
        found = self.find(key)
        if found is None:
            found = self._computed(node, index)
            self.known[key] = found
        return found

    def _computed(self, node: Node, index: Index) -> Any:
        operation, value = node.operation, node.value
        for place, size in zip(index, node.shape, strict=True):
            _check(place, size)
        if operation == "constant" and node.is_constant:
            return np.dtype(node.dtype).type(value)
        if operation == "constant" and all(isinstance(place, int) for place in index):
            return np.dtype(node.dtype).type(value[index])
        if operation in ("input", "constant"):
            return self.load(node, index)
        if operation in program.POINTWISE:
            return pointwise(node, [self.at(x, index) for x in node.operands])
        found = getattr(self, f"_{operation}", None)
        if found is None:
            raise UnsupportedError(f"{operation} in blocks")
        return found(node, index, *node.operands)

    # -- Views -------------------------------------------------------------------------------------

    def _broadcast(self, node: Node, index: Index, x: Node) -> Any:
        return self.at(x, tuple(index[axis] for axis in node.value))

    def _slice(self, node: Node, index: Index, x: Node) -> Any:
        return self.at(x, tuple(map(places.shifted, index, node.value)))

    def _transpose(self, node: Node, index: Index, x: Node) -> Any:
        return self.at(x, tuple(index[node.value.index(axis)] for axis in range(len(index))))

    def _reshape(self, node: Node, index: Index, x: Node) -> Any:
        return self.at(x, places.regrouped(index, node.shape, x.shape))

    def _concatenate(self, node: Node, index: Index, *parts: Node) -> Any:
        axis, start = node.value, 0
        place = index[axis]
        if not isinstance(place, int | Columns):
            raise UnsupportedError("members of which some are others")
        first, size = (place, 1) if isinstance(place, int) else (place.start, place.size)
        for part in parts:
            if start <= first and first + size <= start + part.shape[axis]:
                inner = places.shifted(place, -start)
                if part.shape[axis] == 1:  # the only entry: an int
                    inner = 0
                return self.at(part, (*index[:axis], inner, *index[axis + 1 :]))
            start += part.shape[axis]
        raise UnsupportedError("a block of two parts")

    def _iota(self, node: Node, index: Index) -> Any:
        place = index[node.value]
        if isinstance(place, int):
            return np.dtype(node.dtype).type(place)
        return indices(place).astype(node.dtype)

    def _take(self, node: Node, index: Index, x: Node, which: Node) -> Any:
        count = len(which.shape)
        return self.at(x, (self.place(which, index[:count]), *index[count:]))

    def _pick(self, node: Node, index: Index, x: Node, which: Node) -> Any:
        count = len(which.shape)
        chosen, others = self.place(which, index[:count]), index[count:]
        if not isinstance(chosen, Gathered) or _in_memory(x):
            return self.at(x, (index[0], chosen, *others))
        total = None
        for columns in places.blocks(x.shape[1], self.cuts.of(x, 1)):
            if any(isinstance(place, Columns) for place in others):
                raise UnsupportedError("a choice of blocks")
            block = self.at(x, (index[0], columns, *others))
            block = broadcast(block, (shape_of(block, chosen.value)[0], columns.block))
            hit = broadcast(indices(columns) == chosen.value, block.shape) & inside(columns)
            block = jnp.where(hit, block, np.dtype(x.dtype).type(0))
            part = jnp.sum(block, axis=1, keepdims=True, dtype=x.dtype)
            total = part if total is None else total + part
        return total

    def place(self, which: Node, index: Index) -> Place:
        """The place that a node says."""
        if which.is_constant:
            return which.value
        if which.operation == "index":
            return Turn(id(which.value))
        return Gathered(id(which), index, self.at(which, index))

    # -- Loops -------------------------------------------------------------------------------------

    def _index(self, node: Node, index: Index) -> Any:
        return self._turn_known(("index", id(node.value)))

    def _carried(self, node: Node, index: Index) -> Any:
        loop, place = node.value
        return self._turn_known(("carried", id(loop), place, index))

    def _turn(self, node: Node, index: Index, turned: Node) -> Any:
        loop, place = turned.value, node.value
        if place < len(loop.hands):
            return self._turn_known(("result", id(loop), place, index))
        if not places.is_turn(index, loop):
            raise UnsupportedError("a result of another turn")
        return self.at(loop.results[place], index[1:])

    def _turn_known(self, key: Any) -> Any:
        found = self.find(key)
        if found is None:
            raise UnsupportedError(f"a block of a loop that is not there: {key[0]}")
        return found

    # -- Reductions --------------------------------------------------------------------------------

    def _sum(self, node: Node, index: Index, x: Node) -> Any:
        return self._reduced(node, index, x)

    _largest = _smallest = _sum

    def _reduced(self, node: Node, index: Index, x: Node) -> Any:
        axes, combine = node.value, _COMBINED[node.operation]
        *few, last = sorted(axes)
        total = None
        for entry in np.ndindex(*(x.shape[axis] for axis in few)):
            for columns in places.blocks(x.shape[last], self.cuts.of(x, last)):
                rest = iter(index)
                fixed_places = dict(zip(few, map(int, entry), strict=True)) | {last: columns}
                whole = tuple(
                    fixed_places[axis] if axis in fixed_places else next(rest)
                    for axis in range(len(x.shape))
                )
                if sum(isinstance(place, Columns) for place in whole) > 1:
                    raise UnsupportedError("a reduction of blocks")
                part = self._reduced_block(node, x, whole, columns)
                total = part if total is None else combine(total, part)
        return total

    def _reduced_block(self, node: Node, x: Node, index: Index, columns: Columns) -> Any:
        block = self.at(x, index)
        block = broadcast(block, (shape_of(block)[0], columns.block))
        dtype = node.dtype
        if node.operation == "sum":
            if columns.size < columns.block:
                block = jnp.where(inside(columns), block, np.dtype(x.dtype).type(0))
            return jnp.sum(block.astype(dtype), axis=1, keepdims=True, dtype=dtype)
        reduce = jnp.max if node.operation == "largest" else jnp.min
        return reduce(block, axis=1, keepdims=True)

    # -- Calls -------------------------------------------------------------------------------------

    def _call(self, node: Node, index: Index, *operands: Node) -> Any:
        return pallas_calls.called(self, node, index)


def _check(place: Place, size: int) -> None:
    """Refuse a place of members on another axis, and another place on theirs."""
    expected = {places.MEMBERS: Member, places.PAIRS: places.Pair}.get(size)
    of_members = isinstance(place, Member | places.Pair)
    if of_members != (expected is not None) or expected and not isinstance(place, expected):
        raise UnsupportedError(f"{place} of an axis of {size} entries")


def _in_memory(node: Node) -> bool:
    """Whether a node is part of an input or of a table."""
    return node.operation in _MEMORY and all(map(_in_memory, node.operands[:1]))
