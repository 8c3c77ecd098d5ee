"""Documents from a dataset of the Hugging Face hub: a text field of every record.

Files of JSON and Parquet are read as local ones are (`hub_files`). Datasets of other files are read
by `datasets` in streaming mode, which needs memory for one block of rows only. The type that a
dataset declares for the field, and the type of the values read, must both be text.
"""

from collections.abc import Callable, Iterator
from typing import Any

from data import hub_files
from data.documents import Document, Notice, Position
from data.fields import no_field, paths_of
from data.hub_files import HubFiles
from data.parquet_file import inner
from data.patience import Patience, first_line
from data.tally import NO_TEXT, ZERO_BYTE, Tally
from int_lm.config import SourceConfig
from int_lm.errors import UserError

BATCH = 256  # rows read at once; a position lies between two batches


class Hub:
    """A dataset of the hub, at a pinned revision.

    A place is that of `HubFiles`, or [state of `datasets`].
    """

    def __init__(self, source: SourceConfig, notice: Notice | None = None) -> None:
        self._source, self._notice, self.tally = source, notice, Tally()
        self._found: Any = None
        self.patience = Patience(source.path[0], notice)

    def fingerprint(self) -> list[str]:
        """See `Source.fingerprint`."""
        source = self._source
        return [source.path[0], source.subset, source.split, source.revision]

    def contents(self, update: Callable[[int], None]) -> None:
        """See `Source.contents`: the revision says which text it is."""
        return None

    def size(self) -> int | None:
        """See `Source.size`."""
        opened = self._opened()
        return opened.size() if isinstance(opened, HubFiles) else None

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """See `Source.read`."""
        opened = self._opened()
        of_files = isinstance(opened, HubFiles)
        if position is not None and of_files != isinstance(position["at"][0], int):
            raise UserError(
                f"an earlier version, which read {self._source.path[0]} in another way, began to "
                "prepare it; delete its unfinished directory in data.shards and run the same "
                "command"
            )
        if not of_files:
            yield from self._read_by_datasets(opened, position)
            return
        for document, after in opened.read(position):
            self.tally = opened.tally
            yield document, after
        self.tally = opened.tally

    def _opened(self) -> Any:
        """The files of the dataset, or what `datasets` reads it with."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def _find(self) -> Any:
        source = self._source
        builder = self.patience(
            lambda: _datasets().load_dataset_builder(
                source.path[0], source.subset or None, revision=source.revision or None
            )
        )
        _check_declared(builder.info.features, source.field, source.path[0])
        kind = hub_files.kind_of(builder, source.split)
        if kind:
            urls = hub_files.files_of(builder, source.split)
            return HubFiles(source, kind, urls, self.patience)
        hub_files.keep_texts_of_csv(builder, source.field)
        if hub_files.is_json(builder) and self._notice:
            self._notice(
                f"{source.path[0]} has JSON in archives or with settings of its own, which the "
                "library datasets reads by guessing types: texts that look like dates may change"
            )
        return builder

    def _read_by_datasets(
        self, builder: Any, position: Position
    ) -> Iterator[tuple[Document, Position]]:
        source, name = self._source, self._source.path[0]
        while True:
            self.tally = Tally(found=position and position["tally"])
            try:
                dataset = builder.as_streaming_dataset(split=source.split)
                _check_declared(dataset.features, source.field, name)
                dataset = dataset.with_format("arrow")
                if position is not None:  # a position of this object
                    dataset.load_state_dict(position["at"][0])
                for texts, state in _batches(dataset, source.field, name):
                    after = None
                    for number, text in enumerate(texts, start=1):
                        if not text or "\0" in text:
                            self.tally.add(ZERO_BYTE if text else NO_TEXT, name)
                            text = ""
                        if number == len(texts):
                            after = {"at": [state], "tally": self.tally.state()}
                        yield Document(name, text.encode()), after
                    position = after
                    self.patience.succeeded()
                return
            except UserError:
                raise
            except Exception as error:
                self.patience.failed(error)


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
            f"the hub did not say which revision {name} has ({first_line(error)}); check the name "
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


def _batches(dataset: Any, field: str, name: str) -> Iterator[tuple[list[str | None], Any]]:
    """(values of `field`, state of `datasets` after them) of every batch of rows.

    Raises:
      UserError: there is no such field, or it does not hold text.
    """
    import pyarrow

    for batch in dataset.iter(batch_size=BATCH):
        path = next((path for path in paths_of(field) if path[0] in batch.column_names), None)
        if path is None:
            raise no_field(name, field, batch.column_names)
        column = batch.column(path[0])
        if len(path) > 1:
            if not pyarrow.types.is_struct(column.type):
                raise _no_text(field, name, str(column.type))
            column = inner(column, path[1:])
        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise _no_text(field, name, str(column.type))
        yield column.to_pylist(), dataset.state_dict()


def _no_text(field: str, where: str, kind: str) -> UserError:
    return UserError(
        f"field {field!r} of {where} holds {kind}, not text; name another with --data.field"
    )
