"""Gather the text that a machine's own packages brought: documentation, manual pages, sources.

    python -m data.gather --out machine_text.jsonl.zst

Without PATH: the directories of `ROOTS` that are there, and the libraries of this Python. Every
file is read, compressed ones too, and becomes documents of at most --document_bytes, cut at line
ends. Left out, and counted: what is not UTF-8 text, what programs wrote (`fault_of`), manual pages
in other languages than English, files above 1 MB, and files most of whose lines came before, such
as licences. What is at --out is not read. The same files give the same bytes.
configs/machine_text.yaml pretrains on them.
"""

import argparse
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from data import compressed
from data.documents import Document
from data.listed import printable, walk
from data.tally import EMPTY, Tally
from data.text import cut
from int_lm import errors, progress, signals
from int_lm.errors import UserError, require
from int_lm.files import atomic

COMMAND = "python -m data.gather"
SUFFIX = ".jsonl.zst"
ROOTS = (
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/info",
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/share/vim",
    "/usr/include",
    "/usr/lib/python3",
)
FILE_BYTES = 1 << 20  # larger files are data, or many texts in one
LINE_BYTES = 2000  # longer lines were not written by hand
LETTERS = 0.5  # least share of letters in what is no white space
KNOWN = 0.5  # largest share of a file's long lines that came before, in other files
LONG_LINE = 20  # bytes, without white space around them
LINE_BITS = 29  # log2 of the bits that know the lines so far: 67 MB
HEAD_BYTES = 2048  # where a program says that it wrote the file
DATA = re.compile(
    r"\.(svg|e?ps|json|map|log|lock|[ct]sv|pem|crt|asc|sig|pot?|dict|xml)$", re.IGNORECASE
)
PACKED = (".gz", ".bz2", ".xz", ".zst")
BY_PROGRAMS = re.compile(rb"DO NOT (?:EDIT|MODIFY)|@generated", re.IGNORECASE)
TRANSLATED = re.compile(r"(?:^|/)man/(?!man)[a-z]{2,3}(?:[_.@][^/]*)?/")
NO_LETTERS = bytes(
    byte for byte in range(128) if not chr(byte).isalpha()
)  # bytes of characters beyond ASCII count as letters


class Lines:
    """The lines of all files so far, as a set of hashes that may err: a few new ones seem known."""

    def __init__(self) -> None:
        self._bits = bytearray(1 << (LINE_BITS - 3))

    def known(self, text: bytes) -> float:
        """Share of the long lines of a text that were added; of one without any, of the whole."""
        places = self._places(text)
        return sum(self._bits[place >> 3] >> (place & 7) & 1 for place in places) / len(places)

    def add(self, text: bytes) -> None:
        """Add the lines of a text."""
        for place in self._places(text):
            self._bits[place >> 3] |= 1 << (place & 7)

    @staticmethod
    def _places(text: bytes) -> list[int]:
        long = [line for line in map(bytes.strip, text.split(b"\n")) if len(line) >= LONG_LINE]
        return [
            int.from_bytes(hashlib.blake2b(line, digest_size=4).digest(), "big") >> (32 - LINE_BITS)
            for line in long or [text]
        ]


def roots() -> list[str]:
    """The directories that are searched where none is named: those of this machine."""
    names = [*ROOTS, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))]
    found = {os.path.realpath(name): name for name in reversed(names) if os.path.isdir(name)}
    return list(reversed(found.values()))


def fault_of(name: str, text: bytes) -> str | None:
    """Why a file is left out, as a sentence of a tally; None if it is text that people wrote.

    Args:
      name: of the file, without the ending of a compression.
      text: its contents.
    """
    if not text:
        return EMPTY
    if len(text) > FILE_BYTES:
        return f"left out files above {FILE_BYTES:,} bytes"
    if DATA.search(name):
        return "left out data, drawings and records, by the endings of their names"
    if b"\0" in text or not _is_utf8(text):
        return "left out files that are not UTF-8 text"
    if max(map(len, text.split(b"\n"))) > LINE_BYTES:
        return f"left out files with lines above {LINE_BYTES:,} bytes"
    solid = b"".join(text.split())
    if len(solid.translate(None, NO_LETTERS)) < LETTERS * len(solid):
        return "left out files of fewer letters than other characters"
    if BY_PROGRAMS.search(text[:HEAD_BYTES]):
        return "left out files that say a program wrote them"
    return None


def documents(
    directories: Sequence[str], document_bytes: int, tally: Tally, out: Path
) -> Iterator[tuple[int, Document | None]]:
    """(1 at the first document of a file, else 0; document) of all files; None: left out.

    Args:
      directories: searched in their order, each in the order of relative paths.
      document_bytes: longer texts are cut at line ends; 0 never cuts.
      tally: counts what is left out.
      out: the file that is written, which is no text to read, also where it is replaced.
    """
    lines, own = Lines(), os.path.realpath(out)
    for directory in directories:
        for below in walk(directory, frozenset({"__pycache__"}), tally, skip_unreadable=True):
            path = Path(directory, below).as_posix()
            if path.endswith(SUFFIX) and os.path.realpath(path) == own:
                continue
            text, fault = _read(path)
            name = path.removesuffix(next(filter(path.endswith, PACKED), ""))
            fault = fault or fault_of(name, text)
            if not fault and TRANSLATED.search(path):
                fault = "left out manual pages in other languages"
            if not fault and lines.known(text) > KNOWN:
                fault = "left out files most of whose lines came before"
            if fault:
                tally.add(fault, printable(path))
                yield 1, None
                continue
            lines.add(text)
            for number, piece in enumerate(cut(Document(printable(path), text), document_bytes)):
                yield int(number == 0), piece


def gather(out: Path, directories: Sequence[str], document_bytes: int) -> tuple[int, int]:
    """Write JSON lines {"path", "text"}, compressed: (documents, bytes of text).

    What is left out is printed.

    Raises:
      UserError: there is no text.
      OSError: the file system refused.
    """
    tally, count, size = Tally(), 0, 0
    packer = zstandard.ZstdCompressor(level=6)
    with atomic.replacement(out) as file:
        with (
            progress.bar("reading files", None) as update,
            packer.stream_writer(file, closefd=False) as packed,
        ):
            for files, document in documents(directories, document_bytes, tally, out):
                update(files)
                if document is None:
                    continue
                row = {"path": document.name, "text": document.text.decode()}
                packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                count, size = count + 1, size + len(document.text)
        tally.tell(print)
        searched = ", ".join(map(printable, directories))
        require(count > 0, f"there is no text in {searched}; name other directories")
    return count, size


def _read(path: str) -> tuple[bytes, str | None]:
    """(contents, at most one byte more than `FILE_BYTES`; why they cannot be read, or None)."""
    try:
        with compressed.open_file(path)[0] as file:
            return file.read(FILE_BYTES + 1), None
    except compressed.ERRORS:
        return b"", "left out files that cannot be read"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Gather text into one file; `program` is the command's name in its help."""
    from int_lm.config import command_line

    parser = command_line.OneLineParser(
        prog=program,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=command_line.started_as(__doc__, COMMAND, program),
    )
    parser.add_argument(
        "directories", nargs="*", metavar="PATH", help="directories to search instead"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=f"file to write, *{SUFFIX}")
    parser.add_argument(
        "--document_bytes",
        type=int,
        default=1 << 16,
        help="longer files are cut into documents of this size (default: %(default)s; 0: never)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file, if it is there")
    arguments = parser.parse_strict(argv)
    out = Path(arguments.out)
    if not out.name.endswith(SUFFIX):
        raise UserError(f"--out is {out}, expected a name that ends with {SUFFIX}")
    if arguments.document_bytes < 0:
        raise UserError(f"--document_bytes is {arguments.document_bytes}, must be 0 or more")
    atomic.check_free(out, overwrite=arguments.overwrite)
    require("" not in arguments.directories, "a directory has no name; write . for this one")
    missing = [path for path in arguments.directories if not os.path.isdir(path)]
    if missing:
        raise UserError(f"{printable(missing[0])} is no directory; name directories to search")
    directories = arguments.directories or roots()
    print("searching " + ", ".join(map(printable, directories)))
    count, size = gather(out, directories, arguments.document_bytes)
    print(
        f"{printable(str(out))}: {errors.counted(count, 'document')}, {size:,} bytes of text, "
        f"{out.stat().st_size:,} packed"
    )


if __name__ == "__main__":
    with errors.reported("data.gather", signals.NOTHING):
        main()
