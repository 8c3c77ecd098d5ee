"""Documents from text files: the paths that a user names, and the standard library's sources."""

import codecs
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from data import formats
from data.documents import Document, Position
from data.listed import ListedFiles, opened, printable, walk
from data.tally import EMPTY, Tally
from int_lm.errors import UserError, counted

NOT_SOURCES = frozenset({"site-packages", "dist-packages", "__pycache__"})
TABLES = (".csv", ".tsv")  # endings of names
CHECKED_AT_ONCE = 1 << 20  # bytes decoded at once, so that checking a large file costs no memory


class TextFiles(ListedFiles):
    """Files in the order named, directories recursively in the order of their relative paths.

    Hidden files and directories and links to directories are left out. So are empty files, and the
    files of a directory that are not text. A place is [file, byte, piece].
    """

    def __init__(self, paths: Sequence[str], document_bytes: int) -> None:
        self._size_of_piece, listing = document_bytes, Tally()
        self._directories = [path for path in paths if os.path.isdir(path)]
        self._files: list[tuple[str, str | None]] = []  # with the directory they were found in
        for path in paths:
            if os.path.isdir(path):
                found = [Path(path, below).as_posix() for below in walk(path, tally=listing)]
                self._files += [(file, path) for file in found]
                if not found:
                    raise UserError(_no_text(path, 0))
                _refuse_directory_of_records(path, found)
            else:
                _check_named(path)
                self._files.append((path, None))
        self.listed = [(printable(path), path) for path, _ in self._files]
        self._listing = listing.state()
        self.tally = Tally(found=self._listing)

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """See `Source.read`."""
        first, offset, piece = position["at"] if position else (0, 0, 0)
        self.tally = Tally(found=position["tally"] if position else self._listing)
        binary = dict.fromkeys(self._directories, 0)
        sound: set[str | None] = set()
        for index in range(first, len(self._files)):
            path, directory = self._files[index]
            shown = printable(path)
            with opened(path) as file:
                if offset == 0:
                    fault = find_non_text(file)
                    if fault and directory is None:
                        raise _not_text(shown, fault, _head(file))
                    if fault and directory is not None:
                        binary[directory] += 1
                        place = f"{shown}, {fault[1]} at byte {fault[0]}"
                        self.tally.add("left out files that are not UTF-8 text", place)
                        continue
                    head = _head(file)
                    if not head:
                        self.tally.add(EMPTY, shown)
                        continue
                    self._look_for_records(path, directory, head)
                sound.add(directory)
                for text, end, number in _pieces(file, self._size_of_piece, offset, piece):
                    name = shown + ("" if number is None else f"#{number}")
                    after = [index, end, (number or 0) + 1]
                    yield Document(name, text), {"at": after, "tally": self.tally.state()}
            offset = piece = 0
        if position is None:
            for directory in self._directories:
                if directory not in sound:
                    raise UserError(_no_text(directory, binary[directory]))
            if not sound:
                raise UserError(f"{self.listed[0][0]} is empty; name a file that holds text")

    def _look_for_records(self, path: str, directory: str | None, head: bytes) -> None:
        """Refuse a file of records that the user named; count one that a directory holds.

        A file with a suffix of record files is read as text only if the user says so.
        """
        shown = printable(path)
        if path.lower().endswith(TABLES):
            self.tally.add("read tables as plain text, names of columns and separators too", shown)
        if formats.kind_of(head) != "json":
            return
        if directory is None and formats.kind_by_name(path) is None:
            raise UserError(f"{shown} {formats.REMEDIES['json']}")
        self.tally.add("read JSON records as plain text, keys and braces too", shown)


class StandardLibrary(ListedFiles):
    """The Python standard library's own sources, one document per file. A place is [file]."""

    def __init__(self) -> None:
        root = sysconfig.get_path("stdlib")
        walked = walk(root, without=NOT_SOURCES) if os.path.isdir(root) else []
        self.listed = [
            (printable(path), os.path.join(root, path)) for path in walked if path.endswith(".py")
        ]
        self.tally = Tally()
        if not self.listed:
            raise UserError(
                f"this Python has no standard library sources in {root}; "
                "give text of your own with --data.path FILE"
            )

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """See `Source.read`."""
        (first,) = position["at"] if position else (0,)
        self.tally = Tally(found=position and position["tally"])
        for index in range(first, len(self.listed)):
            name, path = self.listed[index]
            with opened(path) as file:
                fault = find_non_text(file)
                file.seek(0)
                text = file.read()
            if fault:
                place = f"{name}, {fault[1]} at byte {fault[0]}"
                self.tally.add("left out files that are not UTF-8 text", place)
            elif not text:
                self.tally.add(EMPTY, name)
            else:
                yield Document(name, text), {"at": [index + 1], "tally": self.tally.state()}


def cut(document: Document, size: int) -> list[Document]:
    """Cut a text longer than `size` bytes into documents of at most about `size`, at line ends.

    The pieces, in order, are the whole text. A line longer than `size` is itself cut, between
    characters, so that a piece may have up to 3 bytes more. Text added at the end of a file
    leaves all pieces but the last as they were.

    Args:
      document: the text to cut.
      size: bytes; 0 never cuts.
    """
    text = document.text
    if size == 0 or len(text) <= size:
        return [document]
    pieces = []
    start = 0
    while start < len(text):
        piece = _first_piece(text[start : start + size + 4], size)
        pieces.append(Document(f"{document.name}#{len(pieces)}", piece))
        start += len(piece)
    return pieces


def _first_piece(text: bytes, size: int) -> bytes:
    """The first piece of `text`, which ends a document or has at least `size` + 4 bytes."""
    end = min(size, len(text))
    if end < len(text):
        end = text.rfind(b"\n", 0, end) + 1 or end
    while end < len(text) and text[end] & 0xC0 == 0x80:  # inside a character
        end += 1
    return text[:end]


def _pieces(
    file: BinaryIO, size: int, offset: int, number: int
) -> Iterator[tuple[bytes, int, int | None]]:
    """(text, offset of its end, number or None) of the pieces of a file from `offset` on."""
    total = os.fstat(file.fileno()).st_size
    file.seek(offset)
    if size == 0 or total <= size:
        if offset == 0:
            yield file.read(), total, None
        return
    while offset < total:
        text = _first_piece(file.read(size + 4), size)
        offset += len(text)
        file.seek(offset)
        yield text, offset, number
        number += 1


def find_non_text(file: BinaryIO) -> tuple[int, str] | None:
    """(offset of the first byte that is not text, what is wrong there); None if all is text.

    Zero bytes, and bytes that are not UTF-8, are not text. The file is read from its beginning.
    """
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = file.read(CHECKED_AT_ONCE)
        before = len(decoder.getstate()[0])  # bytes of a character that began in the last block
        zero = block.find(0)
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            fault = error.start - before
            if zero < 0 or fault < zero:
                return offset + fault, f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        if zero >= 0:
            return offset + zero, "zero byte"
        if not block:
            return None
        offset += len(block)


def _check_named(path: str) -> None:
    """Refuse a path, named by the user, that is not a file."""
    shown = printable(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {shown or repr(path)}: {reason}; check the path") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{shown} is neither a file nor a directory; save its text to a file first")


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(formats.HEAD_BYTES)


def _not_text(shown: str, fault: tuple[int, str], head: bytes) -> UserError:
    kind = formats.kind_of(head)
    if kind is not None and kind != "json":
        return UserError(f"{shown} {formats.REMEDIES[kind]}")
    offset, reason = fault
    return UserError(
        f"{shown} is not plain text: {reason} at byte offset {offset}; "
        "convert it to UTF-8 or leave it out"
    )


def _refuse_directory_of_records(directory: str, files: Sequence[str]) -> None:
    """Refuse a directory whose files are all files of records, by their names."""
    kinds = {formats.kind_by_name(file) for file in files}
    plain = all(file.lower().endswith(".json") for file in files)  # settings, perhaps
    kind = next(iter(kinds))
    if len(kinds) == 1 and kind is not None and not plain:
        raise UserError(
            f"directory {printable(directory)} holds {kind} files and no plain text; read them "
            f"with --data.source {kind}"
        )


def _no_text(directory: str, skipped: int) -> str:
    files = f"{counted(skipped, 'file')} in it {'is' if skipped == 1 else 'are'}"
    other = f" ({files} not UTF-8 text)" if skipped else ""
    return (
        f"directory {printable(directory)} holds no text{other}; name a file or a directory that "
        "does"
    )
