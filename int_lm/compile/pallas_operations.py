"""Pointwise operations on blocks: arrays [rows, columns], where either may be 1, and scalars.

Only operations that Pallas's lowering to Triton has, too, are used; no operation depends on what
that lowering leaves open, such as shifts by more bits than a number has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from int_lm.compile import ranges
from int_lm.compile.places import Columns, Place
from int_lm.compile.program import Node, UnsupportedError

_BINARY: dict[str, Callable[..., Any]] = {
    **{"add": lax.add, "sub": lax.sub, "mul": lax.mul, "max": lax.max, "min": lax.min},
    **{"and": lax.bitwise_and, "or": lax.bitwise_or, "xor": lax.bitwise_xor},
    **{"eq": lax.eq, "ne": lax.ne, "lt": lax.lt, "le": lax.le, "gt": lax.gt, "ge": lax.ge},
}
_UNARY: dict[str, Callable[..., Any]] = {"neg": lax.neg, "not": lax.bitwise_not, "clz": lax.clz}
_DIVISIONS = {"div": lax.div, "rem": lax.rem}
_SHIFTS = {
    "shift_left": lax.shift_left,
    "shift_floor": lax.shift_right_arithmetic,
    "shift_logical": lax.shift_right_logical,
}


def shape_of(*values: Any) -> tuple[int, int]:
    """The shape of a result of these values."""
    shapes = [np.shape(value) for value in values]
    return jnp.broadcast_shapes((1, 1), *shapes)  # type: ignore[return-value]


def broadcast(value: Any, shape: tuple[int, ...]) -> jax.Array:
    """`value` in this shape."""
    if np.shape(value) == shape:
        return value
    if np.shape(value) == ():
        return lax.broadcast(value, shape)
    return lax.broadcast_in_dim(value, shape, range(len(shape)))


def together(values: Sequence[Any]) -> list[Any]:
    """The values in the shape of a result of them; scalars stay scalars among themselves."""
    shapes = [np.shape(value) for value in values]
    shape = jnp.broadcast_shapes(*shapes)
    return [broadcast(value, shape) for value in values]


def pointwise(node: Node, values: Sequence[Any]) -> Any:
    """The result of a pointwise operation.

    Raises:
      UnsupportedError: its second operand may be out of the range that is supported.
    """
    operation, dtype = node.operation, np.dtype(node.dtype)
    if operation == "convert":
        return lax.convert_element_type(values[0], dtype)
    values = together(values)
    first, last = values[0], values[-1]
    if operation == "select":
        return lax.select(*_chosen(values))
    if operation in _BINARY:
        return _BINARY[operation](first, last)
    if operation in _UNARY:
        return _UNARY[operation](first)
    if operation == "abs":
        return lax.max(first, lax.neg(first))
    if operation == "sign":
        positive, negative = (f(first, lax.full_like(first, 0)) for f in (lax.gt, lax.lt))
        return lax.sub(positive.astype(dtype), negative.astype(dtype))
    y = node.operands[-1]
    if operation in ("div", "rem", "floor_divide") and y.low > 0:
        return _divided(node, first, last)
    if operation in _SHIFTS and y.low >= 0:
        return _shifted(node, first, last)
    raise UnsupportedError(f"{operation} with a second operand in {y.low}..{y.high}")


def _chosen(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    condition, no, yes = values
    return condition, yes, no


def _divided(node: Node, x: Any, y: Any) -> Any:
    """A division by a positive number."""
    if node.operation in _DIVISIONS:
        return _DIVISIONS[node.operation](x, y)
    quotient = lax.div(x, y)
    if node.operands[0].low >= 0:
        return quotient
    below = lax.lt(lax.rem(x, y), lax.full_like(x, 0))
    return lax.sub(quotient, below.astype(node.dtype))


def _shifted(node: Node, x: Any, count: Any) -> Any:
    """A shift, also by as many bits as the number has, or more."""
    bits, y, shift = ranges.BITS[node.dtype], node.operands[-1], _SHIFTS[node.operation]
    if y.high < bits:
        return shift(x, count)
    most = lax.full_like(count, bits - 1)
    found = shift(x, lax.min(count, most))
    if node.operation == "shift_floor":
        return found
    return lax.select(lax.le(count, most), found, lax.full_like(found, 0))


def indices(columns: Place) -> Array:
    """The entries that a block of columns holds: int32 [1, B]."""
    if not isinstance(columns, Columns):
        raise UnsupportedError("numbers of members")
    lane = lax.broadcasted_iota(jnp.int32, (1, columns.block), 1)
    if columns.size < columns.block:
        lane = jnp.minimum(lane, columns.size - 1)
    return lane + columns.start


def inside(columns: Columns) -> Array:
    """Which columns of a block are no repetitions: bool [1, B]."""
    return lax.broadcasted_iota(jnp.int32, (1, columns.block), 1) < columns.size
