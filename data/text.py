"""Documents from text files: the paths that a user names, and the standard library's sources."""

import codecs
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from data.documents import Document, Notice, Position
from int_lm.errors import UserError

NOT_SOURCES = frozenset({"site-packages", "dist-packages", "__pycache__"})
CHECKED_AT_ONCE = 1 << 20  # bytes decoded at once, so that checking a large file costs no memory


class ListedFiles:
    """What sources of files share: what can be said of them before they are read.

    Attributes:
      listed: (name shown, path) of every file, in their order.
    """

    listed: list[tuple[str, str]]

    def fingerprint(self) -> list[list[object]]:
        """Name, size and time of the last change of every file."""
        stats = [(name, _status(path)) for name, path in self.listed]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]

    def size(self) -> int:
        """Bytes of all files, as stored."""
        return sum(_status(path).st_size for _, path in self.listed)


class TextFiles(ListedFiles):
    """Files in the order named, directories recursively in the order of their relative paths.

    Hidden files and directories and links to directories are left out, and so are the files of a
    directory that are not text. A position is [file, byte, piece].
    """

    def __init__(
        self, paths: Sequence[str], document_bytes: int, notice: Notice | None = None
    ) -> None:
        self._size_of_piece, self._notice = document_bytes, notice
        self._directories = [path for path in paths if os.path.isdir(path)]
        self._files: list[tuple[str, str | None]] = []  # with the directory they were found in
        for path in paths:
            if os.path.isdir(path):
                found = [Path(path, relative).as_posix() for relative in walk(path)]
                self._files += [(file, path) for file in found]
                if not found:
                    raise UserError(_no_text(path, 0))
            else:
                _check_named(path)
                self._files.append((path, None))
        self.listed = [(printable(path), path) for path, _ in self._files]

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        first, offset, piece = position or (0, 0, 0)
        binary: dict[str, list[str]] = {path: [] for path in self._directories}
        sound = set()
        for index in range(first, len(self._files)):
            path, directory = self._files[index]
            with _open(path) as file:
                if offset == 0:
                    fault = find_non_text(file)
                    empty = file.tell() == 0
                    if directory is None:
                        _refuse_non_text(path, fault, empty)
                    elif fault:
                        binary[directory].append(path)
                    if fault or empty:
                        continue
                sound.add(directory)
                for text, end, number in _pieces(file, self._size_of_piece, offset, piece):
                    name = printable(path) + ("" if number is None else f"#{number}")
                    yield Document(name, text), [index, end, (number or 0) + 1]
            offset = piece = 0
        for directory in self._directories:
            skipped = binary[directory]
            if directory not in sound and position is None:
                raise UserError(_no_text(directory, len(skipped)))
            if skipped and self._notice:
                self._notice(
                    f"skipped {len(skipped)} of the files in {printable(directory)}: not UTF-8 "
                    f"text (first: {printable(skipped[0])})"
                )


class StandardLibrary(ListedFiles):
    """The Python standard library's own sources, one file a document. A position is [file]."""

    def __init__(self) -> None:
        root = sysconfig.get_path("stdlib")
        walked = walk(root, without=NOT_SOURCES) if os.path.isdir(root) else []
        self.listed = [
            (printable(path), os.path.join(root, path)) for path in walked if path.endswith(".py")
        ]
        if not self.listed:
            raise UserError(
                f"this Python has no standard library sources in {root}; "
                "give text of your own with --data.path FILE"
            )

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        (first,) = position or (0,)
        for index in range(first, len(self.listed)):
            name, path = self.listed[index]
            with _open(path) as file:
                fault = find_non_text(file)
                file.seek(0)
                text = file.read()
            if text and fault is None:
                yield Document(name, text), [index + 1]


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
    """The first piece of `text`, which is cut short or ends no earlier than `size` + 4."""
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
    """Offset of the first byte that makes `file` no text, and what is wrong there; None if sound.

    Not text are zero bytes and whatever is not UTF-8. The file is read from its beginning.
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


def walk(root: str, without: frozenset[str] = frozenset()) -> list[str]:
    """Sorted relative posix paths of the regular files below `root`, none hidden or `without`."""

    def relative_paths() -> Iterator[str]:
        for directory, children, files in os.walk(root, onerror=_refuse_unreadable):
            children[:] = [child for child in children if child not in without and child[0] != "."]
            for file in files:
                path = Path(directory, file)
                if file[0] != "." and _is_regular(path):
                    yield path.relative_to(root).as_posix()

    return sorted(relative_paths())


def printable(path: str) -> str:
    """`path` with the bytes of its name that are not UTF-8 escaped, fit for any output."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing is no text; any other failure must speak up when it is read
        return not path.is_symlink()


def _check_named(path: str) -> None:
    """Refuse a path, named by the user, that is no file."""
    shown = printable(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {shown or repr(path)}: {reason}; check the path") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{shown} is neither a file nor a directory; save its text to a file first")


def _refuse_non_text(path: str, fault: tuple[int, str] | None, empty: bool) -> None:
    shown = printable(path)
    if fault is not None:
        offset, reason = fault
        raise UserError(
            f"{shown} is not plain text: {reason} at byte offset {offset}; "
            "convert it to UTF-8 or leave it out"
        )
    if empty:
        raise UserError(f"{shown} is empty; name a file that holds text")


def _no_text(directory: str, skipped: int) -> str:
    other = f" ({skipped} files in it are not UTF-8 text)" if skipped else ""
    return (
        f"directory {printable(directory)} holds no text{other}; name a file or a directory that "
        "does"
    )


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        _refuse_unreadable(error, path)


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        _refuse_unreadable(error, path)


def _refuse_unreadable(error: OSError, path: str | None = None) -> NoReturn:
    shown = printable(path or str(error.filename))
    raise UserError(
        f"cannot read {shown}: {error.strerror or error}; make it readable or leave it out"
    ) from error
