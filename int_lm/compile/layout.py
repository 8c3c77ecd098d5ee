"""The layout of arrays in C: row-major, in the narrowest type that holds all entries."""

import math
import re
from collections.abc import Sequence

from int_lm.compile import expressions, ranges
from int_lm.compile.program import Node, Shape

TYPES = {name: f"{name}_t" for name in ranges.BITS if name != "bool"} | {"bool": "uint8_t"}


def storage(node: Node) -> str:
    """The narrowest C type that holds every entry of a node."""
    if expressions.register(node.dtype) != "int32_t":
        return TYPES[node.dtype]
    for dtype in ("int8", "int16", "int32"):
        least, most = ranges.limits(dtype)
        if least <= node.low and node.high <= most:
            break
    return TYPES[dtype]


def entry(array: str, shape: Shape, index: tuple[str, ...]) -> str:
    """One entry of an array, or of a part of one: `array` may be "name + start"."""
    name, _, start = array.partition(" + ")
    place = flat(shape, index)
    return f"{name}[{start} + {place}]" if start else f"{name}[{place}]"


def flat(shape: Shape, index: Sequence[str]) -> str:
    """The C expression of the offset of an entry in a row-major array."""
    wide = "(size_t)" if math.prod(shape) > 2**31 - 1 else ""
    terms = []
    for axis, place in enumerate(index):
        stride = math.prod(shape[axis + 1 :])
        if place != "0":
            terms.append(wide + (f"{bracketed(place)} * {stride}" if stride != 1 else place))
    return " + ".join(terms) or "0"


def unflat(shape: Shape, place: str) -> tuple[str, ...]:
    """The C expressions of the index of an entry, from its offset in a row-major array."""
    index = []
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        part = f"({place}) / {stride}" if stride != 1 else f"({place})"
        index.append(f"({part}) % {shape[axis]}" if axis else f"({part})")
    return tuple(index)


def plus(counter: str, start: int) -> str:
    """A counter that begins at `start`."""
    return f"{counter} + {start}" if start else counter


def assignment(node: Node, target: str, text: str) -> str:
    """The statement target = text; with a cast if the node is stored in a narrower type."""
    narrow = storage(node) if node.operation != "linear" else ""
    if narrow in ("int8_t", "int16_t"):
        return f"{target} = ({narrow}){bracketed(text)};"
    return f"{target} = {expressions.bare(text)};"


def bracketed(text: str) -> str:
    """`text` as an operand, in brackets if they are needed."""
    return (
        text
        if re.fullmatch(r"\w+|\([^()]*\)|\w+(\[[^\[\]]*\])?|\w+\([^()]*\)", text)
        else f"({text})"
    )
