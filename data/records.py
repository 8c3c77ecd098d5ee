"""Documents from files of records: a text field of JSON files, or of Parquet.

Records are read one by one, and only the requested field of each. If the field is not text, the
record is damaged. Each record is judged alone: other records have no effect.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from msgspec import UNSET

from data.compressed import Opener
from data.documents import Document, Position
from data.fields import OTHER_FIELD, Problem, no_field
from data.json_file import JsonFile
from data.listed import ListedFiles, printable, walk
from data.parquet_file import ParquetFile
from data.tally import EMPTY, NO_TEXT, ZERO_BYTE, Tally
from int_lm.config import RECORD_SUFFIXES, SourceConfig
from int_lm.errors import UserError, counted

BATCH = 256  # records between two positions
KINDS: dict[str, Any] = {"json": JsonFile, "parquet": ParquetFile}


class RecordFiles(ListedFiles):
    """Files of one format. A place (`at` of a position) is [file, position in it or None]."""

    def __init__(
        self,
        source: SourceConfig,
        kind: Literal["json", "parquet"],
        listed: Sequence[tuple[str, str]],
        listing: Tally,
        opener: Opener | None = None,
    ) -> None:
        """Name files; nothing is read yet.

        Args:
          source: its field and `skip_damaged` are used.
          kind: the format of all files.
          listed: (name shown, path) of every file.
          listing: counts of what was left out when the files were listed.
          opener: opens a path; None for files of this machine.
        """
        self._source, self._kind, self._opener = source, kind, opener
        self.listed = list(listed)
        self._listing = listing.state()
        self.tally = Tally(source.skip_damaged, self._listing)

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """See `Source.read`."""
        for texts, file, at in self._values([self._source.field], position):
            after = {"at": at, "tally": self.tally.state()} if at else None
            yield Document(file.shown if file else "", texts[0] if texts else b""), after

    def texts(
        self, names: Sequence[str], remedy: str = OTHER_FIELD
    ) -> Iterator[tuple[tuple[bytes, ...], str]]:
        """(values of several fields, place) of every record that has text in all of them.

        `remedy` says what to do about records without one of the fields.
        """
        for texts, file, _ in self._values(names, None, remedy):
            if texts:
                yield texts, file.where()

    def _values(
        self, names: Sequence[str], position: Position, remedy: str = OTHER_FIELD
    ) -> Iterator[tuple[tuple[bytes, ...] | None, Any, list[Any] | None]]:
        """(texts of a record or None, its file, place after it or None)."""
        first, within = position["at"] if position else (0, None)
        before = position["tally"] if position else self._listing
        self.tally = Tally(self._source.skip_damaged, before)
        empty = True
        for index in range(first, len(self.listed)):
            shown, path = self.listed[index]
            file = KINDS[self._kind](path, shown, names, within, self._opener)
            lacking = list(names) if within is None else []
            number = sound = 0
            for number, values in enumerate(file if self.size_of(path) else (), start=1):
                if lacking and not isinstance(values, Problem):
                    sound += 1
                    found = dict(zip(names, values, strict=True))
                    lacking = [name for name in lacking if found[name] is UNSET]
                    if sound == BATCH and lacking:
                        raise no_field(shown, lacking[0], file.keys(), remedy)
                texts = self._checked(values, file)
                yield texts, file, [index, file.position()] if number % BATCH == 0 else None
            if sound and lacking:
                raise no_field(shown, lacking[0], file.keys(), remedy)
            if number == 0 and within is None:
                self.tally.add(EMPTY, shown)
            empty = empty and number == 0 and within is None
            within = None
            yield None, None, [index + 1, None]
        if empty and position is None:
            others = len(self.listed) - 1
            also = f", and so {'is' if others == 1 else 'are'} {counted(others, 'other file')}"
            raise UserError(
                f"{self.listed[0][0]} is empty{also if others else ''}; name a file that holds "
                "records"
            )

    def _checked(self, values: Any, file: Any) -> tuple[bytes, ...] | None:
        """The texts of a record as UTF-8; None if one is missing, which is counted in the tally."""
        if isinstance(values, Problem):
            self.tally.add_damaged(file.where(), values.why)
            return None
        if not all(values):  # UNSET is false, too
            self.tally.add(NO_TEXT, file.where())
            return None
        texts = tuple(value if isinstance(value, bytes) else value.encode() for value in values)
        if any(b"\0" in text for text in texts):
            self.tally.add(ZERO_BYTE, file.where())
            return None
        return texts


class Files(RecordFiles):
    """Files in the order named. Of directories and patterns: the files of the format, sorted."""

    def __init__(self, source: SourceConfig) -> None:
        kind, listing = cast(Literal["json", "parquet"], source.source), Tally()
        files = [file for path in source.path for file in _expand(path, kind, listing)]
        super().__init__(source, kind, [(printable(file), file) for file in files], listing)


def _expand(path: str, kind: str, listing: Tally) -> list[str]:
    """The files of a path: the file itself, those of a directory, or those that match a pattern."""
    suffixes = RECORD_SUFFIXES[kind]
    if os.path.isdir(path):
        found = []
        for file in (os.path.join(path, below) for below in walk(path, tally=listing)):
            if file.lower().endswith(suffixes):
                found.append(file)
            else:
                listing.add(f"left out files whose names do not end as those of {kind} do", file)
    elif os.path.exists(path):
        found = [path]
    else:
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not found:
        raise UserError(
            f"no {kind} files at {printable(path)}; name a file, a directory or a pattern such as "
            f"'corpus/*{suffixes[0]}', or what these files are with --data.source"
        )
    return found
