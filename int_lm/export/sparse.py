"""Context tables as exports store them: without the entries that are 0, as most are.

A table int8 [R, V] becomes four tensors, which `runtime.Table` reads:

    NAME/rows      uint8 [ceil(R / 8)]: bit r % 8 (0 is the lowest) of byte r // 8 is 1 if row r has
                   an entry other than 0
    NAME/counts    for each such row, the number of entries other than 0, minus 1
    NAME/columns   for each entry other than 0, its column; row by row, ascending in a row
    NAME/values    int8, for each entry other than 0, its value

Counts and columns are uint8 up to a vocabulary of 256, else uint16. A table that would not become
smaller is stored as one tensor. This form loses nothing; only `prune` changes tables.

Axes: R rows, V vocabulary.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from int_lm.runtime import CACHE, PARTS

if TYPE_CHECKING:
    from int_lm.model.params import Parameters


def stored(tensors: Mapping[str, np.ndarray], tables: Iterable[str]) -> dict[str, np.ndarray]:
    """`tensors` with the context tables in the smaller of the two forms.

    Args:
      tensors: by name.
      tables: names of the context tables among them, int8 [R, V].
    """
    result = dict(tensors)
    for name in tables:
        parts = dict(zip((f"{name}/{part}" for part in PARTS), _parts(result[name]), strict=True))
        if sum(part.nbytes for part in parts.values()) < result[name].nbytes:
            del result[name]
            result |= parts
    return result


def _parts(table_RV: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four tensors of a table: rows, counts, columns and values."""
    index = np.uint8 if table_RV.shape[1] <= 256 else np.uint16
    places = np.flatnonzero(table_RV)  # row by row
    rows = places // table_RV.shape[1]
    counts_R = np.bincount(rows, minlength=len(table_RV))
    return (
        np.packbits(counts_R > 0, bitorder="little"),
        (counts_R[counts_R > 0] - 1).astype(index),
        (places - rows * table_RV.shape[1]).astype(index),
        table_RV.reshape(-1)[places],
    )


def prune(weights: "Parameters", least: int) -> tuple["Parameters", int]:
    """Set the small entries of context tables to 0.

    Args:
      least: entries whose absolute value is below this become 0.

    Returns:
      The weights, and the number of entries that were changed.
    """
    tables, dropped = {}, 0
    for name, table_RV in weights.tables.items():
        if name == CACHE.rpartition("/")[2]:  # a weight for each state of a row, not for a context
            tables[name] = table_RV
            continue
        small_RV = (np.abs(table_RV) < least) & (table_RV != 0)
        tables[name] = np.where(small_RV, np.int8(0), table_RV)
        dropped += int(small_RV.sum())
    return dataclasses.replace(weights, tables=tables), dropped
