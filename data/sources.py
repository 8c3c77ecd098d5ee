"""Documents: named texts, read from files in an order that no file system decides.

Text is kept as the bytes of the file (nothing is normalised), but must be UTF-8 without zero
bytes, since byte 0 separates documents.
"""

import codecs
import os
import stat
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from int_lm.config import DataConfig
from int_lm.errors import UserError

NOT_SOURCES = frozenset({"site-packages", "dist-packages", "__pycache__"})
CHECKED_AT_ONCE = 1 << 20  # bytes decoded at once, so that checking a large file costs no memory


@dataclass(frozen=True)
class Document:
    """One text: `text` is UTF-8, not empty and without zero bytes; `name` tells where it is from.

    `name` is the file's path, for the standard library within it, followed by `#0`, `#1`, ...
    where a long file was cut.
    """

    name: str
    text: bytes


def read_documents(
    data: DataConfig, *, notice: Callable[[str], None] | None = None
) -> list[Document]:
    """Read every document that `data` names; the same files give the same list everywhere.

    Args:
      data: its `source`, `path` and `document_bytes` are used. Source `stdlib` reads the Python
        standard library's sources, one file a document. Source `text` reads the paths in the
        order given, a directory recursively in the order of its relative paths; hidden files and
        directories and links to directories are left out.
      notice: called with one sentence for each directory in which files that are not text were
        skipped.

    Raises:
      UserError: a named file that is missing, unreadable, empty or not text, or a directory
        without text.
    """
    if data.source == "stdlib":
        return _read_stdlib()
    documents = []
    for path in data.path:
        if os.path.isdir(path):
            files = _read_directory(path, notice)
        else:
            files = [Document(_printable(path), _read_text_file(path))]
        for file in files:
            documents.extend(cut(file, data.document_bytes))
    return documents


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
        end = min(start + size, len(text))
        if end < len(text):
            end = text.rfind(b"\n", start, end) + 1 or end
        while end < len(text) and text[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        pieces.append(Document(f"{document.name}#{len(pieces)}", text[start:end]))
        start = end
    return pieces


def find_non_text(text: bytes) -> tuple[int, str] | None:
    """Offset of the first byte that makes `text` no text, and what is wrong there; None if sound.

    Not text are zero bytes and whatever is not UTF-8.
    """
    zero = text.find(0)
    view = memoryview(text)
    start = 0
    while start < len(text):
        end = min(start + CHECKED_AT_ONCE, len(text))
        try:
            start += codecs.utf_8_decode(view[start:end], "strict", end == len(text))[1]
        except UnicodeDecodeError as error:
            offset = start + error.start
            if zero < 0 or offset < zero:
                return offset, f"byte 0x{text[offset]:02x} is not UTF-8"
            break
    return (zero, "zero byte") if zero >= 0 else None


def _read_stdlib() -> list[Document]:
    root = sysconfig.get_path("stdlib")
    documents = []
    for path in _walk(root, without=NOT_SOURCES) if os.path.isdir(root) else ():
        if path.endswith(".py"):
            text = _read(os.path.join(root, path))
            if text and find_non_text(text) is None:
                documents.append(Document(_printable(path), text))
    if not documents:
        raise UserError(
            f"this Python has no standard library sources in {root}; "
            "give text of your own with --data.path FILE"
        )
    return documents


def _read_directory(root: str, notice: Callable[[str], None] | None) -> list[Document]:
    documents = []
    binary = []
    for relative in _walk(root):
        name = Path(root, relative).as_posix()
        text = _read(name)
        if find_non_text(text) is not None:
            binary.append(name)
        elif text:
            documents.append(Document(_printable(name), text))
    if not documents:
        skipped = f" ({len(binary)} files in it are not UTF-8 text)" if binary else ""
        raise UserError(
            f"directory {_printable(root)} holds no text{skipped}; name a file or a directory "
            "that does"
        )
    if binary and notice:
        notice(
            f"skipped {len(binary)} of the files in {_printable(root)}: not UTF-8 text "
            f"(first: {_printable(binary[0])})"
        )
    return documents


def _walk(root: str, without: frozenset[str] = frozenset()) -> list[str]:
    """Sorted relative posix paths of the regular files below `root`, none hidden or `without`."""

    def relative_paths() -> Iterator[str]:
        for directory, children, files in os.walk(root, onerror=_refuse_unreadable):
            children[:] = [child for child in children if child not in without and child[0] != "."]
            for file in files:
                path = Path(directory, file)
                if file[0] != "." and _is_regular(path):
                    yield path.relative_to(root).as_posix()

    return sorted(relative_paths())


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing is no text; any other failure must speak up when it is read
        return not path.is_symlink()


def _read_text_file(path: str) -> bytes:
    """The bytes of a file that the user named."""
    shown = _printable(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {shown or repr(path)}: {reason}; check the path") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{shown} is neither a file nor a directory; save its text to a file first")
    text = _read(path)
    if not text:
        raise UserError(f"{shown} is empty; name a file that holds text")
    fault = find_non_text(text)
    if fault is not None:
        offset, reason = fault
        raise UserError(
            f"{shown} is not plain text: {reason} at byte offset {offset}; "
            "convert it to UTF-8 or leave it out"
        )
    return text


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        _refuse_unreadable(error, path)


def _refuse_unreadable(error: OSError, path: str | None = None) -> NoReturn:
    shown = _printable(path or str(error.filename))
    raise UserError(
        f"cannot read {shown}: {error.strerror or error}; make it readable or leave it out"
    ) from error


def _printable(path: str) -> str:
    """`path` with the bytes of its name that are not UTF-8 escaped, fit for any output."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
