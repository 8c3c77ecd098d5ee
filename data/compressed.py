"""Open files, compressed or not, and read their contents. A file that is cut short is an error."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

Opener = Callable[[str], io.RawIOBase]  # opens a file of a path, to read its bytes as stored

BUFFER = 1 << 20  # bytes read at once
ZSTD_INPUT = 1 << 13  # compressed bytes decoded at once; this also bounds the memory of the result
ZSTD_WINDOW = 1 << 31  # the largest that `zstd --long=31` writes
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def format_of(head: bytes) -> str | None:
    """The compression of a file that begins with `head`; None if it is none of those in `MAGIC`."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def open_file(path: str, opener: Opener = io.FileIO) -> tuple["io.BufferedReader[Any]", bool]:
    """Open a file: (reader of its decompressed contents, whether the reader can seek).

    Reading raises one of `ERRORS` if the file is damaged or incomplete.

    Args:
      path: the file.
      opener: opens the file as it is stored.
    """
    file = io.BufferedReader(opener(path), BUFFER)
    kind = format_of(file.peek(8)[:8])
    if kind is None:
        return file, True
    if kind == "zstd":
        return io.BufferedReader(_ZstdFile(file), BUFFER), False
    decoder = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
    return io.BufferedReader(_Decoded(file, decoder(file, "rb")), BUFFER), False


class _Decoded(io.RawIOBase):
    """The contents that a reader of the standard library decodes; closes both files."""

    def __init__(self, file: Any, decoded: Any) -> None:
        self._file, self._decoded = file, decoded

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._decoded.close()
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        return self._decoded.readinto(buffer)


class _ZstdFile(io.RawIOBase):
    """The contents of one or more frames; a last frame without its end is an error.

    The readers of `zstandard` itself report no error for such a file.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._decoded = file, memoryview(b"")
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
