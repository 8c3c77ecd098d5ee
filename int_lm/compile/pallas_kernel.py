"""A Pallas kernel that reads a segment: each of its programs takes a tile of members through it.

The counterpart of `tiles` for GPUs, of the same traced function of one token. Matrices are
multiplied on tensor cores; all that lies between two of them stays in registers and shared memory.
Pallas's lowering to Triton has no memory of a program's own, so the state of a tile's members is
kept where the result will be, in the caches of the GPU, twice: a token reads the one and writes the
other. Records are written once.

Axes: P members, I pairs of a tile, T tokens of a segment, L layers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from int_lm.compile import pallas_reading, program
from int_lm.compile.pallas_program import Program, table_key
from int_lm.compile.pallas_segment import Segment
from int_lm.compile.program import Node, Shape, UnsupportedError

MOST_ENTRIES = 2**31 - 1  # of an array: Pallas's lowering finds an entry by a signed 32-bit number


def kernel(
    function: Callable[..., Sequence[Any]], segment: Segment, interpret: bool
) -> Callable[..., list[Array]]:
    """The kernel of a function of one token.

    Args:
      function: (arguments) -> [state after the token, results of the token]; it calls linears.
      interpret: compute on any platform, slowly; for tests.

    Returns:
      (arguments; tokens and targets int32 [T, P]) -> [state after the segment, results of all
      tokens], where T stands before the axis of members. It raises UnsupportedError when it is
      traced, if the function does something that it cannot do.

    Raises:
      UnsupportedError: the function does something that cannot be compiled.
    """
    outputs, _ = pallas_reading.read(function, segment.arguments)
    tables = _tables(outputs)
    arguments, states = segment.arguments, segment.states
    shapes: list[tuple[Shape, str]] = [
        ((2, *arguments[place].shape), arguments[place].dtype) for place in states
    ]
    for result in segment.results:
        axis = result.members
        whole = (*result.shape[:axis], segment.length, *result.shape[axis:])
        shapes.append((whole, result.dtype))
    read = [(segment.length, *x.shape) if x.each else x.shape for x in arguments]
    if any(math.prod(shape) > MOST_ENTRIES for shape in (*read, *(shape for shape, _ in shapes))):
        raise UnsupportedError("an array of 2^31 entries or more")
    # The compiler loads ahead what the innermost loop reads in its next turn. A turn of the layers
    # reads no state that the one before has written; a token does.
    layered = any(node.operation == "loop" for node in program.reached(outputs))

    def body(*refs: Any) -> None:
        Program(segment, outputs, tables, refs, interpret).run()

    call = pl.pallas_call(
        body,
        grid=(segment.programs,),
        out_shape=[jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in shapes],
        input_output_aliases={place: k for k, place in enumerate(states)},
        compiler_params=pallas_triton.CompilerParams(
            num_warps=segment.warps, num_stages=segment.stages if layered else 1
        ),
        interpret=interpret,
        name="segment",
    )

    def run(*operands: Array) -> list[Array]:
        # of each state two: a token reads the one, and writes the other
        doubled = [jnp.stack([x, x]) if k in states else x for k, x in enumerate(operands)]
        found = call(*doubled, *map(jnp.asarray, tables))
        after = [x[segment.length % 2] for x in found[: len(states)]]
        return [*after, *found[len(states) :]]

    return run


def _inner_nodes(outputs: Sequence[Node]) -> list[Node]:
    """Every node, with those inside of loops."""
    found: dict[Node, None] = {}
    waiting = list(outputs)
    while waiting:
        for node in program.reached(waiting):
            found.setdefault(node)
        loops = [node.value for node in found if node.operation == "loop"]
        results = [loop.results[place] for loop in loops for place in sorted(loop.live)]
        waiting = [node for node in results if node not in found]
    return list(found)


def _tables(outputs: Sequence[Node]) -> list[np.ndarray]:
    """The different constant arrays of a program."""
    found: dict[Any, np.ndarray] = {}
    for node in _inner_nodes(outputs):
        if node.operation == "constant" and node.shape:
            found.setdefault(table_key(node.value), np.ascontiguousarray(node.value))
    return list(found.values())
