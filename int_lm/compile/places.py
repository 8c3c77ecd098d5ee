"""Places in arrays of a tile of members: which entries of an array a block of a kernel holds.

A kernel computes blocks: arrays [rows, columns] of powers of two. Rows are pairs of members, or
one; columns are a range of an axis, or one. An index has a place for every axis of a node:

    int         one entry
    `Member`    every first, or every second, member of the pairs of a tile
    `Pair`      all pairs of a tile
    `Columns`   a range; the block may be longer, then its last columns repeat the range's last one
    `Turn`      the number of the turn of a loop
    `Gathered`  entries that the kernel has computed

A tile is traced with so many members (`MEMBERS`) that an axis of members is known by its length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from int_lm.compile.program import Loop, Node, Shape, UnsupportedError

PAIRS = 1_000_003  # of a tile, as it is traced: no other axis has this length
MEMBERS = 2 * PAIRS
LEAST_BLOCK = 32  # columns: inputs of an int8 product on tensor cores
MOST_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Member:
    """Member 2i + `second` of every pair i."""

    second: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Every pair."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """`size` entries from `start` on, in a block of `block` >= `size` columns."""

    start: int
    size: int
    block: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """The number of a loop's turn."""

    loop: int  # its id


@dataclasses.dataclass(frozen=True)
class Gathered:
    """The entry that `node` says at `index`; `value` is the block that holds it."""

    node: int  # its id
    index: tuple[Any, ...]
    value: Any = dataclasses.field(compare=False, hash=False)
    added: int = 0  # to every entry of the block


Place = int | Member | Pair | Columns | Turn | Gathered
Index = tuple[Place, ...]


def blocks(size: int, cuts: Sequence[int] = ()) -> list[Columns]:
    """Blocks that hold an axis; none crosses a cut."""
    found = []
    for first, end in zip((0, *cuts), (*cuts, size), strict=True):
        while first < end:
            block = MOST_BLOCK
            while block > max(LEAST_BLOCK, end - first):
                block //= 2
            part = min(block, end - first)
            found.append(Columns(first, part, block))
            first += part
    return found


def shifted(place: Place, by: int) -> Place:
    """The place `by` entries further on."""
    if by == 0:
        return place
    if isinstance(place, int):
        return place + by
    if isinstance(place, Columns):
        return dataclasses.replace(place, start=place.start + by)
    if isinstance(place, Gathered):
        return dataclasses.replace(place, added=place.added + by)
    raise UnsupportedError("a part of the members")


def regrouped(index: Index, shape: Shape, own: Shape) -> Index:
    """The index in x, of shape `own`, of the entry `index` of its reshape to `shape`."""
    found: list[Place] = []
    i = j = 0
    while i < len(shape) and j < len(own):
        k, m, size, other = i + 1, j + 1, shape[i], own[j]
        while size != other:
            if size < other:
                size, k = size * shape[k], k + 1
            else:
                other, m = other * own[m], m + 1
        found += _group(index[i:k], shape[i:k], own[j:m])
        i, j = k, m
    return tuple(found)


def _group(index: Index, shape: Shape, own: Shape) -> list[Place]:
    if len(shape) == len(own):
        return list(index)
    first, last = index[0], index[-1]
    if shape == (PAIRS, 2) and isinstance(first, Pair) and isinstance(last, int):
        return [Member(last)]
    if own == (PAIRS, 2) and isinstance(first, Member):
        return [Pair(), first.second]
    flat = 0
    for place, size in zip(index[:-1], shape[:-1], strict=True):
        if not isinstance(place, int):
            raise UnsupportedError("a reshape of members and others")
        flat = flat * size + place
    place = shifted(last, flat * shape[-1])
    if not isinstance(place, int | Columns):
        raise UnsupportedError("a reshape of members and others")
    unfolded: list[Place] = []
    for size in reversed(own[1:]):
        start = place if isinstance(place, int) else place.start
        if isinstance(place, Columns) and start % size + place.size > size:
            raise UnsupportedError("a reshape in the middle of a block")
        inner = shifted(place, start % size - start)
        if isinstance(inner, Columns):
            unfolded, place = [inner, *unfolded], start // size
        else:
            unfolded, place = [start % size, *unfolded], start // size
    return [place, *unfolded]


class Cuts:
    """Where axes are best cut: between the parts of which they were put together."""

    def __init__(self) -> None:
        self.known: dict[tuple[Node, int], frozenset[int]] = {}

    def of(self, node: Node, axis: int) -> list[int]:
        """Entries of an axis, above 0, before which a block ends."""
        return sorted(cut for cut in self._of(node, axis) if 0 < cut < node.shape[axis])

    def _of(self, node: Node, axis: int) -> frozenset[int]:
        key = node, axis
        if key not in self.known:
            self.known[key] = frozenset()
            self.known[key] = self._found(node, axis)
        return self.known[key]

    def _found(self, node: Node, axis: int) -> frozenset[int]:
        operation, value = node.operation, node.value
        x = node.operands[0] if node.operands else node
        if operation == "concatenate":
            found, start = set[int](), 0
            for part in node.operands:
                found |= {start + cut for cut in self._of(part, axis)}
                if axis == value:
                    start += part.shape[axis]
                    found.add(start)
            return frozenset(found)
        if operation == "slice":
            return frozenset(cut - value[axis] for cut in self._of(x, axis))
        if operation == "transpose":
            return self._of(x, value[axis])
        if operation == "broadcast":
            return self._of(x, value.index(axis)) if axis in value else frozenset()
        if operation == "take":
            inner = axis - len(node.operands[1].shape)
            return self._of(x, inner + 1) if inner >= 0 else frozenset()
        if operation == "reshape":
            after, before = node.shape[axis + 1 :], node.shape[: axis + 1]
            for other in range(len(x.shape)):
                if x.shape[other + 1 :] == after and x.shape[: other + 1] == before:
                    return self._of(x, other)
                if x.shape[other + 1 :] == after and x.shape[other] == before[-1]:
                    return self._of(x, other)
            return frozenset()
        if operation == "turn":
            result = x.value.results[value]
            collected = value >= len(x.value.hands)
            return self._of(result, axis - collected) if axis >= collected else frozenset()
        if operation in ("call", "carried", "constant", "input", "iota", "index", "pick", "loop"):
            return frozenset()
        if operation in ("sum", "largest", "smallest", "first_largest"):
            kept = [k for k in range(len(x.shape)) if k not in value]
            return self._of(x, kept[axis])
        operands = [operand for operand in node.operands if operand.shape]
        return frozenset().union(*(self._of(operand, axis) for operand in operands))


def is_turn(index: Sequence[Place], loop: Loop) -> bool:
    """Whether an index begins with the number of this loop's turn."""
    return bool(index) and index[0] == Turn(id(loop))
