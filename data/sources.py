"""Pick the reader of the source that a configuration names."""

import dataclasses
import itertools
import os
from collections.abc import Sequence

from data import compressed, formats
from data.documents import Document, Notice, Source
from data.hub import Hub
from data.records import Files
from data.text import StandardLibrary, TextFiles
from int_lm.config import DataConfig, SourceConfig


def open_source(
    source: SourceConfig, document_bytes: int, *, notice: Notice | None = None
) -> Source:
    """The source that a configuration names. Only file names are read yet.

    Args:
      document_bytes: text files longer than this are cut (`text.cut`); 0 never cuts.
      notice: called with one sentence when the hub does not answer.

    Raises:
      UserError: there is no file or dataset of that name.
    """
    if source.source == "stdlib":
        return StandardLibrary()
    if source.source == "text":
        return TextFiles(source.path, document_bytes)
    if source.source == "hub":
        return Hub(source, notice)
    return Files(source)


def read_documents(data: DataConfig, *, notice: Notice | None = None) -> list[Document]:
    """Every document of `data`'s own source (not of its mixture). They must fit into memory.

    Args:
      data: its source and `document_bytes` are used; the same files give the same list everywhere.
      notice: called with one sentence about each kind of thing that is left out.

    Raises:
      UserError: a source that is missing, unreadable, empty or not text.
    """
    source = open_source(data, data.document_bytes, notice=notice)
    documents = [document for document, _ in source.read() if document.text]
    source.tally.tell(notice)
    return documents


def read_files(
    paths: Sequence[str], data: DataConfig, *, notice: Notice | None = None
) -> list[Document]:
    """Every document of files. Name and contents of each file tell its format.

    Args:
      paths: files, directories, or patterns.
      data: its field, skip_damaged and document_bytes are used.

    Raises:
      UserError: the errors of `read_documents`.
    """
    documents = []
    for kind, group in itertools.groupby(paths, key=_kind):
        own = dataclasses.replace(data, source=kind, path=tuple(group), mixture=())
        documents += read_documents(own, notice=notice)
    return documents


def _kind(path: str) -> str:
    """The source that reads a path. Of a directory: the format of all its files, by name."""
    if os.path.isdir(path):
        kinds = {formats.kind_by_name(file) for _, _, files in os.walk(path) for file in files}
        return (kinds.pop() if len(kinds) == 1 else None) or "text"
    named = formats.kind_by_name(path)
    if named or not os.path.isfile(path):
        return named or "text"
    try:
        with compressed.open_file(path)[0] as file:
            kind = formats.kind_of(file.read(formats.HEAD_BYTES))
    except compressed.ERRORS:  # its reader says what is wrong
        return "text"
    return kind if kind in ("json", "parquet") else "text"
