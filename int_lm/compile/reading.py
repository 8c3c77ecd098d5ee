"""The state of a writer of C: where values are stored, and how others are computed from them."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from int_lm.compile import expressions, layout, program, stages
from int_lm.compile.program import Node, Shape, UnsupportedError

RESERVED = {
    *("auto", "break", "case", "char", "const", "continue", "default", "do", "else", "enum"),
    *("extern", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return"),
    *("short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned"),
    *("void", "volatile", "while", "main", "linear", "clip", "minimum", "maximum", "token"),
    *("logits", "before", "after", "abs", "div", "exp", "log", "floor", "index", "signal"),
    *("rand", "random", "remove", "rename", "select", "system"),
}
COUNTERS = "ijkmn"  # of nested loops
RESERVED |= set(COUNTERS)
WIDTH = 100  # characters of a line, at most
ROWS = 16  # `linear` writes whole blocks of so many rows


class Reader:
    """The lines of C so far, and the names of the values that they have computed.

    Attributes:
      inputs: by the name of an input, its C array, or the C expression of a scalar.
      taken: names that are used.
      lines: the lines so far.
      tables: constant tables by name.
      depth: of the indentation.
      stored: by node, its C array, or the C variable of a scalar.
      local: by node that the current loop has computed in this turn, the counters of the loop and
        the C variable.
      inline: nodes whose expressions are repeated where they are read.
      dots: inputs that `linear` reads as its weights.
      read: inputs that are read by something other than `linear`.
      said: statements of Python that have been written as comments.
      final: the last node of each statement, which gets the name of the statement's result.
      turns_of: by loop and place, the node of this result.
      places: by node of a loop's result, the C array in which it is wanted.
    """

    def __init__(self, inputs: Mapping[str, str], reserved: set[str]) -> None:
        self.inputs, self.taken = inputs, set(reserved) | RESERVED
        self.lines: list[str] = []
        self.tables: dict[str, np.ndarray] = {}
        self.depth = 1
        self.stored: dict[Node, str] = {}
        self.local: dict[Node, tuple[tuple[str, ...], str]] = {}
        self.inline: set[Node] = set()
        self.dots: set[str] = set()
        self.read: set[str] = set()
        self.said: set[str] = set()
        self.final: set[Node] = set()
        self.turns_of: dict[tuple[Node, int], Node] = {}
        self.places: dict[Node, str] = {}

    def say(self, text: str) -> None:
        """Write a line."""
        self.lines.append("    " * self.depth + text)

    def enter(self, counter: str, size: int) -> None:
        """Begin a `for` loop."""
        self.say(f"for (int32_t {counter} = 0; {counter} < {size}; {counter}++) {{")
        self.depth += 1

    def leave(self) -> None:
        """End a loop."""
        self.depth -= 1
        self.say("}")

    def nest(self, shape: Shape, counters: Sequence[str], lines: Sequence[str]) -> None:
        """Write loops over a shape around statements."""
        for counter, size in zip(counters, shape, strict=True):
            self.enter(counter, size)
        for line in lines:
            self.say(line)
        for _ in shape:
            self.leave()

    def counters(self, shape: Shape) -> tuple[str, ...]:
        """Names of the counters of loops over a shape."""
        if len(shape) > len(COUNTERS):
            raise UnsupportedError(f"an array of {len(shape)} axes longer than 1")
        return tuple(COUNTERS[: len(shape)])

    def declare(self, node: Node, name: str) -> None:
        """Declare the array that holds a node."""
        size, kind = math.prod(node.shape), layout.storage(node)
        if node.operation == "linear":
            size, kind = -(-size // ROWS) * ROWS, layout.TYPES[node.dtype]
        self.say(f"{kind} {name}[{size}];")

    def copy(self, node: Node, place: str) -> None:
        """Write the statements that copy a node to an array, or a scalar to a variable."""
        if not node.shape:
            self.say(f"{place} = {expressions.bare(self.at(node, ()))};")
            return
        counters = self.counters(node.shape)
        target = layout.entry(place, node.shape, counters)
        line = layout.assignment(node, target, self.at(node, counters))
        self.nest(node.shape, counters, [line])

    def remark(self, nodes: Sequence[Node]) -> None:
        """Write the statements of Python that nodes come from as comments, each only once."""
        for node in nodes:
            statement = node.note.statement.replace("*/", "* /").replace("\n", " ")
            if statement and statement not in self.said and not expressions.is_loose(statement):
                self.said.add(statement)
                room = WIDTH - 6 - 4 * self.depth
                if len(statement) > room:
                    statement = f"{statement[: room - 4]} ..."
                self.say(f"/* {statement} */")

    def name(self, node: Node) -> str:
        """A new name for a node."""
        stem = node.note.name if node in self.final else ""
        stem = stem if re.fullmatch(r"[A-Za-z]\w*", stem) and not stem.startswith("_") else ""
        return self.fresh(stem.lower() or {"linear": "dot"}.get(node.operation, "t"))

    def fresh(self, stem: str) -> str:
        """A new name that begins with `stem`."""
        if stem not in self.taken and stem != "t":
            self.taken.add(stem)
            return stem
        found = next(
            n for k in itertools.count(2 - (stem == "t")) if (n := f"{stem}{k}") not in self.taken
        )
        self.taken.add(found)
        return found

    def at(self, node: Node, index: tuple[str, ...]) -> str:
        """An expression for one entry of a node."""
        if node in self.local and (not node.shape or self.local[node][0] == index):
            return self.local[node][1]
        if node in self.stored:
            name = self.stored[node]
            return layout.entry(name, node.shape, index) if node.shape else name
        operation = node.operation
        if operation == "constant":
            if node.is_constant:
                return expressions.literal(node.value, node.dtype)
            return layout.entry(self.table(node), node.shape, index)
        if operation == "input":
            name = self.inputs[node.value]
            self.read.add(node.value)
            return layout.entry(name, node.shape, index) if node.shape else name
        if operation == "iota":
            return expressions.cast(index[node.value], "int32", node.dtype)
        x = node.operands[0] if node.operands else node
        if operation == "broadcast":
            return self.at(x, tuple(index[place] for place in node.value))
        if operation == "slice":
            shifted = [layout.plus(i, start) for i, start in zip(index, node.value, strict=True)]
            return self.at(x, tuple(shifted))
        if operation == "transpose":
            places = [index[node.value.index(axis)] for axis in range(len(index))]
            return self.at(x, tuple(places))
        if operation == "take":
            count = len(node.operands[1].shape)
            picked = self.at(node.operands[1], index[:count])
            return self.at(x, (picked, *index[count:]))
        if operation == "reshape":
            return self.at(x, layout.unflat(x.shape, layout.flat(node.shape, index)))
        if operation in program.POINTWISE and (node in self.inline or stages.is_virtual(node)):
            return expressions.pointwise(
                node, [self.at(o, index if o.shape else ()) for o in node.operands]
            )
        raise AssertionError(f"{operation} is read before it is computed")

    def expression(self, node: Node, index: tuple[str, ...]) -> str:
        """The C expression that computes one entry of a node from stored values."""
        return expressions.pointwise(
            node, [self.at(o, index if o.shape else ()) for o in node.operands]
        )

    def table(self, node: Node) -> str:
        """The name of a constant array."""
        for name, known in self.tables.items():
            if known.dtype == node.value.dtype and np.array_equal(known, node.value):
                return name
        name = self.fresh("table")
        self.tables[name] = node.value
        return name
