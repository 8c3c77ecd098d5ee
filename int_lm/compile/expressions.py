"""C expressions of pointwise operations on int32_t, uint32_t, int64_t and uint64_t.

int8, int16, uint8, uint16 and bool values are computed as int32_t. If the ranges of a program prove
that a result does not leave its dtype, the plain operator is used. Otherwise the result is computed
unsigned, and `wrap8`, `wrap16`, `wrap32` or `wrap64` converts it back.
"""

import re
from collections.abc import Sequence

from int_lm.compile import ranges
from int_lm.compile.program import Node, UnsupportedError

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOOSE = re.compile(r"\b(float\w*|double|half)\b", re.IGNORECASE)


def is_loose(text: str) -> bool:
    """Whether a text names a type that is not an integer; such a comment is left out."""
    return _LOOSE.search(text) is not None


def register(dtype: str) -> str:
    """The C type in which values of a dtype are computed."""
    return f"{dtype}_t" if dtype in ("uint32", "int64", "uint64") else "int32_t"


def unsigned(kind: str) -> str:
    """The unsigned C type as wide as `kind`."""
    return kind if kind.startswith("u") else f"u{kind}"


def literal(value: int, dtype: str) -> str:
    """A C constant of the type of `register(dtype)`."""
    if dtype in ("int64", "uint64"):
        if value == -(2**63):
            return "(-INT64_C(9223372036854775807) - 1)"
        return f"INT64_C({value})" if dtype == "int64" else f"UINT64_C({value})"
    if dtype == "uint32":
        return f"UINT32_C({value})"
    return str(value) if value > -(2**31) else "(-2147483647 - 1)"


def cast(text: str, source: str, dtype: str) -> str:
    """`text` of one dtype as the C type of another that can hold it."""
    if register(source) == register(dtype):
        return text
    text = text if re.fullmatch(r"\w+|\(.*\)|\w+\S*\[[^\[\]]*\]", text) else f"({text})"
    return f"({register(dtype)}){text}"


def wrapped(text: str, dtype: str) -> str:
    """An unsigned expression as a value of the dtype, modulo 2^bits."""
    if dtype in ("uint32", "uint64"):
        return f"({dtype}_t)({text})"
    if dtype.startswith("u"):
        return f"(int32_t)({dtype}_t)({text})"
    return f"wrap{ranges.BITS[dtype]}({text})"


def pointwise(node: Node, texts: Sequence[str]) -> str:
    """The expression of a node from those of its operands, in brackets if they are needed."""
    operation, dtype = node.operation, node.dtype
    x, y = node.operands[0], node.operands[-1]
    a, b = texts[0], texts[-1]
    if operation in _COMPARED:
        return f"({a} {_COMPARED[operation]} {b})"
    if operation == "select":
        return f"({a} ? {texts[2]} : {texts[1]})"
    if operation in _OPERATORS:
        if node.wraps:
            kind = unsigned(register(dtype))
            of = "" if kind == register(dtype) else f"({kind})"
            return wrapped(f"{of}{a} {_OPERATORS[operation]} {of}{b}", dtype)
        return f"({a} {_OPERATORS[operation]} {b})"
    if operation == "convert":
        return _converted(node, x, a)
    if operation == "not":
        return (
            f"(!{a})" if dtype == "bool" else wrapped(f"~{a}", dtype) if "u" in dtype else f"(~{a})"
        )
    if operation in ("max", "min"):
        return _bounded(node, texts)
    if operation in ("abs", "neg"):
        if node.wraps:
            kind = unsigned(register(dtype))
            negative = wrapped(f"({kind})0 - ({kind}){a}", dtype)
        else:
            negative = f"-{a}"
        return f"({negative})" if operation == "neg" else f"({a} < 0 ? {negative} : {a})"
    if operation == "sign":
        return f"(({a} > 0) - ({a} < 0))"
    if operation == "clz" and dtype in ("int32", "uint32"):
        return f"leading_zeros((uint32_t){a})"
    if operation in ("div", "rem", "floor_divide") and y.low > 0:
        if operation == "floor_divide" and x.low < 0:
            return f"floor_divide{_wide(dtype)}({a}, {b})"
        return f"({a} {'%' if operation == 'rem' else '/'} {b})"
    if operation.startswith("shift_") and y.low >= 0:
        return _shifted(node, x, y, a, b)
    raise UnsupportedError(f"{operation} of {dtype} with a second operand in {y.low}..{y.high}")


def _wide(dtype: str) -> str:
    return "64" if ranges.BITS[dtype] == 64 else "32"


def bare(text: str) -> str:
    """`text` without brackets around all of it, for an argument of a function."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and (place < len(text) - 1 or character != ")"):
            return text
    return bare(text[1:-1])


def _bounded(node: Node, texts: Sequence[str]) -> str:
    """The expression of a maximum or minimum; the minimum of a maximum by constants is a clip."""
    name = {"max": "maximum", "min": "minimum"}[node.operation]
    kind = register(node.dtype)
    first, second = texts
    if node.operands[0].is_constant:
        first, second = second, first
    inner = re.fullmatch(r"maximum\((.*), (-?\d+)\)", first)
    if node.operation == "min" and kind == "int32_t" and inner and re.fullmatch(r"-?\d+", second):
        return f"clip({inner[1]}, {inner[2]}, {second})"
    suffix = {"int32_t": "", "uint32_t": "_u32", "int64_t": "_64", "uint64_t": "_u64"}[kind]
    return f"{name}{suffix}({bare(first)}, {bare(second)})"


def _converted(node: Node, x: Node, a: str) -> str:
    if node.dtype == "bool":
        return f"({a} != 0)"
    if not node.wraps:
        return cast(a, x.dtype, node.dtype)
    kind = "uint64_t" if ranges.BITS[node.dtype] == 64 else "uint32_t"
    return wrapped(f"({kind}){a}", node.dtype)


def _shifted(node: Node, x: Node, y: Node, a: str, b: str) -> str:
    dtype, bits = node.dtype, ranges.BITS[node.dtype]
    kind = register(dtype)
    inside = y.high < bits
    if node.operation == "shift_floor" and x.low < 0:
        count = b if inside else f"({b} < {bits} ? {b} : {bits - 1})"
        return f"shift_floor{'_64' if bits == 64 else ''}({bare(a)}, {bare(count)})"
    if node.operation == "shift_left":
        text = f"({unsigned(kind)}){a} << {b}"
        text = wrapped(text, dtype) if node.wraps or x.low < 0 else f"({a} << {b})"
    elif x.low >= 0 or node.operation == "shift_floor":
        text = f"({a} >> {b})"
    elif dtype == "int32":
        text = f"wrap32((uint32_t){a} >> {b})"
    else:
        raise UnsupportedError(f"a logical shift of negative {dtype}")
    return text if inside else f"({b} < {bits} ? {text} : 0)"
