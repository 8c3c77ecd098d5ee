"""What the kernel of a segment for GPUs reads and writes, and how it is divided into programs.

None of these sizes has been measured on a GPU. They follow from how many registers and how much
shared memory the compiler says that the programs take.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from int_lm.compile.tile_writing import Argument, Result

MOST_PAIRS = 64  # of a tile: the rows of the largest product that one instruction begins
LEAST_PAIRS = 16  # rows of the smallest
PROGRAMS = 128  # as many as a large GPU runs side by side: smaller tiles, until there are so many
TILE_ENTRIES = 1 << 12  # members times width: more of them do not stay in registers
WARP_ENTRIES = 1 << 12  # above which a program has 8 warps and not 4
STAGED_BYTES = 1 << 16  # of a layer's matrices, up to which the next layer's are loaded ahead


@dataclasses.dataclass(frozen=True)
class Segment:
    """What a kernel reads and writes.

    Attributes:
      arguments: of the function of one token; the last two are the tokens and their targets.
      states: places of the arguments that are the state before the token.
      results: what is kept of a token.
      members: P.
      length: T.
    """

    arguments: Sequence[Argument]
    states: Sequence[int]
    results: Sequence[Result]
    members: int
    length: int

    @functools.cached_property
    def width(self) -> int:
        """The most entries that the state of a member has in a layer."""
        states = [self.arguments[place] for place in self.states]
        return max((math.prod(x.shape[(x.members or 0) + 1 :]) for x in states), default=1)

    @functools.cached_property
    def pairs(self) -> int:
        """I: pairs of a tile."""
        pairs = MOST_PAIRS
        while pairs > LEAST_PAIRS and (
            -(-self.members // (2 * pairs)) < PROGRAMS or 2 * pairs * self.width > TILE_ENTRIES
        ):
            pairs //= 2
        return pairs

    @property
    def warps(self) -> int:
        """Warps of a program: groups of 32 threads."""
        return 8 if 2 * self.pairs * self.width > WARP_ENTRIES else 4

    @property
    def stages(self) -> int:
        """Layers whose matrices are in shared memory at a time: 2 if one is loaded ahead."""
        matrices = [x.shape for x in self.arguments if x.members is None and len(x.shape) > 2]
        return 2 if sum(math.prod(shape[1:]) for shape in matrices) <= STAGED_BYTES else 1

    @property
    def programs(self) -> int:
        """Number of tiles."""
        return -(-self.members // (2 * self.pairs))
