"""Arrays in files: a slice is what NumPy would give, and only the file that was there is read."""

import os
from pathlib import Path

import numpy as np
import pytest

from data import arrays
from int_lm.errors import UserError
from int_lm.files import untrusted


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_slices_of_a_stored_array(dtype: type, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(arrays, "READ_AT_ONCE", 100)
    whole = np.random.default_rng(0).integers(0, 250, 1234).astype(dtype)
    np.save(tmp_path / "ids.npy", whole)
    stored = arrays.Stored(tmp_path / "ids.npy")
    assert len(stored) == len(whole) and stored.dtype == whole.dtype
    for part in (slice(0, 7), slice(1200, 2000), slice(5, 5), slice(9, 3), slice(-3, None)):
        assert stored[part].tolist() == whole[part].tolist()
    assert np.concatenate(list(arrays.blocks(stored))).tolist() == whole.tolist()
    np.testing.assert_array_equal(arrays.mapped(tmp_path / "ids.npy"), whole)


def test_a_file_is_read_to_the_end_though_it_is_gone_and_no_other_in_its_place(tmp_path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(9, dtype=np.uint8))
    stored = arrays.Stored(path)
    assert stored[2:4].tolist() == [2, 3]
    path.rename(tmp_path / "elsewhere.npy")
    np.save(path, np.zeros(9, np.uint8))
    assert stored[4:6].tolist() == [4, 5]
    arrays._opened.cache_clear()  # as if many others had been read since
    with pytest.raises(UserError, match="another file than it was; run the same command again"):
        stored[0:2]
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*ids\.npy any more: No such file"):
        stored[0:2]


@pytest.mark.parametrize("size", [140, 131, 0])
def test_a_file_that_was_cut_is_not_read_as_if_it_held_less(size: int, tmp_path: Path) -> None:
    """At an entry, within one, and before the first one."""
    np.save(tmp_path / "ids.npy", np.arange(9, dtype=np.uint16))
    stored = arrays.Stored(tmp_path / "ids.npy")
    os.truncate(tmp_path / "ids.npy", size)
    with pytest.raises(UserError, match=r"ids\.npy has become shorter since .*; delete "):
        stored[0:9]


def test_rows_are_not_stored_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((2, 3), np.int64))
    with pytest.raises(untrusted.MalformedError, match="rows"):
        arrays.Stored(tmp_path / "rows.npy")
