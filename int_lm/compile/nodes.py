"""Nodes of the operations that move entries, reduce axes or multiply matrices.

`HANDLERS` has a function for each primitive of a jaxpr, by name: (parameters, operands, shapes of
the operands, shape of the result, its dtype, note) -> node. Shapes of JAX include axes of length 1,
shapes of nodes do not.
"""

from collections.abc import Callable, Sequence

import numpy as np

from int_lm.compile import ranges
from int_lm.compile.program import Node, Note, Shape, UnsupportedError, combine, constant


def kept(shape: Sequence[int]) -> Shape:
    """A shape without its axes of length 1."""
    return tuple(int(size) for size in shape if size != 1)


def kept_axes(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The positions of `axes` among the axes of `shape` that are longer than 1.

    Axes of length 1 are left out.
    """
    places = np.cumsum([size != 1 for size in shape]) - 1
    return tuple(int(places[axis]) for axis in axes if shape[axis] != 1)


def full(node: Node, shape: Sequence[int]) -> Node:
    """`node` as an array of this shape: if it is a scalar, it is broadcast."""
    if node.shape == kept(shape):
        return node
    return Node(
        "broadcast", (node,), kept(shape), node.dtype, node.low, node.high, (), note=node.note
    )


def fitted(node: Node, own: Shape, shape: Shape) -> Node:
    """`node` as an operand of a pointwise operation whose result has this shape.

    JAX repeats the only entry along an axis of length 1 as often as the result needs it.

    Args:
      node: the operand.
      own: its shape in JAX.
      shape: the shape of the result in JAX.
    """
    if not node.shape or own == shape:
        return node
    places = kept_axes(shape, [axis for axis, size in enumerate(own) if size != 1])
    if places == tuple(range(len(kept(shape)))):
        return node
    return Node(
        "broadcast", (node,), kept(shape), node.dtype, node.low, node.high, places, note=node.note
    )


def reduce(operation: str, x: Node, axes: Sequence[int], dtype: str, note: Note) -> Node:
    """A reduction of some axes of `x`; `x` itself, or index 0, if there are none."""
    if not axes:
        return x if operation != "first_largest" else constant(0, dtype)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    low, high = x.low, x.high
    if operation == "sum":
        low, high = count * low, count * high
    if operation == "first_largest":
        low, high = 0, count - 1
    least, most = ranges.limits(dtype)
    wraps = not least <= low <= high <= most
    if wraps:
        low, high = least, most
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    return Node(operation, (x,), shape, dtype, low, high, tuple(axes), wraps, note)


def sliced(x: Node, shape: Shape, first: Sequence[int], sizes: Shape, note: Note) -> Node:
    """Entries from `first` on, `sizes` of them along the axes of `shape`."""
    if not x.shape or shape == sizes:
        return x
    for axis in range(len(shape)):  # an axis of which one entry is left is dropped
        if shape[axis] != 1 and sizes[axis] == 1:
            place = constant(first[axis], "int32")
            x = take(x, place, kept_axes(shape, [axis])[0], note)
            rest = (*shape[:axis], 1, *shape[axis + 1 :])
            at = [0 if k == axis else start for k, start in enumerate(first)]
            return sliced(x, rest, at, sizes, note)
    starts = tuple(start for start, size in zip(first, shape, strict=True) if size != 1)
    return Node("slice", (x,), kept(sizes), x.dtype, x.low, x.high, starts, note=note)


def take(x: Node, index: Node, axis: int, note: Note) -> Node:
    """x[index] along `axis`; an index that may lie outside is clipped."""
    if not x.shape:
        return x
    size = x.shape[axis]
    if axis != 0:
        order = (axis, *(k for k in range(len(x.shape)) if k != axis))
        x = _transposed(x, order, note)
    zero, last = constant(0, index.dtype), constant(size - 1, index.dtype)
    index = combine("max", [index, zero], index.shape, index.dtype, note)
    index = combine("min", [index, last], index.shape, index.dtype, note)
    low, high = x.low, x.high
    if x.operation == "constant":
        part = x.value[index.low : index.high + 1]
        low, high = int(part.min()), int(part.max())
        if index.is_constant:
            return constant(x.value[index.value], x.dtype)
    if x.operation == "iota" and x.value == 0 and len(x.shape) == 1:
        return combine("convert", [index], index.shape, x.dtype, note)
    shape = (*index.shape, *x.shape[1:])
    return Node("take", (x, index), shape, x.dtype, low, high, note=note)


def _transposed(x: Node, order: Sequence[int], note: Note) -> Node:
    if tuple(order) == tuple(range(len(order))):
        return x
    shape = tuple(x.shape[axis] for axis in order)
    return Node("transpose", (x,), shape, x.dtype, x.low, x.high, tuple(order), note=note)


def _transpose(params, operands, shapes, shape, dtype, note) -> Node:
    x = operands[0]
    if not x.shape:
        return x
    return _transposed(x, kept_axes(shapes[0], params["permutation"]), note)


def _broadcast(params, operands, shapes, shape, dtype, note) -> Node:
    x = operands[0]
    if not x.shape:
        return x
    axes = [
        axis
        for axis, size in zip(params["broadcast_dimensions"], shapes[0], strict=True)
        if size != 1
    ]
    places = kept_axes(shape, axes)
    if x.shape == kept(shape):
        return x
    return Node("broadcast", (x,), kept(shape), x.dtype, x.low, x.high, places, note=note)


def _reshape(params, operands, shapes, shape, dtype, note) -> Node:
    x = operands[0]
    if not x.shape or x.shape == kept(shape):
        return x
    return Node("reshape", (x,), kept(shape), x.dtype, x.low, x.high, note=note)


def _slice(params, operands, shapes, shape, dtype, note) -> Node:
    if any(stride != 1 for stride in params["strides"] or ()):
        raise UnsupportedError("a slice with strides")
    return sliced(operands[0], shapes[0], params["start_indices"], shape, note)


def _dynamic_slice(params, operands, shapes, shape, dtype, note) -> Node:
    x, sizes = operands[0], list(shapes[0])
    for axis, (start, size) in enumerate(zip(operands[1:], shape, strict=True)):
        if size == sizes[axis]:
            continue
        if size != 1:
            raise UnsupportedError("a dynamic slice of more than one place")
        x = take(x, start, kept_axes(sizes, [axis])[0], note)
        sizes[axis] = 1
    return x


def _gather(params, operands, shapes, shape, dtype, note) -> Node:
    x, indices = operands
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    wanted = [axis for axis in numbers.start_index_map if shapes[0][axis] != 1]
    partial = [k for k, size in enumerate(sizes) if size not in (1, shapes[0][k])]
    batching = [shapes[0][axis] for axis in numbers.operand_batching_dims]
    if partial or any(size != 1 for size in batching) or len(wanted) > 1:
        raise UnsupportedError("a gather of other than single rows")
    if not wanted or sizes[wanted[0]] != 1:
        return x
    if shapes[1][-1] != 1:  # of several coordinates, the one whose axis is longer than 1
        place = numbers.start_index_map.index(wanted[0])
        first = [0] * (len(shapes[1]) - 1) + [place]
        indices = sliced(indices, shapes[1], first, (*shapes[1][:-1], 1), note)
    axis = kept_axes(shapes[0], wanted)[0]
    inside = indices.low >= 0 and indices.high < x.shape[axis] if x.shape else True
    if "FILL" in str(params["mode"]) and not inside:
        raise UnsupportedError("a gather whose indices may lie outside")
    taken = take(x, indices, axis, note)
    if len(indices.shape) and taken.shape != kept(shape):
        raise UnsupportedError("a gather of rows along an inner axis")
    return taken


def _concatenate(params, operands, shapes, shape, dtype, note) -> Node:
    parts = [full(x, own) for x, own in zip(operands, shapes, strict=True)]
    axis = params["dimension"]
    places = kept_axes(shape, [axis])
    if not places:  # the axis has length 1: there is one part
        return parts[0]
    if any(part[axis] == 1 for part in shapes):
        # a part of length 1 along the axis lacks it: the axis is added again
        parts = [
            Node("broadcast", (part,), _with_axis(part.shape, places[0]), part.dtype, part.low,
                 part.high, tuple(k for k in range(len(part.shape) + 1) if k != places[0]))
            if size[axis] == 1 else part
            for part, size in zip(parts, shapes, strict=True)
        ]  # fmt: skip
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    return Node("concatenate", tuple(parts), kept(shape), dtype, low, high, places[0], note=note)


def _with_axis(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], 1, *shape[axis:])


def _dot(params, operands, shapes, shape, dtype, note) -> Node:
    """The node `linear` for x W^T of int8; for other products, a sum of products."""
    x, weights = operands
    (x_axes, w_axes), (x_batch, w_batch) = params["dimension_numbers"]
    inputs = kept_axes(shapes[0], x_axes), kept_axes(shapes[1], w_axes)
    simple = not x_batch and len(x.shape) == 1 and len(weights.shape) == 2
    int8 = x.dtype == weights.dtype == "int8" and dtype == "int32"
    if simple and int8 and inputs == ((0,), (1,)):
        count = weights.shape[1]
        bound = count * max(abs(x.low), x.high) * max(abs(weights.low), weights.high)
        if bound <= ranges.limits(dtype)[1]:
            both = (x, weights)
            return Node("linear", both, weights.shape[:1], dtype, -bound, bound, note=note)
    x, weights = full(x, shapes[0]), full(weights, shapes[1])
    axes_x, axes_w = len(x.shape), len(weights.shape)
    batch = kept_axes(shapes[0], x_batch), kept_axes(shapes[1], w_batch)
    free_x = [k for k in range(axes_x) if k not in (*inputs[0], *batch[0])]
    free_w = [k for k in range(axes_w) if k not in (*inputs[1], *batch[1])]
    sizes = [x.shape[k] for k in (*batch[0], *free_x)] + [weights.shape[k] for k in free_w]
    sizes += [x.shape[k] for k in inputs[0]]
    places_x, places_w = [0] * axes_x, [0] * axes_w
    count = len(batch[0])
    for place, (k, m) in enumerate(zip(*batch, strict=True)):
        places_x[k] = places_w[m] = place
    for place, k in enumerate(free_x):
        places_x[k] = count + place
    for place, k in enumerate(free_w):
        places_w[k] = count + len(free_x) + place
    summed = len(sizes) - len(inputs[0])
    for place, (k, m) in enumerate(zip(*inputs, strict=True)):
        places_x[k] = places_w[m] = summed + place
    wide = []
    for node, places in ((x, places_x), (weights, places_w)):
        spread = Node(
            "broadcast", (node,), tuple(sizes), node.dtype, node.low, node.high, tuple(places)
        )
        wide.append(combine("convert", [spread], sizes, dtype, note))
    product = combine("mul", wide, sizes, dtype, note)
    return reduce("sum", product, range(summed, len(sizes)), dtype, note)


HANDLERS: dict[str, Callable[..., Node]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "concatenate": _concatenate,
    "dot_general": _dot,
    "transpose": _transpose,
}
