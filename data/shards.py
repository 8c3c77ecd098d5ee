"""Token shards: documents as ids, packed into windows, in files that are mapped, not read.

A shard is a directory, written under a temporary name, sealed with a digest of every file, synced
and renamed, so that one which has its name is whole:

    tokens.npy           uint8, uint16 or uint32 [N], windows one after the other
    windows.npy          int64 [W + 1], where each window begins, and N
    places.npy           int64 [D, 3], (position in tokens, document, offset in it) of every piece
    heldout_tokens.npy   ids of the held-out documents, one after the other, each with a separator
    heldout.npy          int64 [H + 1], where each of them begins, and the end
    shard.json           counts of documents, bytes and tokens

A window is a number of whole documents, each followed by a separator; documents longer than a
window are cut. Training takes windows in an order of its own (see `streams`).
"""

import bisect
import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from int_lm import digest
from int_lm.errors import UserError
from tokenization.interface import Tokenizer

WINDOW = 1 << 16  # tokens of a window at most: what a stream reads before it moves elsewhere
OPEN_WINDOWS = 64  # windows that are filled at the same time
ARRAYS = ("tokens", "windows", "places", "heldout_tokens", "heldout")


@dataclass(frozen=True, eq=False)
class Shard:
    """Packed documents; the attributes are the files above, mapped or in memory."""

    tokens: np.ndarray
    windows: np.ndarray
    places: np.ndarray
    heldout_tokens: np.ndarray
    heldout: np.ndarray


def pack(
    documents: Sequence[np.ndarray], *, first: int, separator: int, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Lay documents out in windows: {"tokens", "windows", "places"}, as above.

    Best fit into at most `OPEN_WINDOWS` windows: a document goes where the least room is left
    that holds it. Every token of every document, and a separator after each piece, occurs once.

    Args:
      documents: arrays of ids of `dtype`.
      first: number of the first document.
    """
    windows: list[list[tuple[int, int, int]]] = []  # pieces (document, begin, end)
    rooms: list[tuple[int, int]] = []  # (room left, window) of the open ones, sorted
    for index, ids in enumerate(documents):
        for begin in range(0, max(1, len(ids)), WINDOW - 1):
            end = min(begin + WINDOW - 1, len(ids))
            size = end - begin + 1
            place = bisect.bisect_left(rooms, (size, -1))
            if place < len(rooms):
                room, window = rooms.pop(place)
            else:
                room, window = WINDOW, len(windows)
                windows.append([])
                if len(rooms) == OPEN_WINDOWS:
                    rooms.pop(0)
            windows[window].append((index, begin, end))
            bisect.insort(rooms, (room - size, window))
    count = sum(end - begin + 1 for window in windows for _, begin, end in window)
    tokens, places, starts = np.empty(count, dtype), [], []
    position = 0
    for window in windows:
        starts.append(position)
        for index, begin, end in window:
            places.append((position, first + index, begin))
            tokens[position : position + end - begin] = documents[index][begin:end]
            position += end - begin + 1
            tokens[position - 1] = separator
    return {
        "tokens": tokens,
        "windows": np.array([*starts, count], np.int64),
        "places": np.array(places, np.int64).reshape(-1, 3),
    }


def lay_out(
    train: Sequence[np.ndarray],
    heldout: Sequence[np.ndarray],
    *,
    first: int,
    tokenizer: Tokenizer,
) -> Shard:
    """A shard in memory, of documents as ids; `first` numbers those to train on."""
    separator = np.array([tokenizer.separator], tokenizer.dtype)
    parts = [part for ids in heldout for part in (ids, separator)]
    ends = np.cumsum([0] + [len(ids) + 1 for ids in heldout], dtype=np.int64)
    packed = pack(train, first=first, separator=tokenizer.separator, dtype=tokenizer.dtype)
    return Shard(
        heldout_tokens=np.concatenate([separator[:0], *parts]),
        heldout=ends,
        **packed,
    )


def write(shard: Shard, facts: Mapping[str, Any], directory: Path) -> None:
    """Write a shard and give it its name when it is whole and on the disk.

    Raises:
      OSError: the file system refused; nothing is left.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in ARRAYS:
            np.save(partial / f"{name}.npy", getattr(shard, name), allow_pickle=False)
        (partial / "shard.json").write_text(digest.canonical_json(facts) + "\n")
        digest.seal(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    digest.sync_directory(directory.parent)


def check(directory: Path) -> dict[str, Any]:
    """Compare a shard with its digests; returns its shard.json.

    Raises:
      UserError: a file is damaged or missing.
    """
    try:
        sealed = digest.check(directory)
    except digest.DamagedError as error:
        raise _damaged(directory, str(error)) from error
    if not sealed:
        raise _damaged(directory, f"{directory.name}/{digest.FILE_DIGESTS} is missing")
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / "shard.json").read_bytes())
    raise _damaged(directory, f"{directory.name}/shard.json cannot be read")


def load(directory: Path) -> Shard:
    """Map the files of a shard that `check` has found sound."""
    try:
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except ValueError as error:  # an empty file cannot be mapped
        raise _damaged(directory, str(error)) from error
    return Shard(**arrays)


def _damaged(directory: Path, problem: str) -> UserError:
    return UserError(
        f"the token shard {directory} is damaged: {problem}; delete that directory and run the "
        "same command, which makes it again"
    )
