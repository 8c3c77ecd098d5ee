"""Open files, compressed or not, and read their contents. A file that is cut short is an error."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any

import zstandard

BUFFER = 1 << 20  # bytes read at once
ZSTD_INPUT = 1 << 13  # compressed bytes decoded at once; this also bounds the memory of the result
ZSTD_WINDOW = 1 << 31  # the largest that `zstd --long=31` writes
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def format_of(head: bytes) -> str | None:
    """The compression of a file that begins with `head`; None if it is none of those in `MAGIC`."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def open_file(path: str | Path) -> tuple["io.BufferedReader[Any]", bool]:
    """Open a file: (reader of its decompressed contents, whether the reader can seek).

    Reading raises one of `ERRORS` if the file is damaged or incomplete.
    """
    file = io.BufferedReader(io.FileIO(path), BUFFER)
    kind = format_of(file.peek(8)[:8])
    if kind is None:
        return file, True
    file.close()
    if kind == "zstd":
        return io.BufferedReader(_ZstdFile(path), BUFFER), False
    opened: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind](path, "rb")
    return io.BufferedReader(opened, BUFFER), False


class _ZstdFile(io.RawIOBase):
    """The contents of one or more frames; a last frame without its end is an error.

    The readers of `zstandard` itself report no error for such a file.
    """

    def __init__(self, path: str | Path) -> None:
        self._file, self._decoded = io.FileIO(path), memoryview(b"")
        self._frame, self._input = None, b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._decoded:
            self._input = self._input or self._file.read(ZSTD_INPUT) or b""
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the file ended before the end of its last frame")
                return 0
            if self._frame is None:
                decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
                self._frame = decoder.decompressobj()
            self._decoded = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._decoded))
        buffer[:size] = self._decoded[:size]
        self._decoded = self._decoded[size:]
        return size
