"""Sources: named texts in an order that no file system decides, read one by one from any position.

A source is read as a stream, so that its size is bounded by nothing; `read_documents` collects a
small one. Text is kept as it is (nothing is normalised), but has no zero bytes, since byte 0
separates documents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from int_lm.config import DataConfig, SourceConfig

Notice = Callable[[str], None]
Position = Any  # a JSON value; None stands before the first document


@dataclass(frozen=True)
class Document:
    """One text: `text` is UTF-8, not empty and without zero bytes; `name` tells where it is from.

    `name` is the file's path, for the standard library within it, followed by `#0`, `#1`, ...
    where a long file was cut, or by the number of the record.
    """

    name: str
    text: bytes


class Source(Protocol):
    """Something that documents are read from, in an order of its own that never changes."""

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """Documents after `position`, each with a position to go on from after it.

        Records are read in batches: within one the position is None, and where the last record
        of a batch holds no text, an empty document carries the position.

        Raises:
          UserError: what cannot be read, names the place and says what to do.
        """
        ...

    def fingerprint(self) -> Any:
        """A JSON value that changes where the text may have: found without reading any."""
        ...

    def size(self) -> int | None:
        """Bytes there are to read, as stored; None where that is not known."""
        ...


def open_source(
    source: SourceConfig, document_bytes: int, *, notice: Notice | None = None
) -> Source:
    """The source that a configuration names; nothing of it is read yet but file names.

    Args:
      document_bytes: text files longer than this are cut (`text.cut`); 0 never cuts.
      notice: called with one sentence about what is skipped.

    Raises:
      UserError: nothing there.
    """
    if source.source == "stdlib":
        from data.text import StandardLibrary

        return StandardLibrary()
    if source.source == "text":
        from data.text import TextFiles

        return TextFiles(source.path, document_bytes, notice)
    from data import records

    if source.source == "hub":
        return records.Hub(source, notice)
    return records.Files(source, notice)


def read_documents(data: DataConfig, *, notice: Notice | None = None) -> list[Document]:
    """Every document of `data`'s own source (not of its mixture), for what fits into memory.

    Args:
      data: its source and `document_bytes` are used; the same files give the same list everywhere.
      notice: called with one sentence about what is skipped.

    Raises:
      UserError: a source that is missing, unreadable, empty or not text.
    """
    source = open_source(data, data.document_bytes, notice=notice)
    return [document for document, _ in source.read() if document.text]
