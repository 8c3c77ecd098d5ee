"""Makes nodes of what JAX traces of a tile of members, with calls of kernels left as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from int_lm.compile import nodes, program, ranges, trace
from int_lm.compile.program import Node, Note, Shape, UnsupportedError, combine, constant
from int_lm.compile.tile_writing import Argument

NONE = "-1"  # name of an input without entries
PREFIX = "int_lm_"  # of the names of kernels


class TileReader(trace._Reader):
    """Makes nodes from jaxprs in which kernels are called.

    A call is a node `call`: its value is (name of the kernel, shapes of operands, attributes).
    """

    def __init__(self) -> None:
        super().__init__(set())
        self.known: dict[Any, tuple[Any, list[Node]]] = {}

    def note(self, equation: Any) -> Note:
        return Note()

    def equation(self, equation: Any, operands: list[Node]) -> list[Node]:
        """The results of one equation; those of the same one before, if there was one."""
        own = tuple((x.value, x.dtype) if x.is_constant else id(x) for x in operands)
        called = equation.params.get("jaxpr")
        params = id(called) if called is not None else str(equation.params)
        shapes = tuple(str(v.aval) for v in (*equation.invars, *equation.outvars))
        key = equation.primitive.name, own, params, shapes
        if key not in self.known or equation.primitive.name == "scan":
            # operands and equation stay alive with their ids
            self.known[key] = (operands, equation), self.once(equation, operands)
        return self.known[key][1]

    def scan(self, params: Any, operands: list[Node], equation: Any, note: Note) -> list[Node]:
        """A loop; what is collected twice is one result."""
        found = super().scan(params, operands, equation, note)
        first: dict[Node, Node] = {}
        for place, turn in enumerate(found):
            if place >= params["num_carry"] and turn.operation == "turn":
                loop = turn.operands[0].value
                found[place] = first.setdefault(loop.results[turn.value], turn)
        return found

    def once(self, equation: Any, operands: list[Node]) -> list[Node]:
        """The results of one equation."""
        name, params = equation.primitive.name, equation.params
        shapes = [tuple(atom.aval.shape) for atom in equation.invars]
        result = equation.outvars[0].aval
        if name == "ffi_call":
            return [_call(params, operands, shapes, result)]
        if 0 in result.shape:
            return [Node("input", (), (0,), str(result.dtype), 0, 0, NONE)]
        if name == "dot_general":
            raise UnsupportedError("a product of matrices that is no linear")
        if name == "slice" and any(stride != 1 for stride in params["strides"] or ()):
            return [_strided(params, operands[0], shapes[0], tuple(result.shape))]
        if name == "gather" and params["dimension_numbers"].operand_batching_dims:
            return [_along(params, operands, shapes, tuple(result.shape))]
        return super().equation(equation, operands)


def _call(params: Any, operands: list[Node], shapes: list[Shape], result: Any) -> Node:
    """The node of a call of a kernel, whose results have ranges that all of them keep."""
    name = params["target_name"]
    dtype = str(result.dtype)
    high = ranges.limits(dtype)[1]
    low = -high
    value = name.removeprefix(PREFIX), tuple(shapes), dict(params["attributes"])
    return Node("call", tuple(operands), nodes.kept(result.shape), dtype, low, high, value)


def _strided(params: Any, x: Node, own: Shape, shape: Shape) -> Node:
    """Every k-th entry of an axis: of the axis split into groups of k, one place of each."""
    strides = params["strides"]
    (axis,) = (k for k, stride in enumerate(strides) if stride != 1)
    stride, start = strides[axis], params["start_indices"][axis]
    rest = [k for k in range(len(own)) if k != axis]
    whole = all(own[k] == shape[k] for k in rest) and own[axis] == shape[axis] * stride
    if not whole or start >= stride:
        raise UnsupportedError("a slice with strides of a part of an axis")
    x = nodes.full(x, own)
    split = (*own[:axis], shape[axis], stride, *own[axis + 1 :])
    groups = Node("reshape", (x,), nodes.kept(split), x.dtype, x.low, x.high)
    (place,) = nodes.kept_axes(split, [axis + 1])
    return nodes.take(groups, constant(start, "int32"), place, Note())


def read(
    reader: TileReader,
    function: Callable[..., Sequence[Any]],
    arguments: Sequence[Argument],
    tile: int,
) -> tuple[list[Node], list[Node]]:
    """The outputs of a function of one token, and the inputs, for a tile of so many members.

    Raises:
      UnsupportedError: the function does something that cannot be compiled.
    """
    inputs, structs = [], []
    for place, argument in enumerate(arguments):
        shape = argument.of_tile(tile)
        structs.append(jax.ShapeDtypeStruct(shape, np.dtype(argument.dtype)))
        named = program.argument(str(place), shape, argument.dtype, argument.low, argument.high)
        inputs.append(named)
    closed = jax.make_jaxpr(function)(*structs)
    if any(isinstance(value, Tracer) for value in closed.consts):
        raise UnsupportedError("a value that is no argument")
    outputs = reader.run(closed.jaxpr, closed.consts, inputs)
    program.finish(outputs)
    return outputs, inputs


def check_along(params: Any, indices: Node, own: Shape, of_indices: Shape, shape: Shape) -> None:
    """Refuse a gather other than that of jnp.take_along_axis: x[i, indices[i, k]].

    Args:
      params: of the gather.
      own, of_indices, shape: of x [I, N, ...], of the indices and of the result.

    Raises:
      UnsupportedError: it is another one.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    simple = (
        numbers.operand_batching_dims == numbers.start_indices_batching_dims == (0,)
        and numbers.start_index_map == (1,)
        and numbers.collapsed_slice_dims == (1,)
        and sizes == (1, 1, *own[2:])
        and of_indices[-1] == 1
        and shape == (*of_indices[:-1], *own[2:])
        and indices.low >= 0
        and indices.high < own[1]
    )
    if not simple:
        raise UnsupportedError("a gather of other than single rows")


def _along(params: Any, operands: list[Node], shapes: list[Shape], shape: Shape) -> Node:
    """x[i, indices[i, k]] of x [I, N, ...], of jnp.take_along_axis: rows of x [I N, ...]."""
    (x, indices), (own, of_indices) = operands, shapes
    check_along(params, indices, own, of_indices, shape)
    x, of_indices = nodes.full(x, own), of_indices[:-1]
    rows = Node("reshape", (x,), nodes.kept((own[0] * own[1], *own[2:])), x.dtype, x.low, x.high)
    place = constant(np.arange(own[0], dtype=np.int32) * own[1], "int32")
    spread = nodes.fitted(place, (own[0], *([1] * (len(of_indices) - 1))), of_indices)
    index = combine("convert", [indices], of_indices, "int32")
    index = combine("add", [index, spread], of_indices, "int32")
    return nodes.take(rows, index, 0, Note())
