"""Writes a program as statements of C99, with the statements of Python as comments.

Pointwise operations of one shape share a loop if possible. A value that only its own loop reads is
a local variable of the loop; any other value is an array on the stack. int8, int16 and bool are
computed in int32_t. The code has no undefined or implementation-defined behaviour: results that may
wrap around are computed unsigned, and right shifts of negative numbers use `shift_floor`. The
caller must define the functions that the statements call (`shift_floor`, `wrap32`, `clip`, `linear`
and others).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from int_lm.compile import expressions, layout, program
from int_lm.compile.blocks import BlockWriter
from int_lm.compile.program import Node, UnsupportedError

_OPEN = "\0"  # around the name of a matrix whose layout is not known yet


@dataclasses.dataclass
class Written:
    """C code.

    Attributes:
      lines: the statements of a function's body.
      tables: the constant tables that they read, by name, with those that existed before.
      dots: inputs that only `linear` reads, as its weights.
    """

    lines: list[str]
    tables: dict[str, np.ndarray]
    dots: set[str]


def write(
    outputs: Sequence[tuple[Node, str]],
    inputs: Mapping[str, str],
    reserved: set[str],
    tables: Mapping[str, np.ndarray] | None = None,
) -> Written:
    """The statements that compute `outputs`.

    Args:
      outputs: (node of `trace.trace`, C array in which it is stored; for a scalar, C variable).
      inputs: by the name of an input, its C array; for a scalar, its C expression.
      reserved: names that local variables must not have.
      tables: constant tables that exist already, because another function reads them.

    Raises:
      UnsupportedError: a value cannot be written in C.
    """
    writer = _Writer(inputs, reserved | set(tables or ()))
    writer.tables |= tables or {}
    writer.block(program.reached(node for node, _ in outputs), outputs)
    dots = writer.dots - writer.read

    def settled(line: str) -> str:
        """A line with the layouts of its matrices, which depend on who else reads them."""
        if not (found := re.search(f"{_OPEN}(.*?){_OPEN}", line)):
            return line
        line = line.replace(found[0], "linear" if found[1] in dots else "linear_rows")
        return (
            line
            if found[1] in dots
            else re.sub(r"MATRIX\((\d+), (\d+)\)", r"(uint64_t)\1 * \2", line)
        )

    return Written([settled(line) for line in writer.lines], writer.tables, dots)


class _Writer(BlockWriter):
    def barrier(self, node: Node, places: Sequence[str]) -> None:
        self.remark([node])
        if node.operation == "loop":
            return self.turns(node)
        direct = bool(places and node.shape) and node.operation != "linear"
        name = places[0] if direct else self.name(node)
        if node.shape and not direct:
            self.declare(node, name)
        if node.operation == "linear":
            self.linear(node, name)
        elif node.operation == "concatenate":
            self.concatenated(node, name)
        elif node.operation == "first_largest":
            self.position(node, name)
        else:
            self.reduction(node, name)
        self.stored[node] = name

    def concatenated(self, node: Node, name: str) -> None:
        """Write the parts of a concatenation one after another."""
        start = 0
        for part in node.operands:
            counters = self.counters(part.shape)
            shifted = list(counters)
            shifted[node.value] = layout.plus(counters[node.value], start)
            target = layout.entry(name, node.shape, tuple(shifted))
            line = layout.assignment(node, target, self.at(part, counters))
            self.nest(part.shape, counters, [line])
            start += part.shape[node.value]

    def position(self, node: Node, name: str) -> None:
        """Write the index of the first of the largest entries."""
        x = node.operands[0]
        if len(x.shape) != 1:
            raise UnsupportedError("an argmax along one of several axes")
        self.say(f"{expressions.register(node.dtype)} {name} = 0;")
        (counter,) = self.counters(x.shape)
        entry, best = self.at(x, (counter,)), self.at(x, (name,))
        self.nest(x.shape, (counter,), [f"{name} = {entry} > {best} ? {counter} : {name};"])

    def reduction(self, node: Node, name: str) -> None:
        """Write a reduction of some axes: one result for each index of the other axes."""
        x = node.operands[0]
        counters = self.counters(x.shape)
        free = [axis for axis in range(len(x.shape)) if axis not in node.value]
        total = self.fresh("total")
        for axis in free:
            self.enter(counters[axis], x.shape[axis])
        self.start(node, total)
        line = self.accumulated(node, total, self.at(x, counters))
        sizes = tuple(x.shape[axis] for axis in node.value)
        self.nest(sizes, [counters[axis] for axis in node.value], [line])
        result = expressions.wrapped(total, node.dtype) if node.wraps else total
        target = layout.entry(name, node.shape, tuple(counters[a] for a in free))
        self.say(layout.assignment(node, target, result))
        for _ in free:
            self.leave()

    def linear(self, node: Node, name: str) -> None:
        """Write x W^T as a call of the function `linear`, which the caller defines."""
        x, weights = node.operands
        count, inputs = weights.shape
        operand = self.contiguous(x)
        if operand is None:
            operand = self.fresh("x")
            self.say(f"int8_t {operand}[{-(-inputs // 4) * 4}] = {{0}};")
            self.copy(x, operand)
        matrix, place = weights, ""
        if weights.operation == "take" and not weights.operands[1].shape:
            matrix, place = weights.operands[0], self.at(weights.operands[1], ())
        if matrix.operation != "input" or len(matrix.shape) - bool(place) != 2:
            stored = self.stored.get(weights)
            if stored is None:
                stored = self.fresh("matrix")
                self.declare(weights, stored)
                self.copy(weights, stored)
            self.say(f"linear_rows({name}, {stored}, {operand}, {count}, {inputs});")
            return
        self.dots.add(matrix.value)
        start = self.inputs[matrix.value]
        start += f" + {place} * MATRIX({count}, {inputs})" if place else ""
        self.say(f"{_OPEN}{matrix.value}{_OPEN}({name}, {start}, {operand}, {count}, {inputs});")

    def contiguous(self, x: Node) -> str | None:
        """The C pointer to an int8 vector; None unless contiguous, of a length that 4 divides."""
        if x.shape[0] % 4:
            return None
        if x in self.stored:
            return self.stored[x]
        whole = x.operands[0] if x.operands else x
        if x.operation == "slice" and len(whole.shape) == 1 and whole in self.stored:
            return f"{self.stored[whole]} + {x.value[0]}"
        if x.operation == "take" and not x.operands[1].shape and whole in self.stored:
            return f"{self.stored[whole]} + {self.at(x.operands[1], ())} * {x.shape[0]}"
        return None

    def turns(self, node: Node) -> None:
        """Write a loop. Each carried value has an array of its own."""
        loop, counter = node.value, self.fresh("turn")
        body = program.within(loop)
        outputs: list[tuple[Node, str]] = []
        handed: list[tuple[Node, str, str]] = []
        for place in sorted(loop.live):
            result, turn = loop.results[place], self.turns_of.get((node, place))
            if place >= len(loop.starts) and turn is not None:
                kept = f"({loop.length - 1} - {counter})" if loop.reverse else counter
                outputs.append((result, self.collected(turn, result, kept)))
                continue
            array = self.fresh("carry")
            self.reserve(result, array)
            self.copy(loop.starts[place], array)
            handed.append((result, self.fresh(f"next_{array}"), array))
            for carried in body:
                if carried.operation == "carried" and carried.value == (loop, place):
                    self.stored[carried] = array
            if turn is not None:
                self.stored[turn] = array
        self.enter(counter, loop.length)
        for inner in body:
            if inner.operation == "index" and inner.value is loop:
                self.stored[inner] = counter
        around = self.final
        for result, new, _ in handed:
            self.reserve(result, new)
        self.block(body, [*outputs, *((result, new) for result, new, _ in handed)])
        for result, new, array in handed:
            counters = self.counters(result.shape)
            place = f"[{layout.flat(result.shape, counters)}]" if result.shape else ""
            self.nest(result.shape, counters, [f"{array}{place} = {new}{place};"])
        self.final = around
        self.leave()

    def reserve(self, node: Node, name: str) -> None:
        """Declare an array of a node's own dtype, or a variable."""
        kind = layout.TYPES[node.dtype] if node.shape else expressions.register(node.dtype)
        size = f"[{math.prod(node.shape)}]" if node.shape else ""
        self.say(f"{kind} {name}{size};")

    def collected(self, turn: Node, result: Node, kept: str) -> str:
        """The C place of one turn's result in the array of all turns: entry `kept` or a pointer."""
        array = self.places.get(turn)
        if array is None:
            array = self.fresh("all")
            self.reserve(turn, array)
        self.stored[turn] = array
        if not result.shape:
            return f"{array}[{expressions.bare(kept)}]"
        return f"{array} + {kept} * {math.prod(result.shape)}"
