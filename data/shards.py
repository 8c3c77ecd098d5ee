"""Token shards: documents as ids, packed into windows, in files.

A shard is a directory. It is written under a temporary name with a digest of every file, synced and
then renamed, so that a shard with its final name is complete:

    tokens.npy           uint8, uint16 or uint32 [N], windows one after the other
    windows.npy          int64 [W + 1], where each window begins, and N
    places.npy           int64 [D, 3], (position in tokens, document, offset in it) of every piece
    heldout_tokens.npy   ids of the held-out documents, one after the other, each with a separator
    heldout.npy          int64 [H + 1], where each of them begins, and the end
    shard.json           `COUNTS` of documents, bytes and tokens, and whether it is the last one

A window is a number of whole documents, each followed by a separator; documents longer than a
window are cut. Training takes windows in an order of its own (see `streams`).
"""

import bisect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.arrays import Stored, blocks, mapped
from int_lm.errors import UserError
from int_lm.files import atomic, digest, untrusted
from tokenization.interface import Tokenizer

WINDOW = 1 << 16  # tokens of a window, at most; then a stream moves to another window
OPEN_WINDOWS = 64  # windows that are filled at the same time
ARRAYS = ("tokens", "windows", "places", "heldout_tokens", "heldout")
COUNTS = (
    "documents",
    "bytes",
    "tokens",
    "windows",
    "heldout_documents",
    "heldout_bytes",
    "heldout_tokens",
)


@dataclass(frozen=True, eq=False)
class Shard:
    """Packed documents. The attributes are the arrays of the files above.

    Of a shard that `load` returns, ids are read where they are asked for, and the rest is mapped.
    """

    tokens: np.ndarray | Stored
    windows: np.ndarray
    places: np.ndarray
    heldout_tokens: np.ndarray | Stored
    heldout: np.ndarray


def pack(
    documents: Sequence[np.ndarray], *, first: int, separator: int, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Lay documents out in windows: the arrays {"tokens", "windows", "places"} of a shard.

    At most `OPEN_WINDOWS` windows are open. A document goes into the open window with the least
    room that still holds it (best fit). Every token of every document, and a separator after each
    piece, occurs once.

    Args:
      documents: arrays of ids of `dtype`.
      first: number of the first document.
      separator: the id that follows each piece.
      dtype: of the ids.
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
    """Write a shard, and give it its final name when all of it is on the disk.

    Raises:
      OSError: the file system refused; no partial shard is left.
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
    atomic.sync_directory(directory.parent)


def link(shard: Path, directory: Path) -> None:
    """Make `directory` the same shard as `shard`, in the same room on the disk where it can.

    Raises:
      OSError: the file system refused; no partial shard is left.
      UserError: `shard` is damaged.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(shard, partial, copy_function=atomic.link)
        check(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic.sync_directory(directory.parent)


def check(directory: Path) -> dict[str, Any]:
    """Compare a shard with its digests; returns its shard.json.

    Raises:
      UserError: a file is damaged or missing.
    """
    try:
        sealed = digest.check(directory)
        facts = untrusted.read_json(
            directory / "shard.json", untrusted.METADATA_BYTES, inside=directory
        )
    except (digest.DamagedError, untrusted.MalformedError, FileNotFoundError) as error:
        raise _damaged(directory, str(error)) from error
    if not sealed:
        raise _damaged(directory, f"{directory.name}/{digest.FILE_DIGESTS} is missing")
    if not has_counts(facts) or type(facts.get("last")) is not bool:
        raise _damaged(directory, f"{directory.name}/shard.json lacks counts")
    return facts


def has_counts(value: Any) -> bool:
    """Whether a JSON value is an object with every one of `COUNTS`, none of them negative."""
    return isinstance(value, dict) and all(
        type(value.get(key)) is int and value[key] >= 0 for key in COUNTS
    )


def load(directory: Path, counts: Mapping[str, Any], tokenizer: Tokenizer) -> Shard:
    """Open the files of a shard that `check` has found sound.

    Digests do not show who made a file: a forged shard may have correct ones. So everything that
    is later used as an index is compared with the sizes here.

    Args:
      counts: `COUNTS` of the shard, as the manifest has them.
      tokenizer: the shard must hold ids of it.

    Raises:
      UserError: a file that is no array, or arrays that do not fit each other or the arguments.
    """
    try:
        files = {name: directory / f"{name}.npy" for name in ARRAYS}
        shard = Shard(
            tokens=Stored(files["tokens"]),
            windows=mapped(files["windows"]),
            places=mapped(files["places"]),
            heldout_tokens=Stored(files["heldout_tokens"]),
            heldout=mapped(files["heldout"]),
        )
        _check_layout(shard, tokenizer)
        for key, size in (
            ("tokens", len(shard.tokens)),
            ("windows", len(shard.windows) - 1),
            ("heldout_documents", len(shard.heldout) - 1),
            ("heldout_tokens", len(shard.heldout_tokens)),
        ):
            if counts[key] != size:
                raise untrusted.MalformedError(f"it holds {size} {key}, not {counts[key]}")
    except (untrusted.MalformedError, FileNotFoundError) as error:
        raise _damaged(directory, str(error)) from error
    return shard


def _check_layout(shard: Shard, tokenizer: Tokenizer) -> None:
    """Refuse ids that the tokenizer does not have, and places outside the tokens."""
    for ids, starts, widest in (
        (shard.tokens, shard.windows, WINDOW),
        (shard.heldout_tokens, shard.heldout, len(shard.heldout_tokens)),
    ):
        sound = ids.dtype == tokenizer.dtype
        sound = sound and all(int(some.max()) < tokenizer.vocab_size for some in blocks(ids))
        if not sound:
            raise untrusted.MalformedError("it holds ids that are not the tokenizer's")
        sound = starts.ndim == 1 and starts.dtype == np.int64 and len(starts) > 0
        if not sound or not _increases(starts, len(ids) + 1, widest) or starts[-1] != len(ids):
            raise untrusted.MalformedError("its parts do not lie one after the other")
    places = shard.places
    sound = places.ndim == 2 and places.shape[1] == 3 and places.dtype == np.int64
    sound = sound and (len(places) > 0) == (len(shard.tokens) > 0)
    sound = sound and int(places.min(initial=0)) >= 0
    if not sound or not _increases(places[:, 0], len(shard.tokens), len(shard.tokens)):
        raise untrusted.MalformedError("its documents do not lie in its tokens")


def _increases(starts: np.ndarray, end: int, widest: int) -> bool:
    """Whether int64 `starts` begin with 0, stay below `end`, and grow by 1 to `widest`."""
    if len(starts) == 0:
        return True
    if starts[0] != 0 or starts.min() < 0 or starts.max() >= end:
        return False
    steps = np.diff(starts)
    return bool((steps > 0).all() and (steps <= widest).all())


def _damaged(directory: Path, problem: str) -> UserError:
    return UserError(
        f"the token shard {directory} is damaged: {problem}; delete that directory and run the "
        "same command, which makes it again"
    )
