"""Context tables as exports store them: most entries are 0, and those are left out.

A table int8 [R, V] becomes four tensors, which `runtime.Table` reads:

    NAME/rows      uint8 [ceil(R / 8)]: bit r % 8, the lowest first, of byte r // 8 is 1 if row r
                   has an entry other than 0
    NAME/counts    of each such row the number of these entries, less one
    NAME/columns   of these entries, row by row, the columns, ascending
    NAME/values    int8, their values

Counts and columns are uint8 up to a vocabulary of 256, else uint16. A table that this would not
make smaller is stored as it is. Nothing is lost; `prune` is what loses something.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from int_lm.runtime import PARTS

if TYPE_CHECKING:
    from int_lm.model.params import Parameters


def stored(tensors: Mapping[str, np.ndarray], tables: Iterable[str]) -> dict[str, np.ndarray]:
    """`tensors` with those that `tables` names, [R, V], in the smaller of both forms."""
    result = dict(tensors)
    for name in tables:
        parts = dict(zip((f"{name}/{part}" for part in PARTS), _parts(result[name]), strict=True))
        if sum(part.nbytes for part in parts.values()) < result[name].nbytes:
            del result[name]
            result |= parts
    return result


def _parts(table_RV: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four tensors of a table."""
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
    """(weights whose context tables have 0 for entries nearer to 0 than `least`, their number)."""
    tables, dropped = {}, 0
    for name, table_RV in weights.tables.items():
        small_RV = (np.abs(table_RV) < least) & (table_RV != 0)
        tables[name] = np.where(small_RV, np.int8(0), table_RV)
        dropped += int(small_RV.sum())
    return dataclasses.replace(weights, tables=tables), dropped
