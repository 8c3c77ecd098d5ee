"""Documents from records: a text field of JSON lines, of Parquet, or of a dataset of the hub.

All are read by `datasets` in streaming mode, which needs memory for one block of records only.
"""

import glob
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from data.documents import Document, Notice, Position
from data.text import ListedFiles, printable, walk
from int_lm.config import SourceConfig
from int_lm.errors import UserError

BATCH = 256  # records read at once; a position lies between two batches
TRIES, FIRST_WAIT = 8, 1.0  # of a hub that does not answer: seconds, doubled at every try
NETWORK = {"aiohttp", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
SUFFIXES = {
    "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    "parquet": (".parquet",),
}


class Files(ListedFiles):
    """Files in the order named; of directories and globs those of the format, sorted.

    A position is [file, state of `datasets` in it or None].
    """

    def __init__(self, source: SourceConfig, notice: Notice | None = None) -> None:
        self._source, self._notice = source, notice
        files = [file for path in source.path for file in _expand(path, source.source)]
        self.listed = [(printable(file), file) for file in files]

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        first, state = position or (0, None)
        skipped = _Skipped(self._notice)
        for index in range(first, len(self.listed)):
            name, path = self.listed[index]
            try:
                dataset = self._load(path)
                if state is not None:
                    dataset.load_state_dict(state)
                for texts, after in _batches(dataset, self._source.field):
                    yield from _documents(texts, name, [index, after], skipped)
            except UserError:
                raise
            except Exception as error:
                _refuse(error, name, self._source)
            state = None
            yield Document("", b""), [index + 1, None]
        skipped.tell()

    def _load(self, path: str) -> Any:
        if os.stat(path).st_size == 0:
            raise UserError(f"{printable(path)} is empty; name a file that holds records")
        return (
            _datasets()
            .load_dataset(
                self._source.source,
                data_files={"train": glob.escape(path)},
                split="train",
                streaming=True,
            )
            .with_format("arrow")
        )


class Hub:
    """A dataset of the hub, at a pinned revision. A position is the state of `datasets`."""

    def __init__(self, source: SourceConfig, notice: Notice | None = None) -> None:
        self._source, self._notice = source, notice
        self._sleep: Callable[[float], None] = time.sleep

    def fingerprint(self) -> list[str]:
        source = self._source
        return [source.path[0], source.subset, source.split, source.revision]

    def size(self) -> None:
        return None

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        source, failures = self._source, 0
        name = source.path[0]
        skipped = _Skipped(self._notice)
        while True:
            try:
                dataset = (
                    _datasets()
                    .load_dataset(
                        name,
                        source.subset or None,
                        split=source.split,
                        revision=source.revision or None,
                        streaming=True,
                    )
                    .with_format("arrow")
                )  # before the position: it belongs to this very object
                if position is not None:
                    dataset.load_state_dict(position)
                for texts, after in _batches(dataset, source.field):
                    yield from _documents(texts, name, after, skipped)
                    position, failures = after, 0
                skipped.tell()
                return
            except UserError:
                raise
            except Exception as error:
                failures += 1
                if not _may_pass(error):
                    _refuse(error, name, source)
                if failures == TRIES:
                    raise UserError(
                        f"the hub did not give {name} in {TRIES} tries ({_first_line(error)}); "
                        "check the connection, or name local files with --data.source parquet; "
                        "what is prepared is kept"
                    ) from error
                wait = FIRST_WAIT * 2 ** (failures - 1)
                if self._notice:
                    self._notice(f"the hub failed ({_first_line(error)}); again in {wait:g} s")
                self._sleep(wait)


def newest_revision(name: str) -> str:
    """The commit that a dataset of the hub has now.

    Raises:
      UserError: the hub does not answer, or has no such dataset.
    """
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name).sha)
    except Exception as error:
        raise UserError(
            f"the hub did not say which revision {name} has ({_first_line(error)}); check the name "
            "and the connection, name a --data.revision, or read local files with --data.source "
            "parquet"
        ) from error


class _Skipped:
    """Counts the records that hold no text, and tells of them once."""

    def __init__(self, notice: Notice | None) -> None:
        self._notice, self._count, self._first = notice, 0, ""

    def add(self, name: str) -> None:
        self._first = self._first or name
        self._count += 1

    def tell(self) -> None:
        if self._count and self._notice:
            self._notice(
                f"skipped {self._count} records without text or with a zero byte in it "
                f"(first: {self._first})"
            )


def _datasets() -> Any:
    """The library, made silent: what goes wrong is told once, by us."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _batches(dataset: Any, field: str) -> Iterator[tuple[list[Any], Any]]:
    """(values of `field`, position after them) for batch after batch of records."""
    for batch in dataset.iter(batch_size=BATCH):
        if field not in batch.column_names:
            raise KeyError(field, batch.column_names)
        yield batch.column(field).to_pylist(), dataset.state_dict()


def _documents(
    texts: list[Any], name: str, after: Position, skipped: _Skipped
) -> Iterator[tuple[Document, Position]]:
    """The documents of a batch: the last one has the position after it, the others have None."""
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        if text is not None and not isinstance(text, str):
            raise TypeError(type(text).__name__)
        if not text or "\0" in text:
            skipped.add(name)
            yield Document(name, b""), after if last else None
        else:
            yield Document(name, text.encode()), after if last else None


def _expand(path: str, kind: str) -> list[str]:
    """The files that a path means: itself, those of a directory, or those that match a glob."""
    if os.path.isdir(path):
        found = [os.path.join(path, file) for file in walk(path) if file.endswith(SUFFIXES[kind])]
    elif os.path.exists(path):
        found = [path]
    else:
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not found:
        raise UserError(
            f"no {kind} files at {printable(path)}; name a file, a directory or a pattern such as "
            f"'corpus/*{SUFFIXES[kind][0]}'"
        )
    return found


def _may_pass(error: Exception) -> bool:
    """Whether to try again: the network or the server failed, not the request."""
    import huggingface_hub.errors as hub

    if isinstance(error, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        return False
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(modules & NETWORK)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse(error: Exception, where: str, source: SourceConfig) -> NoReturn:
    """One sentence for whatever `datasets` and its readers raise."""
    if isinstance(error, KeyError) and len(error.args) == 2:
        known = ", ".join(error.args[1])
        raise UserError(
            f"{where} has no field {source.field!r}, it has {known}; name the one that holds the "
            "text with --data.field"
        ) from error
    if isinstance(error, TypeError) and len(error.args) == 1:
        raise UserError(
            f"field {source.field!r} of {where} holds {error}, not text; name another with "
            "--data.field"
        ) from error
    if isinstance(error, UnicodeDecodeError):
        raise UserError(
            f"{where} is not UTF-8 ({error.reason}); convert it or leave it out"
        ) from error
    raise UserError(
        f"cannot read {where} as {source.source}: {_first_line(error)}; repair the file or leave "
        "it out"
    ) from error
