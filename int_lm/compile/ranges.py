"""Ranges of integer operations: computes the range of a result from the ranges of its operands."""

from collections.abc import Callable, Sequence
from typing import Protocol

BITS = {"bool": 1, "int8": 8, "int16": 16, "int32": 32, "int64": 64}
BITS |= {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}


class Ranged(Protocol):
    """Anything with a least and a greatest value."""

    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...


def limits(dtype: str) -> tuple[int, int]:
    """The least and the greatest value of a dtype."""
    bits = BITS[dtype]
    if dtype == "bool" or dtype.startswith("u"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def wrapped(value: int, dtype: str) -> int:
    """`value` modulo 2^bits, in the range of the dtype."""
    low, high = limits(dtype)
    return (value - low) % (high - low + 1) + low


def _corners(operation: Callable[[int, int], int], x: Ranged, y: Ranged) -> tuple[int, int]:
    values = [operation(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return min(values), max(values)


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _mask_range(x: Ranged, y: Ranged, operation: str) -> tuple[int, int]:
    """The range of and, or, xor: results of operands of k bits have k bits."""
    bits = max(max(n.high, ~n.low if n.low < 0 else 0).bit_length() for n in (x, y))
    if x.low >= 0 and y.low >= 0:
        return 0, min(x.high, y.high) if operation == "and" else 2**bits - 1
    if operation == "and" and (x.low >= 0 or y.low >= 0):
        return 0, x.high if x.low >= 0 else y.high
    return -(2**bits), 2**bits - 1


def _compared(operation: str, x: Ranged, y: Ranged) -> tuple[int, int]:
    if operation in ("gt", "ge"):
        return _compared({"gt": "lt", "ge": "le"}[operation], y, x)
    if operation in ("eq", "ne"):
        apart = x.high < y.low or y.high < x.low
        same = x.low == x.high == y.low == y.high
        low, high = int(same), int(not apart)
        return (low, high) if operation == "eq" else (1 - high, 1 - low)
    if operation == "lt":
        return int(x.high < y.low), int(x.low < y.high)
    return int(x.high <= y.low), int(x.low <= y.high)


def result(operation: str, operands: Sequence[Ranged], dtype: str) -> tuple[int, int]:
    """The exact range of a pointwise result, which may leave the dtype."""
    x = operands[0]
    y = operands[-1]
    bits = BITS[dtype]
    if operation in COMPARISONS:
        return _compared(operation, x, y)
    if operation == "select":
        _, no, yes = operands
        return min(no.low, yes.low), max(no.high, yes.high)
    if operation == "add":
        return x.low + y.low, x.high + y.high
    if operation == "sub":
        return x.low - y.high, x.high - y.low
    if operation == "mul":
        return _corners(lambda a, b: a * b, x, y)
    if operation in ("max", "min"):
        choose = max if operation == "max" else min
        return choose(x.low, y.low), choose(x.high, y.high)
    if operation in ("and", "or", "xor"):
        return _mask_range(x, y, operation)
    if operation == "not":
        return (1 - x.high, 1 - x.low) if dtype == "bool" else _inverted(x, dtype)
    if operation == "abs":
        least = 0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
        return least, max(abs(x.low), abs(x.high))
    if operation == "neg":
        return -x.high, -x.low
    if operation == "sign":
        return (x.low > 0) - (x.low < 0), (x.high > 0) - (x.high < 0)
    if operation == "convert":
        return (x.low, x.high) if dtype != "bool" else (int(x.low > 0), int(x.high != 0))
    if operation == "clz":
        low = 0 if x.low < 0 else bits - x.high.bit_length()
        if x.low > 0:
            return low, bits - x.low.bit_length()
        return low, bits if x.high >= 0 else 0
    if operation in ("div", "floor_divide") and y.low > 0:
        divide = _truncated if operation == "div" else lambda a, b: a // b
        return _corners(divide, x, y)
    if operation == "rem" and y.low > 0:
        most = y.high - 1
        return -min(most, max(-x.low, 0)), min(most, max(x.high, 0))
    if operation.startswith("shift_") and 0 <= y.low <= y.high < bits:
        if operation == "shift_left":
            return _corners(lambda a, b: a << b, x, y)
        if operation == "shift_floor" or x.low >= 0:
            return _corners(lambda a, b: a >> b, x, y)
    return limits(dtype)


def _inverted(x: Ranged, dtype: str) -> tuple[int, int]:
    most = limits(dtype)[1] if dtype.startswith("u") else -1
    return most - x.high, most - x.low
