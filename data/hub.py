"""Documents from a dataset of the Hugging Face hub: a text field of every row.

`datasets` reads it in streaming mode, which needs memory for one block of rows only. The type that
the dataset declares for the field, and the type of the values read, must both be text.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from data.documents import Document, Notice, Position
from data.fields import no_field, paths_of
from data.parquet_file import inner
from data.tally import NO_TEXT, ZERO_BYTE, Tally
from int_lm.config import SourceConfig
from int_lm.errors import UserError

BATCH = 256  # rows read at once; a position lies between two batches
TRIES, FIRST_WAIT = 8, 1.0  # if the hub does not answer; seconds, doubled after every try
NETWORK = {"aiohttp", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}


class Hub:
    """A dataset of the hub, at a pinned revision. A place is [state of `datasets`]."""

    def __init__(self, source: SourceConfig, notice: Notice | None = None) -> None:
        self._source, self._notice, self.tally = source, notice, Tally()
        self._sleep: Callable[[float], None] = time.sleep

    def fingerprint(self) -> list[str]:
        """See `Source.fingerprint`."""
        source = self._source
        return [source.path[0], source.subset, source.split, source.revision]

    def size(self) -> None:
        """See `Source.size`."""
        return None

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """See `Source.read`."""
        source, failures = self._source, 0
        name = source.path[0]
        while True:
            self.tally = Tally(found=position and position["tally"])
            try:
                dataset = _datasets().load_dataset(
                    name,
                    source.subset or None,
                    split=source.split,
                    revision=source.revision or None,
                    streaming=True,
                )
                _check_declared(dataset.features, source.field, name)
                dataset = dataset.with_format("arrow")
                if position is not None:  # a position of this object
                    dataset.load_state_dict(position["at"][0])
                for texts, state in _batches(dataset, source.field):
                    after = None
                    for number, text in enumerate(texts, start=1):
                        if not text or "\0" in text:
                            self.tally.add(ZERO_BYTE if text else NO_TEXT, name)
                            text = ""
                        if number == len(texts):
                            after = {"at": [state], "tally": self.tally.state()}
                        yield Document(name, text.encode()), after
                    position, failures = after, 0
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


def _datasets() -> Any:
    """The library `datasets`, without its own messages: errors are reported once, by `Hub`."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _check_declared(features: Any, field: str, name: str) -> None:
    """Check that the dataset declares the field to be text.

    Raises:
      UserError: there is no such field, or its type is not text.
    """
    import datasets

    if features is None:  # known only when the first rows have come
        return
    for path in paths_of(field):
        kind: Any = features
        for key in path:
            kind = kind.get(key) if isinstance(kind, dict) else None
        if kind is not None:
            if not (isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string")):
                raise _no_text(field, name, getattr(kind, "dtype", None) or type(kind).__name__)
            return
    raise no_field(name, field, list(features))


def _batches(dataset: Any, field: str) -> Iterator[tuple[list[str | None], Any]]:
    """(values of `field`, state of `datasets` after them) of every batch of rows."""
    import pyarrow

    for batch in dataset.iter(batch_size=BATCH):
        path = next((path for path in paths_of(field) if path[0] in batch.column_names), None)
        if path is None:
            raise KeyError(field, batch.column_names)
        column = batch.column(path[0])
        if len(path) > 1:
            if not pyarrow.types.is_struct(column.type):
                raise TypeError(str(column.type))
            column = inner(column, path[1:])
        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise TypeError(str(column.type))
        yield column.to_pylist(), dataset.state_dict()


def _no_text(field: str, where: str, kind: str) -> UserError:
    return UserError(
        f"field {field!r} of {where} holds {kind}, not text; name another with --data.field"
    )


def _may_pass(error: Exception) -> bool:
    """Whether to try again: true if the network or the server failed, not the request."""
    import huggingface_hub.errors as hub

    if isinstance(error, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        return False
    if _on_own_disk(error):
        return False
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(modules & NETWORK)


def _on_own_disk(error: Exception) -> bool:
    """Whether the error is about a file of this machine: `datasets` keeps a cache there."""
    return isinstance(error, OSError) and error.errno is not None and bool(error.filename)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse(error: Exception, where: str, source: SourceConfig) -> NoReturn:
    """Raise a UserError of one sentence for an error of `datasets` or of its readers."""
    if isinstance(error, KeyError) and len(error.args) == 2:
        raise no_field(where, source.field, error.args[1]) from error
    if isinstance(error, TypeError) and len(error.args) == 1:
        raise _no_text(source.field, where, error.args[0]) from error
    if isinstance(error, OSError) and _on_own_disk(error):
        raise UserError(
            f"cannot keep files of the hub at {error.filename}: {error.strerror}; set HF_HOME to a "
            "directory that can be written to"
        ) from error
    raise UserError(
        f"cannot read {where} from the hub: {_first_line(error)}; name another dataset, or local "
        "files with --data.source parquet or json"
    ) from error
