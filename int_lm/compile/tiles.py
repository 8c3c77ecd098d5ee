"""C code for a tile of members: some members of a population read one token after another.

A function of one token is traced for as many members as a tile has, with calls of kernels left as
they are (`native.segment`). What lies between these calls becomes loops over arrays that stay in
the processor's caches: the same graph and the same writer as for one stream (`program`, `c`). The
members of a tile are rows of arrays, so that kernels of linears take all of them at once.

Axes: P members, T tokens of a segment.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from int_lm.compile import tile_reading
from int_lm.compile.program import UnsupportedError
from int_lm.compile.tile_writing import Argument, Result, TileWriter

STACK_BYTES = 1 << 20  # of a tile's arrays: they fit the stack, and the second cache
MEMBERS = (24, 12, 6)  # of a tile, at most: multiples of the kernels' own tiles


@dataclasses.dataclass(frozen=True)
class Source:
    """A program.

    Attributes:
      text: C code of the function `int_lm_tile`.
      tile: members of a tile.
      matrices: for every matrix that a kernel reads, the places of its weights, of A and of B among
        the arguments; -1 for a matrix without a perturbation.
    """

    text: str
    tile: int
    matrices: tuple[tuple[int, int, int], ...]


def source(
    function: Callable[..., Sequence[Any]],
    arguments: Sequence[Argument],
    states: Sequence[int],
    results: Sequence[Result],
    members: int,
    threads: int = 1,
) -> Source:
    """The program of a function of one token.

    Args:
      function: (arguments) -> [state after the token, results of the token]; it calls kernels.
      arguments: its arguments; the last two are the tokens and their targets, int32 [P].
      states: places of the arguments that are the state before the token.
      results: what is kept of a token.
      members: P.
      threads: among which tiles are divided; they get equally many if there are members enough.

    Raises:
      UnsupportedError: the function does something that cannot be compiled.
    """
    for most in MEMBERS:
        tiles = -(-members // most // threads) * threads
        # a multiple of the kernels' own tiles; the last tile has some members of the one before
        tile = min(-(-members // (tiles * MEMBERS[-1])) * MEMBERS[-1], members)
        writer = _traced(function, arguments, states, results, tile)
        if writer.bytes <= STACK_BYTES:
            return Source(writer.text(), tile, tuple(writer.matrices))
    raise UnsupportedError("arrays that are too large for a tile")


def _traced(
    function: Callable[..., Sequence[Any]],
    arguments: Sequence[Argument],
    states: Sequence[int],
    results: Sequence[Result],
    tile: int,
) -> TileWriter:
    outputs, _ = tile_reading.read(tile_reading.TileReader(), function, arguments, tile)
    return TileWriter(arguments, states, results, outputs, tile)
