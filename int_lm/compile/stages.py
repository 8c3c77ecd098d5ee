"""Assigns each node of a block to a stage.

The code of a stage computes first its scalars, then its loops, then its barriers. Pointwise nodes
of one shape in one stage share a loop.
"""

from collections.abc import Mapping, Sequence

from int_lm.compile import program, ranges
from int_lm.compile.program import Node, Shape

_VIRTUAL = {
    *("constant", "input", "index", "carried", "broadcast", "slice", "take", "transpose"),
    *("reshape", "iota", "turn"),
}


def is_virtual(node: Node) -> bool:
    """Whether a node is not stored but computed from stored nodes wherever it is read."""
    if node.operation == "convert" and not node.wraps:
        return ranges.BITS[node.dtype] >= ranges.BITS[node.operands[0].dtype]
    return node.operation in _VIRTUAL


def kind(node: Node) -> str:
    """How a node is computed: as a "scalar", in a "loop", or as a "barrier".

    Nodes of the kind "loop" share a loop over their shape. A barrier has statements of its own.
    """
    if node.operation in program.POINTWISE:
        return "loop" if node.shape else "scalar"
    whole = node.operation in program.REDUCTIONS and not node.shape
    return "loop" if whole and node.operation != "first_largest" else "barrier"


def loop_shape(node: Node) -> Shape:
    """The shape over which a node of the kind "loop" loops."""
    return node.operands[0].shape if node.operation in program.REDUCTIONS else node.shape


def assigned(
    sites: Sequence[Node],
    needs: Mapping[Node, Sequence[tuple[Node, bool]]],
    readers: Mapping[Node, Sequence[tuple[Node, bool]]],
    kept: set[Node],
) -> dict[Node, int]:
    """The stage of each site.

    Args:
      sites: the nodes that are stored; operands come first.
      needs: by site, (site that it reads, whether only at the same index).
      readers: by site, (site that reads it, whether only at the same index).
      kept: sites that the outputs need.
    """
    order = {"scalar": 0, "loop": 1, "barrier": 2}

    def together(first: Node, second: Node, same: bool) -> bool:
        """Whether `second`, which reads `first`, can be in the same stage."""
        if kind(first) == "loop" == kind(second):
            return same and first.operation in program.POINTWISE
        if kind(first) == "scalar" == kind(second):
            return True
        return order[kind(first)] < order[kind(second)]

    stage: dict[Node, int] = {}
    for node in sites:
        earliest = [stage[n] + (not together(n, node, same)) for n, same in needs[node]]
        stage[node] = max(earliest, default=0)
    for node in reversed(sites):  # as late as its readers allow, so that they share a loop
        latest = [stage[r] - (not together(node, r, same)) for r, same in readers[node]]
        if latest and node not in kept and node.operation in program.POINTWISE:
            stage[node] = max(stage[node], min(latest))
    return stage
