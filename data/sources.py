"""The source that a configuration names: the reader that fits is picked here."""

from data import records
from data.documents import Document, Notice, Source
from data.text import StandardLibrary, TextFiles
from int_lm.config import DataConfig, SourceConfig


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
        return StandardLibrary()
    if source.source == "text":
        return TextFiles(source.path, document_bytes, notice)
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
