"""Kernels for GPUs, in Pallas (Triton): the perturbed linear in one pass, to the bit.

XLA writes the int32 sums of a matmul to memory, then reads them to add the perturbation and to
narrow the result. That moves several times the bytes of the inputs. Here the sums stay in
registers.

Axes: P members, I = P/2 pairs, N inputs, M outputs.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import NotImplementedType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from int_lm.arithmetic import fixed
from int_lm.compile import pallas_kernel, pallas_segment
from int_lm.native.cpu import Weight

if TYPE_CHECKING:
    from int_lm.native.segment import Traced, Tree

PROJECTION_ROWS = 32  # rows that one program of `_projections` computes


@dataclasses.dataclass(frozen=True)
class Tile:
    """The part of a result that one program computes.

    Attributes:
      rows: number of rows.
      outputs: number of outputs.
      inputs: number of inputs that the program reads at a time.
    """

    rows: int
    outputs: int
    inputs: int


def tile_of(rows: int, inputs: int, outputs: int) -> Tile | None:
    """The tile for these sizes: powers of two, at most 128, that divide them.

    Returns:
      None if one of the powers of two is below 32.
    """
    most = [min(128, size & -size) for size in (rows, outputs, inputs)]
    return Tile(*most) if min(most) >= 32 else None


def linear(
    weight: Weight, x_PN: Array, high: int, dtype: type, interpret: bool = False
) -> Array | NotImplementedType:
    """The kernel of `layers.narrowed`: int8 or int16 [P, M].

    It supports perturbations of rank 1, none at all, and shapes that have a tile.

    Args:
      weight: the matrix, with or without its perturbation.
      x_PN: int8.
      high: right shift of the sum.
      dtype: dtype of the result, int8 or int16.
      interpret: compute on any platform, slowly; for tests.

    Returns:
      NotImplemented for other ranks and shapes.
    """
    (rows, inputs), outputs = x_PN.shape, weight.value.shape[-2]
    tile = tile_of(rows, inputs, outputs)
    if tile is None or (weight.left is not None and weight.left.shape[-1] > 1):
        return NotImplemented
    value, left, right = (
        _of_layer(x, weight.layer) for x in (weight.value, weight.left, weight.right)
    )
    operands = [x_PN, value]
    specs = [
        pl.BlockSpec((tile.rows, inputs), lambda i, j: (i, 0)),
        pl.BlockSpec((tile.outputs, inputs), lambda i, j: (j, 0)),
    ]
    if left is not None and right is not None:
        operands += [left[..., 0], _projections(x_PN, right[..., 0], tile, interpret)]
        specs += [
            pl.BlockSpec((tile.rows // 2, tile.outputs), lambda i, j: (i, j)),
            pl.BlockSpec((tile.rows,), lambda i, j: (i,)),
        ]
    return pl.pallas_call(
        functools.partial(_linear, tile=tile, low=weight.shift, high=high),
        grid=(rows // tile.rows, outputs // tile.outputs),
        in_specs=specs,
        out_specs=pl.BlockSpec((tile.rows, tile.outputs), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype),
        compiler_params=pallas_triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="linear" if len(operands) == 2 else "perturbed_linear",
    )(*operands)


def segment(
    traced: "Traced", interpret: bool = False
) -> Callable[["Tree", "Tree", "Tree", Array], tuple["Tree", "Tree"]]:
    """The kernel of a segment, with the arguments and the results of `segment.over_tokens`.

    Args:
      traced: the function of one token.
      interpret: compute on any platform, slowly; for tests.

    Raises:
      UnsupportedError: now, or when it is traced: there is none.
    """
    arguments, states, results = traced.arguments, traced.states, traced.results
    whole = pallas_segment.Segment(arguments, states, results, traced.members, traced.length)
    call = pallas_kernel.kernel(traced.flat, whole, interpret)

    def kernel(
        arguments: "Tree", state: "Tree", each: "Tree", tokens_TP: Array
    ) -> tuple["Tree", "Tree"]:
        leaves = jax.tree.leaves((arguments, state, each))
        return traced.unflatten(call(*leaves, tokens_TP[:-1], tokens_TP[1:]))

    return kernel


def _of_layer(stacked: Array | None, layer: Array | None) -> Array | None:
    """One layer of a stacked tensor; the tensor itself if `layer` is None."""
    if stacked is None or layer is None:
        return stacked
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def _linear(x_ref, weight_ref, *refs, tile: Tile, low: int, high: int) -> None:
    """The program that computes one tile of the result."""
    *noise_refs, out_ref = refs

    def add(step: Array, total: Array) -> Array:
        span = pl.ds(step * tile.inputs, tile.inputs)
        return total + fixed.dot(x_ref[:, span], weight_ref[:, span])

    shape = tile.rows, tile.outputs
    steps = x_ref.shape[1] // tile.inputs
    total = jax.lax.fori_loop(0, steps, add, jnp.zeros(shape, jnp.int32))
    if noise_refs:
        left_ref, projection_ref = noise_refs
        left = left_ref[_pairs(shape), _columns(shape)].astype(jnp.int32)
        total += (left * projection_ref[...][:, None]) >> low
    most = 127 if out_ref.dtype == jnp.int8 else 32767
    out_ref[...] = jnp.clip(total >> high, -most, most).astype(out_ref.dtype)


def _projections(x_PN: Array, right_IN: Array, tile: Tile, interpret: bool) -> Array:
    """x B for even rows and -(x B) for odd rows: int32 [P]."""
    (rows, inputs), block = x_PN.shape, tile.inputs

    def program(x_ref, right_ref, out_ref) -> None:
        shape = PROJECTION_ROWS, block

        def add(step: Array, total: Array) -> Array:
            x = x_ref[:, pl.ds(step * block, block)].astype(jnp.int32)
            right = right_ref[_pairs(shape), step * block + _columns(shape)].astype(jnp.int32)
            return total + x * right

        total = jax.lax.fori_loop(0, inputs // block, add, jnp.zeros(shape, jnp.int32))
        sign = 1 - 2 * (jnp.arange(PROJECTION_ROWS) % 2)
        out_ref[...] = sign * jnp.sum(total, axis=1)

    return pl.pallas_call(
        program,
        grid=(rows // PROJECTION_ROWS,),
        in_specs=[
            pl.BlockSpec((PROJECTION_ROWS, inputs), lambda i: (i, 0)),
            pl.BlockSpec((PROJECTION_ROWS // 2, inputs), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((PROJECTION_ROWS,), lambda i: (i,)),
        out_shape=jax.ShapeDtypeStruct((rows,), jnp.int32),
        compiler_params=pallas_triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="perturbation_projections",
    )(x_PN, right_IN)


def _pairs(shape: tuple[int, int]) -> Array:
    """The index of the pair of every row of a tile, 0 for its first pair: int32."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0) // 2


def _columns(shape: tuple[int, int]) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1)
