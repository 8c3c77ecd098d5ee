"""Makes nodes of what JAX traces of a tile of members, for a kernel that computes blocks of it.

It differs from `tile_reading` in what stays a call, and in one more node:

    pick    x [I, N, ...], indices [I, ...]: x[i, indices[i, ...]]
"""

from collections.abc import Callable, Sequence
from typing import Any

from int_lm.compile import nodes, places, tile_reading
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
    (x, indices), (own, of_indices) = operands, shapes
    tile_reading.check_along(params, indices, own, of_indices, shape)
    if own[1] == 1:
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
    for argument in arguments:
        if any(size in (places.MEMBERS, places.PAIRS) for size in argument.shape):
            raise UnsupportedError("an axis as long as that of the members")
    return tile_reading.read(BlockReader(), function, arguments, places.MEMBERS)
