"""Writes the program of a tile of members as a function in C."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from int_lm.compile import c, expressions, layout, nodes, program, stages
from int_lm.compile.program import Node, Shape, UnsupportedError

PRELUDE = Path(__file__).with_name("prelude.inc")


@dataclasses.dataclass(frozen=True)
class Argument:
    """An array that the function of one token takes.

    Attributes:
      shape: of all members.
      dtype: its name.
      members: the axis of members, or of groups of them; None for an array that all share.
      group: members that one entry of this axis stands for: 1, or 2 for pairs.
      low: the least value of an entry.
      high: the greatest.
      each: whether every token has one of its own; in memory, tokens come first.
    """

    shape: Shape
    dtype: str
    members: int | None
    group: int
    low: int
    high: int
    each: bool = False

    def of_tile(self, tile: int) -> Shape:
        """The shape of what a tile of so many members takes of it."""
        return resized(self.shape, self.members, tile // self.group)


@dataclasses.dataclass(frozen=True)
class Result:
    """An array that is written for every token: shape and dtype of one token, all members.

    `members` and `group` are those of `Argument`. In memory the axes before that of the members
    come first, then the tokens, then the others.
    """

    shape: Shape
    dtype: str
    members: int
    group: int


def resized(shape: Shape, axis: int | None, size: int) -> Shape:
    return shape if axis is None else (*shape[:axis], size, *shape[axis + 1 :])


_RESERVED = {"s", "t", "first", "to", "inputs", "outputs", "kernels", "matrices", "memcpy"}


class TileWriter(c._Writer):
    """Writes the function `int_lm_tile`.

    Args:
      arguments: of the traced function.
      states: places of the arguments that are the state before a token.
      results: what is kept of a token.
      outputs: of the traced function: the state after the token, and the results.
      tile: members of a tile.

    Attributes:
      bytes: of the arrays that are declared.
      matrices: see `tiles.Source`.
    """

    def __init__(
        self,
        arguments: Sequence[Argument],
        states: Sequence[int],
        results: Sequence[Result],
        outputs: Sequence[Node],
        tile: int,
    ) -> None:
        self.arguments, self.tile = arguments, tile
        self.bytes = 0
        self.matrices: list[tuple[int, int, int]] = []
        self.results = {f"result_{k}": result for k, result in enumerate(results)}
        self.first_result = len(states)
        sizes = [math.prod(argument.of_tile(tile)) for argument in arguments]
        names = {str(k): f"argument_{k}" for k in range(len(arguments))}
        nexts = [f"next_{place}" for place in states]
        scalars = {key: f"{name}[0]" for key, name in names.items() if sizes[int(key)] == 1}
        super().__init__(names | scalars, {*names.values(), *nexts, *self.results, *_RESERVED})
        for place, after in zip(states, nexts, strict=True):
            self.array(layout.TYPES[arguments[place].dtype], after, sizes[place])
        self.begin(states)
        self.depth = 2
        kept = outputs[len(states) :]
        # seen through another node, so that what is kept is copied where it belongs, row by row
        seen = [Node("reshape", (x,), x.shape, x.dtype, x.low, x.high) for x in kept]
        afters = [
            after if sizes[place] > 1 else f"{after}[0]"
            for place, after in zip(states, nexts, strict=True)
        ]
        wanted = [*zip(outputs, afters, strict=False), *zip(seen, self.results, strict=True)]
        self.block(program.reached([node for node, _ in wanted]), wanted)
        for place, after in zip(states, nexts, strict=True):
            self.say(f"memcpy(argument_{place}, {after}, sizeof {after});")
        self.depth = 1
        self.say("}")
        for k, place in enumerate(states):
            self.moved(place, f"s->outputs[{k}]", False)

    def text(self) -> str:
        """The whole C code."""
        tables = []
        for name, array in self.tables.items():
            dtype = str(array.dtype)
            entries = ", ".join(expressions.literal(int(x), dtype) for x in array.reshape(-1))
            kind = f"static const {layout.TYPES[dtype]} {name}[{array.size}] ALIGNED"
            tables.append(f"{kind} = {{{entries}}};")
        head = "void int_lm_tile(const struct segment *s, int64_t first) {"
        return "\n".join([PRELUDE.read_text("utf-8"), *tables, "", head, *self.lines, "}", ""])

    # -- Arguments and results ---------------------------------------------------------------------

    def array(self, kind: str, name: str, size: int) -> None:
        """Declare an array."""
        self.bytes += size * np.dtype(kind.removesuffix("_t")).itemsize
        self.say(f"{kind} {name}[{size}] ALIGNED;")

    def begin(self, states: Sequence[int]) -> None:
        """Declare arguments; copy a tile's part of those whose members are not the first axis."""
        *others, _, _ = range(len(self.arguments))
        for place in others:
            argument, name = self.arguments[place], f"argument_{place}"
            kind = layout.TYPES[argument.dtype]
            if argument.each:
                continue
            if place in states or argument.members:
                self.array(kind, name, math.prod(argument.of_tile(self.tile)))
                self.moved(place, f"s->inputs[{place}]", True)
                continue
            start = ""
            if argument.members == 0:
                start = f" + first / {argument.group} * {math.prod(argument.shape[1:])}"
            self.say(
                f"UNUSED const {kind} *const {name} = (const {kind} *)s->inputs[{place}]{start};"
            )
        self.say("for (int64_t t = 0; t < s->length; t++) {")
        self.depth = 2
        for place in others:
            if not (argument := self.arguments[place]).each:
                continue
            kind, name = layout.TYPES[argument.dtype], f"argument_{place}"
            row = f"t * (s->members / {argument.group}) + first / {argument.group}"
            self.say(
                f"UNUSED const {kind} *const {name} = (const {kind} *)s->inputs[{place}] + "
                f"({row}) * {math.prod(argument.shape[1:])};"
            )
        for place in (len(others), len(others) + 1):
            name, high = f"argument_{place}", self.arguments[place].high
            self.array("int32_t", name, self.tile)
            self.say(f"for (int i = 0; i < {self.tile}; i++) {{")
            self.say(
                f"    const int32_t id = ((const int32_t *)s->inputs[{place}])"
                "[t * s->members + first + i];"
            )
            self.say(f"    {name}[i] = clip(id, 0, {high});")
            self.say("}")
        self.depth = 1

    def moved(self, place: int, pointer: str, loads: bool) -> None:
        """Copy a tile's part of an argument from memory, or back."""
        argument, name = self.arguments[place], f"argument_{place}"
        axis = argument.members
        assert axis is not None
        outer, inner = math.prod(argument.shape[:axis]), math.prod(argument.shape[axis + 1 :])
        rows = self.tile // argument.group
        kind, size = layout.TYPES[argument.dtype], np.dtype(argument.dtype).itemsize
        self.say(f"for (int64_t i = 0; i < {outer}; i++) {{")
        there = (
            f"({kind} *){pointer} + (i * (s->members / {argument.group}) + "
            f"first / {argument.group}) * {inner}"
        )
        here = f"{name} + i * {rows * inner}"
        to, source = (here, there) if loads else (there, here)
        self.say(f"    memcpy({to}, {source}, {rows * inner * size});")
        self.say("}")

    def copy(self, node: Node, place: str) -> None:
        if place not in self.results:
            return super().copy(node, place)
        result = self.results[place]
        number = self.first_result + int(place.removeprefix("result_"))
        axis, kind = result.members, layout.TYPES[result.dtype]
        shape = resized(result.shape, axis, self.tile // result.group)
        counters = self.counters(shape)
        inner = math.prod(shape[axis + 1 :])
        before = layout.flat(shape[:axis], counters[:axis])
        members = f"(s->members / {result.group})"
        for counter, size in zip(counters[: axis + 1], shape[: axis + 1], strict=True):
            self.enter(counter, size)
        row = (
            f"(({before}) * s->length + t) * {members} + first / {result.group} + {counters[axis]}"
        )
        self.say(f"{kind} *to = ({kind} *)s->outputs[{number}] + ({row}) * {inner};")
        index = tuple(n for n, size in zip(counters, shape, strict=True) if size != 1)
        index = index if node.shape else ()
        target = f"to[{layout.flat(shape[axis + 1 :], counters[axis + 1 :])}]"
        line = f"{target} = ({kind}){layout.bracketed(self.at(node, index))};"
        self.nest(shape[axis + 1 :], counters[axis + 1 :], [line])
        for _ in counters[: axis + 1]:
            self.leave()

    # -- Nodes -------------------------------------------------------------------------------------

    def declare(self, node: Node, name: str) -> None:
        exact = node.operation == "call"
        kind = layout.TYPES[node.dtype] if exact else layout.storage(node)
        self.array(kind, name, math.prod(node.shape))

    def reserve(self, node: Node, name: str) -> None:
        if not node.shape:
            return super().reserve(node, name)
        self.array(layout.TYPES[node.dtype], name, math.prod(node.shape))

    def at(self, node: Node, index: tuple[str, ...]) -> str:
        if node.operation == "reshape" and node not in self.stored and node not in self.local:
            x = node.operands[0]
            if x.shape == node.shape:
                return self.at(x, index)
            if x.operation == "convert" and x not in self.stored and stages.is_virtual(x):
                inner = x.operands[0]  # the other way round, so that entries are found in an array
                same = Node("reshape", (inner,), node.shape, inner.dtype, inner.low, inner.high)
                return expressions.pointwise(x, [self.at(same, index)])
            array = self.stored.get(x) or (self.inputs[x.value] if x.operation == "input" else "")
            if array:  # its entries are in the same order
                return layout.entry(array, node.shape, index)
        return super().at(node, index)

    def barrier(self, node: Node, places: Sequence[str]) -> None:
        if node.operation != "call":
            return super().barrier(node, places)
        name, shapes, attributes = node.value
        out = places[0] if places and node.shape else self.fresh(name)
        if not (places and node.shape):
            self.array(layout.TYPES[node.dtype], out, math.prod(node.shape))
        if name not in _WRITERS:
            raise UnsupportedError(f"a call of {name}")
        _WRITERS[name](self, name, node.operands, shapes, attributes, out)
        self.stored[node] = out if node.shape else f"{out}[0]"

    def operand(self, node: Node, shape: Shape) -> str:
        """The C array of a node's entries, in its own dtype, at this shape."""
        kind = layout.TYPES[node.dtype]
        if node.operation == "constant" and not node.shape:  # the same everywhere
            value = np.full(shape, node.value, node.dtype)
            node = Node("constant", (), nodes.kept(shape) or (1,), node.dtype, 0, 0, value)
        node = nodes.full(node, shape)
        if node.operation == "input" and node.shape:
            return self.inputs[node.value]
        if node.operation == "constant" and node.shape:
            return self.table(node)
        exact = node.operation == "call" or layout.storage(node) == kind
        if node in self.stored and node.shape and exact:
            return self.stored[node]
        array = self.fresh("x")
        self.array(kind, array, math.prod(node.shape))
        self.copy(node, array if node.shape else f"{array}[0]")
        return array


def _places(operands: Sequence[Node]) -> tuple[int, ...]:
    """The places of inputs among the arguments; -1 for an operand without entries."""
    found = []
    for node in operands:
        if node.operation != "input":
            raise UnsupportedError("a matrix that is computed")
        found.append(int(node.value))
    return tuple(found)


def _linear(writer, name, operands, shapes, attributes, out) -> None:
    x, layer = operands[0], operands[4]
    matrix = _places(operands[1:4])
    if matrix not in writer.matrices:
        writer.matrices.append(matrix)
    number = writer.matrices.index(matrix)
    layer, shifts = writer.at(layer, ()), f"{attributes['low']}, {attributes['high']}"
    writer.say(
        f"s->kernels->{name}(s->matrices[{number}], {expressions.bare(layer)}, first, "
        f"{writer.operand(x, shapes[0])}, {shapes[0][0]}, {shifts}, {out});"
    )


def _rows(writer, name, operands, shapes, attributes, out) -> None:
    """A kernel of rows, whose first operand has the shape of rows and columns."""
    arrays = ", ".join(map(writer.operand, operands, shapes))
    rows, columns = shapes[0]
    writer.say(f"s->kernels->{name}({arrays}, {rows}, {columns}, {out});")


def _direct_added(writer, name, operands, shapes, attributes, out) -> None:
    count = len(operands) // 2
    logits, *others = map(writer.operand, operands, shapes)
    tables, picked, size = "0", "0", 0
    if count:
        tables, picked, size = writer.fresh("tables"), writer.fresh("picked"), shapes[1][0]
        writer.say(f"const int8_t *const {tables}[{count}] = {{{', '.join(others[:count])}}};")
        writer.say(f"const int32_t *const {picked}[{count}] = {{{', '.join(others[count:])}}};")
    writer.say(
        f"s->kernels->{name}({logits}, {count}, {tables}, {picked}, {size}, "
        f"{shapes[0][0]}, {shapes[0][1]}, {out});"
    )


def _cache_added(writer, name, operands, shapes, attributes, out) -> None:
    logits, table, weights, tokens = map(writer.operand, operands, shapes)
    sizes = math.prod(shapes[1]), *shapes[2], *shapes[0]
    writer.say(
        f"s->kernels->{name}({logits}, {table}, {weights}, {tokens}, "
        f"{', '.join(map(str, sizes))}, {out});"
    )


_WRITERS: Mapping[str, Callable[..., None]] = {
    **{"linear8": _linear, "linear16": _linear},
    **{"likelihood8": _rows, "likelihood16": _rows},
    **{"direct_added8": _direct_added, "direct_added16": _direct_added},
    "cache_added": _cache_added,
}
