"""Makes nodes of what JAX traces of a tile of members, for a kernel that computes blocks of it.

It differs from `tile_reading` in what stays a call, and in one more node:

    pick    x [I, N, ...], indices [I, ...]: x[i, indices[i, ...]]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from int_lm.compile import nodes, places, program
from int_lm.compile.program import Node, Shape, UnsupportedError
from int_lm.compile.tile_reading import TileReader
from int_lm.compile.tile_writing import Argument

CALLS = ("linear8", "linear16", "cache_added")  # that stay calls


class BlockReader(TileReader):
    """Makes nodes from jaxprs in which linears are calls of kernels."""

    def once(self, equation: Any, operands: list[Node]) -> list[Node]:
        """The results of one equation."""
        params = equation.params
        if equation.primitive.name == "ffi_call":
            name = params["target_name"].removeprefix("int_lm_")
            if name not in CALLS:
                raise UnsupportedError(f"a call of {name}")
        gather = equation.primitive.name == "gather"
        if gather and params["dimension_numbers"].operand_batching_dims:
            shapes = [tuple(atom.aval.shape) for atom in equation.invars]
            return [_picked(params, operands, shapes, tuple(equation.outvars[0].aval.shape))]
        return super().once(equation, operands)


def _picked(params: Any, operands: list[Node], shapes: list[Shape], shape: Shape) -> Node:
    """x[i, indices[i, k]] of x [I, N, ...], of jnp.take_along_axis."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    (x, indices), (own, of_indices) = operands, shapes
    simple = (
        numbers.operand_batching_dims == numbers.start_indices_batching_dims == (0,)
        and numbers.start_index_map == (1,)
        and numbers.collapsed_slice_dims == (1,)
        and sizes == (1, 1, *own[2:])
        and of_indices[-1] == 1
        and shape == (*of_indices[:-1], *own[2:])
        and own[1] > 1
        and indices.low >= 0
        and indices.high < own[1]
    )
    if not simple:
        raise UnsupportedError("a gather of other than single rows")
    x, indices = nodes.full(x, own), nodes.full(indices, of_indices)
    return Node("pick", (x, indices), nodes.kept(shape), x.dtype, x.low, x.high)


def read(
    function: Callable[..., Sequence[Any]], arguments: Sequence[Argument]
) -> tuple[list[Node], list[Node]]:
    """The outputs of a function of one token, and the inputs, for a tile of `places.MEMBERS`.

    Raises:
      UnsupportedError: the function does something that cannot be compiled.
    """
    inputs, structs = [], []
    for place, argument in enumerate(arguments):
        shape = argument.of_tile(places.MEMBERS)
        if any(size in (places.MEMBERS, places.PAIRS) for size in argument.shape):
            raise UnsupportedError("an axis as long as that of the members")
        structs.append(jax.ShapeDtypeStruct(shape, np.dtype(argument.dtype)))
        named = program.argument(str(place), shape, argument.dtype, argument.low, argument.high)
        inputs.append(named)
    closed = jax.make_jaxpr(function)(*structs)
    if any(isinstance(value, Tracer) for value in closed.consts):
        raise UnsupportedError("a value that is no argument")
    outputs = BlockReader().run(closed.jaxpr, closed.consts, inputs)
    program.finish(outputs)
    return outputs, inputs
