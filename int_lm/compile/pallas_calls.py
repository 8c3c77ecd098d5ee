"""Calls of kernels that are parts of the kernel of a segment: linears, and the document cache.

Axes: I pairs of a tile, B columns of a block, K inputs of a block, F slots of the document cache.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from int_lm.arithmetic import fixed
from int_lm.compile import places, ranges, tile_reading
from int_lm.compile.pallas_operations import broadcast, indices, inside, shape_of
from int_lm.compile.places import Columns, Gathered, Index, Member, Pair, Place
from int_lm.compile.program import Node, UnsupportedError

if TYPE_CHECKING:
    from int_lm.compile.pallas_values import Values

BOTH = Member(0), Member(1)


def called(values: "Values", node: Node, index: Index) -> Any:
    """A block of the results of a call, for one of the members of every pair."""
    member, columns = index
    if not isinstance(member, Member) or not isinstance(columns, Columns):
        raise UnsupportedError("a part of what a kernel gives")
    if node.value[0] == "cache_added":
        return _cache_added(values, node, member, columns)
    return _linear(values, node, columns)[member.second]


def _linear(values: "Values", node: Node, wanted: Columns) -> list[Array]:
    """`layers.narrowed`, of both members: they share the block of weights."""
    if (found := values.find(("linear", node, wanted))) is not None:
        return found
    x, value, left, right, layer = node.operands
    number = values.place(layer, ())
    parts = places.blocks(x.shape[1], values.cuts.of(x, 1))
    together = places.blocks(node.shape[1])
    if wanted not in together or len(together) >= len(parts):
        together = [wanted]
    # otherwise all results at once, so that no block of the many inputs is kept
    totals: dict[Columns, list[Any]] = {columns: [None, None] for columns in together}
    for part in parts:
        inputs_IK = [_wide(values.at(x, (who, part)), part) for who in BOTH]
        for columns, total in totals.items():
            weight_BK = values.load(value, _of_layer(value, number, (columns, part)))
            if part.size < part.block:
                weight_BK = jnp.where(inside(part), weight_BK, np.int8(0))
            for k, x_IK in enumerate(inputs_IK):
                product_IB = fixed.dot(x_IK, weight_BK)
                total[k] = product_IB if total[k] is None else total[k] + product_IB
    low, high = int(node.value[2]["low"]), int(node.value[2]["high"])
    most = ranges.limits(node.dtype)[1]
    for columns, total in totals.items():
        if left.value != tile_reading.NONE:
            added_2IB = _perturbations(values, x, left, right, number, columns)
            total = [t + (a >> low) for t, a in zip(total, added_2IB, strict=True)]
        narrow = [jnp.clip(t >> high, -most, most).astype(node.dtype) for t in total]
        values.known["linear", node, columns] = narrow
    return values.find(("linear", node, wanted))


def _perturbations(
    values: "Values", x: Node, left: Node, right: Node, number: Place, columns: Columns
) -> list[Any]:
    """+-(x B) A^T of both members: int32 [I, B] each."""
    totals: list[Any] = [None, None]
    for r in range(_rank(left)):
        left_IB = values.load(left, _of_layer(left, number, (Pair(), columns), r))
        left_IB = left_IB.astype(jnp.int32)
        for k, inner_I1 in enumerate(_projections(values, x, right, number, r)):
            term = left_IB * broadcast(inner_I1, left_IB.shape)
            totals[k] = term if totals[k] is None else totals[k] + term
    return [totals[0], -totals[1]]


def _projections(values: "Values", x: Node, right: Node, number: Place, r: int) -> list[Array]:
    """x B of both members, for one of the ranks: int32 [I, 1] each."""
    key = "projection", x, right, number, r
    if (found := values.find(key)) is not None:
        return found
    sums: list[Any] = [None, None]
    for part in places.blocks(x.shape[1], values.cuts.of(x, 1)):
        right_IK = values.load(right, _of_layer(right, number, (Pair(), part), r))
        right_IK = right_IK.astype(jnp.int32)
        if part.size < part.block:
            right_IK = jnp.where(inside(part), right_IK, np.int32(0))
        for k, who in enumerate(BOTH):
            product_IK = _wide(values.at(x, (who, part)), part).astype(jnp.int32) * right_IK
            sum_I1 = jnp.sum(product_IK, axis=1, keepdims=True, dtype=jnp.int32)
            sums[k] = sum_I1 if sums[k] is None else sums[k] + sum_I1
    values.known[key] = sums
    return sums


def _wide(x_IK: Array, part: Columns) -> Array:
    """Inputs in all columns of their block."""
    return broadcast(x_IK, (shape_of(x_IK)[0], part.block))


def _rank(left: Node) -> int:
    """R of A [..., I, M, R], whose axes of length 1 are left out."""
    (pairs,) = (axis for axis, size in enumerate(left.shape) if size == places.PAIRS)
    return left.shape[pairs + 2] if len(left.shape) > pairs + 2 else 1


def _of_layer(node: Node, number: Place, inner: Sequence[Place], r: int | None = None) -> Index:
    """The index of a layer's block in a matrix or in its noise, which may be of one layer."""
    rest: Index = (*inner,)
    if r is not None and _rank(node) > 1:
        rest = (*rest, r)
    return (number, *rest) if len(node.shape) > len(rest) else rest


def _cache_added(values: "Values", node: Node, member: Member, columns: Columns) -> Array:
    """`document_cache.added`: logits plus the weights of all slots whose token a column is."""
    logits, table, weights, tokens = node.operands
    who = Pair() if weights.shape[0] == places.PAIRS else member
    size = int(np.prod(table.shape))
    total_IB = values.at(logits, (member, columns)).astype(jnp.int32)
    for slot in range(weights.shape[1]):
        which_I1, token_I1 = (values.at(x, (who, slot)) for x in (weights, tokens))
        inside_I1 = jnp.minimum(which_I1, size - 1)
        split = (
            lax.div(inside_I1, np.int32(table.shape[-1])),
            lax.rem(inside_I1, np.int32(table.shape[-1])),
        )
        index = [Gathered(id(weights), (who, slot, axis), split[axis]) for axis in range(2)][
            -len(table.shape) :
        ]
        boost_I1 = values.at(table, tuple(index)).astype(jnp.int32)
        boost_I1 = jnp.where(which_I1 < size, boost_I1, np.int32(0))
        hit_IB = indices(columns) == token_I1
        total_IB = total_IB + jnp.where(hit_IB, broadcast(boost_I1, hit_IB.shape), np.int32(0))
    most = ranges.limits(node.dtype)[1]
    return jnp.clip(total_IB, -most, most).astype(node.dtype)
