"""Computes blocks of the nodes of a program, inside of a Pallas kernel.

`Values.at` is the counterpart of the writer of C: a value is found through views, computed from
its operands, or loaded. What has been computed is kept, so that each block is computed once.
Values are arrays [rows, columns], where either may be 1, or scalars.

Axes: I pairs of a tile, B columns of a block, K inputs of a block.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from int_lm.arithmetic import fixed
from int_lm.compile import places, program, ranges, tile_reading
from int_lm.compile.pallas_operations import broadcast, pointwise, shape_of
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
        if isinstance(chosen, int) or _in_memory(x):
            return self.at(x, (index[0], chosen, *others))
        total = None
        for columns in places.blocks(x.shape[1], self.cuts.of(x, 1)):
            if any(isinstance(place, Columns) for place in others):
                raise UnsupportedError("a choice of blocks")
            block = self.at(x, (index[0], columns, *others))
            block = broadcast(block, (shape_of(block, chosen.value)[0], columns.block))
            hit = broadcast(indices(columns) == chosen.value, block.shape) & _inside(columns)
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
                block = jnp.where(_inside(columns), block, np.dtype(x.dtype).type(0))
            return jnp.sum(block.astype(dtype), axis=1, keepdims=True, dtype=dtype)
        reduce = jnp.max if node.operation == "largest" else jnp.min
        return reduce(block, axis=1, keepdims=True)

    # -- Linears -----------------------------------------------------------------------------------

    def _call(self, node: Node, index: Index, *operands: Node) -> Any:
        """A linear, of both members of the pairs: they share the block of weights."""
        member, columns = index
        if not isinstance(member, Member) or not isinstance(columns, Columns):
            raise UnsupportedError("a part of a linear's results")
        x, value, left, right, layer = operands
        number = self.place(layer, ())
        both = (Member(0), Member(1))
        totals: list[Any] = [None, None]
        for part in places.blocks(x.shape[1], self.cuts.of(x, 1)):
            inputs_IK = [self.at(x, (who, part)) for who in both]
            weight_BK = self.load(value, _layered(value, number, 2, (columns, part)))
            if part.size < part.block:
                weight_BK = jnp.where(_inside(part), weight_BK, np.int8(0))
            for k, x_IK in enumerate(inputs_IK):
                x_IK = broadcast(x_IK, (shape_of(x_IK)[0], part.block))
                product_IB = fixed.dot(x_IK, weight_BK)
                totals[k] = product_IB if totals[k] is None else totals[k] + product_IB
        low, high = int(node.value[2]["low"]), int(node.value[2]["high"])
        if left.value != tile_reading.NONE:
            added_2IB = self._perturbations(x, left, right, number, columns)
            totals = [t + (a >> low) for t, a in zip(totals, added_2IB, strict=True)]
        most = ranges.limits(node.dtype)[1]
        for who, total_IB in zip(both, totals, strict=True):
            narrow = jnp.clip(total_IB >> high, -most, most).astype(node.dtype)
            self.known[node, (who, columns)] = narrow
        return self.known[node, index]

    def _perturbations(
        self, x: Node, left: Node, right: Node, number: Place, columns: Columns
    ) -> list[Any]:
        """+-(x B) A^T of both members: int32 [I, B] each."""
        rank = _rank(left)
        totals: list[Any] = [None, None]
        for r in range(rank):
            index = _layered(left, number, 2, (places.Pair(), columns), r)
            left_IB = self.load(left, index).astype(jnp.int32)
            for k, inner_I1 in enumerate(self._projections(x, right, number, r)):
                term = left_IB * broadcast(inner_I1, left_IB.shape)
                totals[k] = term if totals[k] is None else totals[k] + term
        return [totals[0], -totals[1]]

    def _projections(self, x: Node, right: Node, number: Place, r: int) -> list[Array]:
        """x B of both members: int32 [I, 1] each."""
        key = "projection", x, right, number, r
        found = self.find(key)
        if found is not None:
            return found
        found = [None, None]
        for part in places.blocks(x.shape[1], self.cuts.of(x, 1)):
            index = _layered(right, number, 2, (places.Pair(), part), r)
            right_IK = self.load(right, index).astype(jnp.int32)
            if part.size < part.block:
                right_IK = jnp.where(_inside(part), right_IK, np.int32(0))
            for k in (0, 1):
                x_IK = self.at(x, (Member(k), part))
                product = broadcast(x_IK, right_IK.shape).astype(jnp.int32) * right_IK
                sums = jnp.sum(product, axis=1, keepdims=True, dtype=jnp.int32)
                found[k] = sums if found[k] is None else found[k] + sums
        self.known[key] = found
        return found


def _check(place: Place, size: int) -> None:
    """Refuse a place of members on another axis, and another place on theirs."""
    expected = {places.MEMBERS: Member, places.PAIRS: places.Pair}.get(size)
    of_members = isinstance(place, Member | places.Pair)
    if of_members != (expected is not None) or expected and not isinstance(place, expected):
        raise UnsupportedError(f"{place} of an axis of {size} entries")


def _in_memory(node: Node) -> bool:
    """Whether a node is part of an input or of a table."""
    return node.operation in _MEMORY and all(map(_in_memory, node.operands[:1]))


def _rank(left: Node) -> int:
    """R of A [..., I, M, R], whose axes of length 1 are left out."""
    (pairs,) = (axis for axis, size in enumerate(left.shape) if size == places.PAIRS)
    return left.shape[pairs + 2] if len(left.shape) > pairs + 2 else 1


def _layered(node: Node, number: Place, axes: int, inner: Sequence[Place], r: int = -1) -> Index:
    """The index of a layer's block in a matrix or in its noise, which may be of one layer."""
    rest: tuple[Place, ...] = tuple(inner)
    if r >= 0 and _rank(node) > 1:
        rest = (*rest, r)
    return (number, *rest) if len(node.shape) > len(rest) else rest


def indices(columns: Place) -> Array:
    """The entries that a block of columns holds: int32 [1, B]."""
    if not isinstance(columns, Columns):
        raise UnsupportedError("numbers of members")
    lane = lax.broadcasted_iota(jnp.int32, (1, columns.block), 1)
    if columns.size < columns.block:
        lane = jnp.minimum(lane, columns.size - 1)
    return lane + columns.start


def _inside(columns: Columns) -> Array:
    """Which columns of a block are no repetitions: bool [1, B]."""
    return lax.broadcasted_iota(jnp.int32, (1, columns.block), 1) < columns.size
