"""Writes the token shards of a source, once: the first process that needs them does it.

If that process is killed, the next one continues at the first unfinished shard and writes the same
bytes. The shards of a source lie in `<data.shards>/<name>-<key>`. The key is a digest of all that
they depend on: the configuration, the tokenizer, and the names, sizes and times of the files. If
there are none of that key, shards of files with the same contents are taken over (`adopt`).
"""

import contextlib
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import adopt, hub, manifest, shards, split
from data.documents import Document, Notice, Position, Source, is_position
from data.manifest import Prepared
from data.sources import open_source
from data.tally import Tally
from int_lm import progress
from int_lm.config import DataConfig, MixtureConfig
from int_lm.errors import UserError, counted
from int_lm.files import atomic, digest, lock
from tokenization.interface import Tokenizer

CONTENTS = "contents.sha256"  # `Source.contents`, kept until all shards are finished
POSITION = ".position.json"  # of the source after a shard, kept until all are finished
ENCODED_AT_ONCE = 1 << 22  # bytes of text


def prepare(
    data: DataConfig, source: MixtureConfig, tokenizer: Tokenizer, *, say: Notice
) -> Prepared:
    """Find the shards of a source, or make those that are missing.

    Args:
      data: its holdout, document_bytes, shard_bytes and shards are used.
      source: one of `config.sources_of(data)`.
      say: called with one sentence about what was done or skipped.

    Raises:
      UserError: text that cannot be read or held out, a damaged shard, a full disk, or another
        process that is preparing the same source.
    """
    opened = open_source(source, data.document_bytes, notice=say)
    directory = directory_of(data, source, tokenizer, opened)
    if not manifest.is_complete(directory):  # complete shards can be read without the lock
        with writing(directory):
            pinned = pin(directory, source)
            reading = open_source(pinned, data.document_bytes, notice=say)
            facts = manifest.facts_of(data, pinned, tokenizer)
            contents = contents_of(directory, reading)
            if contents and (other := adopt.adopt(directory, facts, contents)):
                for position_file in directory.glob(f"*{POSITION}"):  # of an unfinished preparation
                    position_file.unlink()
                say(f"the text of {other} at another place or time; its token shards are used")
            else:

                def entries() -> dict[str, str]:
                    same = directory_of(data, source, tokenizer, opened) == directory
                    return {manifest.CONTENTS: contents} if contents and same else {}

                try:
                    make_shards(
                        directory, reading, data, tokenizer, facts, entries=entries, say=say
                    )
                except UserError:
                    if not any(directory.glob(f"*{POSITION}")):  # nothing to go on with
                        (directory / CONTENTS).unlink(missing_ok=True)
                    raise
            (directory / CONTENTS).unlink(missing_ok=True)
    return manifest.open_prepared(directory, source, tokenizer)


def directory_of(
    data: DataConfig, source: MixtureConfig, tokenizer: Tokenizer, opened: Source
) -> Path:
    """The directory of a source's shards. Its name holds a digest of all that they depend on."""
    facts = manifest.facts_of(data, source, tokenizer)
    key = digest.of_json([facts, opened.fingerprint()])
    return Path(data.shards) / f"{source.name}-{key[:16]}"


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Lock a directory of shards for this process, and remove it at the end if it is empty.

    Raises:
      HeldError: another process holds the lock.
      UserError: the file system refused.
    """
    try:
        with lock.hold(directory, "wait until it is done"):
            yield
    except OSError as error:
        raise UserError(
            f"cannot write token shards to {directory}: {error.strerror or error}; free some "
            "space or choose another --data.shards; what is finished is kept"
        ) from error


def pin(directory: Path, source: MixtureConfig) -> MixtureConfig:
    """Set the revision of a dataset of the hub, unless one is configured, to its newest one.

    The revision is saved in `directory`, so that a preparation that is continued uses the same.
    """
    if source.source != "hub" or source.revision:
        return source
    path = directory / "revision"
    if not path.exists():
        atomic.write(path, hub.newest_revision(source.path[0]).encode())
    return dataclasses.replace(source, revision=path.read_text())


def contents_of(directory: Path, source: Source) -> str | None:
    """`Source.contents`, which is kept in `directory` until all shards are finished."""
    path = directory / CONTENTS
    if path.exists():
        return path.read_text()
    with progress.bar("comparing, bytes", source.size()) as update:
        contents = source.contents(update)
    if contents:
        atomic.write(path, contents.encode())
    return contents


def make_shards(
    directory: Path,
    source: Source,
    data: DataConfig,
    tokenizer: Tokenizer,
    facts: dict[str, Any],
    *,
    start: Position = None,
    first: int = 0,
    most_bytes: int = 0,
    entries: Callable[[], dict[str, str]] = dict,
    say: Notice,
) -> None:
    """Write the shards that are missing, and then the manifest.

    Args:
      facts: of `manifest.facts_of`.
      start: position in the source at which to begin.
      first: number of the first training document.
      most_bytes: stop after the shard at which the tokens reach this many bytes (0: never). The
        manifest then has the position as `after`, and whether the source ended there as `last`.
      entries: called when all is read; more entries of the manifest.
    """
    if not is_position(start):
        raise UserError(
            f"the stage before {directory} is of an earlier version; delete {directory.parent} and "
            "run the same command"
        )
    position, done = _progress(directory, start)
    if done:
        say(f"going on in {directory} after {len(done)} finished shards")
    began, before = time.monotonic(), sum(shard["bytes"] for shard in done)
    with progress.bar("preparing, bytes", source.size()) as update:
        update(before)
        finished = bool(done) and (done[-1]["last"] or _full(done, tokenizer, most_bytes))
        groups = iter(()) if finished else _grouped(source.read(position), data.shard_bytes)
        for documents, after, last in groups:
            path = directory / manifest.shard_name(len(done))
            whole = last and not done and not first
            train, heldout = _sides(documents, data.holdout, whole=whole)
            atomic.write(path.with_name(f"{path.name}{manifest.DOCUMENTS}"), _hashes(train))
            if last:
                after = {"at": [], **(after or {}), "tally": source.tally.state()}
            if path.exists():  # the position after it was lost
                counts = shards.check(path)
            else:
                shard = shards.lay_out(
                    _encoded(train, tokenizer, update),
                    _encoded(heldout, tokenizer, update),
                    first=first + sum(shard["documents"] for shard in done),
                    tokenizer=tokenizer,
                )
                counts = {
                    "documents": len(train),
                    "bytes": sum(len(document.text) for document in train),
                    "tokens": len(shard.tokens),
                    "windows": len(shard.windows) - 1,
                    "heldout_documents": len(heldout),
                    "heldout_bytes": sum(len(document.text) for document in heldout),
                    "heldout_tokens": len(shard.heldout_tokens),
                    "last": last,
                }
                position_file = directory / f"{path.name}{POSITION}"  # before the shard, which
                atomic.write(  # counts only with it
                    position_file, digest.canonical_json(after).encode()
                )
                shards.write(shard, counts, path)
            done.append(counts)
            position = after
            if _full(done, tokenizer, most_bytes):
                break
    found = position["tally"] if position else {}
    made = manifest.manifest_of(directory, facts | entries(), done) | (
        {"tally": found} if found else {}
    )
    if most_bytes:
        after = json.loads(digest.canonical_json(position))  # as its file would give it
        made |= {"after": after, "last": done[-1]["last"]}
    totals = made["totals"]
    for side, key in (("be held out", "heldout_documents"), ("train on", "documents")):
        if totals[key] == 0 and not first:
            whole = totals["documents"] + totals["heldout_documents"]
            raise UserError(
                f"of {counted(whole, 'document')} none is left to {side}; change --data.holdout"
            )
    for position_file in sorted(directory.glob(f"*{POSITION}")):  # the last shard's at the end:
        position_file.unlink()  # it has the tally
    manifest.write(directory, made)
    if not start or found != start["tally"]:
        Tally(found=found).tell(say)
    seconds = max(time.monotonic() - began, 1e-9)
    size, tokens = totals["bytes"] + totals["heldout_bytes"], totals["tokens"]
    say(
        f"prepared {directory}: to train on {counted(totals['documents'], 'document')}, "
        f"{totals['bytes']:,} bytes, {counted(tokens, 'token')} "
        f"({totals['bytes'] / max(1, tokens):.2f} bytes a token); held out "
        f"{counted(totals['heldout_documents'], 'document')}, {totals['heldout_bytes']:,} bytes; "
        f"{(size - before) / seconds / 1e6:.1f} MB/s"
    )


def _progress(directory: Path, start: Position) -> tuple[Position, list[dict[str, Any]]]:
    """The position to go on from, and the contents of the finished shards before it.

    The position is not part of the shards: a reader that continued from another position may write
    the same position in another form.
    """
    done: list[dict[str, Any]] = []
    while (directory / manifest.shard_name(len(done))).exists():
        done.append(shards.check(directory / manifest.shard_name(len(done))))
    if not done:
        return start, done
    path = directory / f"{manifest.shard_name(len(done) - 1)}{POSITION}"
    with contextlib.suppress(FileNotFoundError, ValueError):
        position = json.loads(path.read_bytes())
        if position is not None and is_position(position):
            return position, done
    return start, []  # read all of it again, and keep what is finished


def _full(done: list[dict[str, Any]], tokenizer: Tokenizer, most_bytes: int) -> bool:
    tokens = sum(shard["tokens"] for shard in done)
    return 0 < most_bytes <= tokens * tokenizer.dtype.itemsize


def _grouped(
    documents: Iterator[tuple[Document, Position]], size: int
) -> Iterator[tuple[list[Document], Position, bool]]:
    """(documents of a shard, the position after them, whether they are the last ones)."""
    group: list[Document] = []
    held, after = 0, None
    for document, position in documents:
        if held >= size and after is not None and document.text:
            yield group, after, False
            group, held = [], 0
        if document.text:
            group.append(document)
            held += len(document.text)
        after = position
    yield group, after, True


def _sides(
    documents: Sequence[Document], holdout: float, *, whole: bool
) -> tuple[Sequence[Document], Sequence[Document]]:
    """(training documents, held-out documents); `whole`: `documents` are all of the source."""
    if whole:
        sides = split.split(documents, holdout)
        return sides.train, sides.heldout
    held = [split.is_heldout(document.text, holdout) for document in documents]
    pairs = list(zip(documents, held, strict=True))
    return [d for d, out in pairs if not out], [d for d, out in pairs if out]


def _hashes(documents: Sequence[Document]) -> bytes:
    """A .npy file of the documents' hashes, sorted, for `known.count_trained`."""
    hashes = np.array(sorted(split.hash_of(document.text) for document in documents), np.uint64)
    file = io.BytesIO()
    np.lib.format.write_array(file, hashes, allow_pickle=False)
    return file.getvalue()


def _encoded(
    documents: Sequence[Document], tokenizer: Tokenizer, update: Callable[[int], None]
) -> list[np.ndarray]:
    """Ids of every document, encoded on all cores."""
    ids: list[np.ndarray] = []
    while len(ids) < len(documents):
        texts: list[bytes] = []
        size = 0
        while len(ids) + len(texts) < len(documents) and size < ENCODED_AT_ONCE:
            texts.append(documents[len(ids) + len(texts)].text)
            size += len(texts[-1])
        ids += tokenizer.encode_all(texts, threads=os.cpu_count() or 1)
        update(size)
    return ids
