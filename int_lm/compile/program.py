"""A typed program of integer operations for one token. It does not depend on a language.

A program is a graph of `Node`s. Each has a shape, an integer dtype and a range [low, high] that its
entries cannot leave. Axes of length 1 are left out of shapes. An array whose entries are all equal
to one scalar may be represented by that scalar. `combine` simplifies operations whose results
follow from the ranges, such as a comparison that is always false. If the range of a result proves
that it fits its dtype, a back end may compute it with a plain operator. Otherwise `wraps` is True,
and the result is taken modulo 2^bits.

`trace` makes programs from functions that JAX traces, `c` writes programs as C. Other back ends,
such as kernels for a tile of members, can read the same graph.

Operations that are not in `POINTWISE`:

    constant      value: an int, or an array
    input         value: its name
    index         the counter of a loop: value is the `Loop`
    carried       a value that a loop passes from one turn to the next: value is (Loop, place)
    broadcast     value: axis of the result for every axis of the operand
    slice         value: first index along every axis
    take          operand, index: operand[index] along axis 0; the shape is the index's and the rest
    transpose     value: axis of the operand for every axis of the result
    reshape       the same entries in the same order
    concatenate   value: axis
    iota          value: axis along which the entries count
    sum, largest, smallest, first_largest     value: axes that are reduced
    linear        x [N], weights [M, N], both int8: x W^T, int32 [M]
    loop          value: the `Loop`; operands: the nodes outside of the loop that it needs
    turn          a result of a loop, which is its operand: value is the place, see `Loop`
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from int_lm.compile import ranges
from int_lm.compile.ranges import COMPARISONS, limits, wrapped

Shape = tuple[int, ...]
POINTWISE = COMPARISONS | {
    *("add", "sub", "mul", "div", "rem", "floor_divide", "max", "min", "abs", "neg", "sign"),
    *("and", "or", "xor", "not", "select", "convert", "clz"),
    *("shift_left", "shift_floor", "shift_logical"),
}
REDUCTIONS = {"sum", "largest", "smallest", "first_largest"}


class UnsupportedError(Exception):
    """A program has an operation that cannot be compiled; the message names it."""


@dataclasses.dataclass(frozen=True)
class Note:
    """The origin of a node.

    Attributes:
      statement: the statement of Python that computes it; "" if unknown.
      name: the name that the statement gives to its result; "" for none.
    """

    statement: str = ""
    name: str = ""


@dataclasses.dataclass(eq=False)
class Node:
    """One operation and its result.

    Attributes:
      operation: one of `POINTWISE`, or one that the docstring of the module lists.
      operands: if the operation is pointwise, each has this node's shape or is a scalar.
      shape: of the result, without axes of length 1; () for a scalar.
      dtype: of the result.
      low: the least value that an entry can have.
      high: the greatest value that an entry can have.
      value: see the docstring of the module.
      wraps: whether the exact result may leave the dtype and is taken modulo 2^bits.
      note: the origin of the node.
    """

    operation: str
    operands: tuple["Node", ...]
    shape: Shape
    dtype: str
    low: int
    high: int
    value: Any = None
    wraps: bool = False
    note: Note = Note()

    @property
    def is_constant(self) -> bool:
        """Whether the node is one known integer."""
        return self.operation == "constant" and not isinstance(self.value, np.ndarray)


@dataclasses.dataclass(eq=False)
class Loop:
    """A scan: a body that is computed `length` times.

    Attributes:
      length: number of turns.
      starts: the carried values before the first turn.
      hands: the carried values after a turn, one for each of `starts`.
      collected: other results of a turn, stacked along a new first axis in the result of the loop.
      reverse: whether the results of the first turn are the last ones of the stack.
      live: places of the results that are needed, counted in `hands` and then in `collected`.
    """

    length: int
    starts: list[Node] = dataclasses.field(default_factory=list)
    hands: list[Node] = dataclasses.field(default_factory=list)
    collected: list[Node] = dataclasses.field(default_factory=list)
    reverse: bool = False
    live: set[int] = dataclasses.field(default_factory=set)

    @property
    def results(self) -> list[Node]:
        """The results of a turn, by place: `hands`, then `collected`."""
        return [*self.hands, *self.collected]


def constant(value: Any, dtype: str) -> Node:
    """A constant: an integer, or an array without axes of length 1."""
    array = np.asarray(value)
    shape = tuple(size for size in array.shape if size != 1)
    if not shape:
        number = int(array.reshape(()))
        return Node("constant", (), (), dtype, number, number, number)
    array = array.reshape(shape)
    if array.min() == array.max():
        return constant(array.reshape(-1)[0], dtype)
    return Node("constant", (), shape, dtype, int(array.min()), int(array.max()), array)


def argument(name: str, shape: Iterable[int], dtype: str, low: int, high: int) -> Node:
    """An input, with the range of its entries."""
    kept = tuple(size for size in shape if size != 1)
    return Node("input", (), kept, dtype, low, high, name)


def combine(
    operation: str, operands: Sequence[Node], shape: Iterable[int], dtype: str, note: Note = Note()
) -> Node:
    """A pointwise operation, simplified to one of its operands or to a constant if possible.

    Args:
      operation: one of `POINTWISE`.
      operands: for select: (condition, value where it is 0, value where it is 1).
      shape: of the result, with or without axes of length 1; scalars alone give a scalar.
      dtype: of the result.
      note: origin of the node.
    """
    x, y = operands[0], operands[-1]
    low, high = ranges.result(operation, operands, dtype)
    if operation == "sub" and x.operation == "largest" and x.operands == (y,) and not x.shape:
        low = max(low, 0)  # the largest of all less one of them
    least, most = limits(dtype)
    wraps = not least <= low <= high <= most
    if all(operand.is_constant for operand in operands) and low == high:
        return constant(wrapped(low, dtype), dtype)
    if wraps:
        low, high = least, most
    if low == high and not wraps and operation != "convert":
        return constant(low, dtype)
    if operation == "select" and x.is_constant:
        return operands[1 + x.value]
    if operation == "convert" and not wraps:
        if x.dtype == dtype:
            return x
        # from where it came, if nothing was lost on the way
        if x.operation == "convert" and not x.wraps and x.operands[0].dtype == dtype:
            return x.operands[0]
    if operation == "max" and x.low >= y.high or operation == "min" and x.high <= y.low:
        return x
    if operation == "max" and y.low >= x.high or operation == "min" and y.high <= x.low:
        return y
    if y.is_constant and y.value == 0 and operation in ("add", "sub", "or", "xor"):
        return x
    if y.is_constant and y.value == 0 and operation.startswith("shift_"):
        return x
    if y.is_constant and y.value == 1 and operation in ("mul", "div", "floor_divide"):
        return x
    if operation == "select" and (found := _floor_division(operands)):
        return combine("floor_divide", found, shape, dtype, note)
    kept = tuple(size for size in shape if size != 1)
    if all(not operand.shape for operand in operands):
        kept = ()
    return Node(operation, tuple(operands), kept, dtype, low, high, None, wraps, note)


def _floor_division(operands: Sequence[Node]) -> tuple[Node, Node] | None:
    """(dividend, divisor) of jnp.floor_divide, which JAX expresses by a truncating division:

    select(sign a != sign b and a rem b != 0, a div b, a div b - 1)

    None for other operands.
    """
    condition, quotient, less = operands
    if quotient.operation != "div" or less.operation != "sub" or condition.operation != "and":
        return None
    a, b = quotient.operands
    differ, rest = condition.operands
    one = less.operands[1]
    right = less.operands[0] is quotient and one.is_constant and one.value == 1
    right = right and rest.operation == "ne" and rest.operands[1].high == 0 == rest.operands[1].low
    right = right and rest.operands[0].operation == "rem" and rest.operands[0].operands == (a, b)
    if not right or differ.operation != "ne" or b.low <= 0:
        return None
    sign, of_divisor = differ.operands
    right = sign.operation == "sign" and sign.operands == (a,)
    right = right and of_divisor.is_constant and of_divisor.value == 1
    return (a, b) if right else None


def reached(outputs: Iterable[Node]) -> list[Node]:
    """Every node that the outputs need, without the bodies of loops; operands come first."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in order:
            for operand in node.operands:
                visit(operand)
            order[node] = None

    for output in outputs:
        visit(output)
    return list(order)


def within(loop: Loop) -> list[Node]:
    """The nodes of a loop's body that differ between turns; operands come first."""
    of_turn: dict[Node, None] = {}  # no set: the order of its nodes differs between processes
    for node in reached(loop.results[place] for place in sorted(loop.live)):
        own = node.operation == "index" and node.value is loop
        own = own or node.operation == "carried" and node.value[0] is loop
        if own or any(operand in of_turn for operand in node.operands):
            of_turn[node] = None
    return [node for node in reached(of_turn) if node in of_turn]


def finish(outputs: Sequence[Node]) -> None:
    """Find which results of loops the outputs need, and which nodes loops need from outside."""
    seen: set[Node] = set()
    loops: dict[Node, None] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += node.operands
        loop, place = None, 0
        if node.operation == "turn":
            loops[node.operands[0]] = None
            loop, place = node.operands[0].value, node.value
        elif node.operation == "carried":
            loop, place = node.value
        if loop is not None:
            loop.live.add(place)
            waiting.append(loop.results[place])
            waiting += loop.starts[place : place + 1]
    for node in reversed(loops):  # inner ones first: they were met after those around them
        loop = node.value
        body = within(loop)
        inside = set(body)
        needed = [loop.starts[place] for place in sorted(loop.live) if place < len(loop.starts)]
        needed += [loop.results[place] for place in sorted(loop.live)]
        needed += [operand for inner in body for operand in inner.operands]
        node.operands = tuple(dict.fromkeys(n for n in needed if n not in inside))
