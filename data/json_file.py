"""Read the records of a JSON file one by one: one object per line, or one array of objects.

Only one record is in memory at a time, whatever the size of the file.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data import compressed, formats
from data.compressed import Opener
from data.fields import Fields, Problem, Values, keys_of, unreadable
from int_lm.errors import UserError

RECORD_BYTES = 1 << 30  # the largest record
BLOCK = 1 << 18  # bytes of an array read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A string, a bracket, a brace or a comma; a single quote mark begins a string that is cut off.
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},"]', re.DOTALL)


class JsonFile:
    """A file of records, read from its beginning or from a position in it.

    A position is [byte of the contents, line, number of the record]; all count from 0.
    """

    def __init__(
        self,
        path: str,
        shown: str,
        names: Sequence[str],
        position: Sequence[int] | None,
        opener: Opener | None = None,
    ) -> None:
        """Name a file; nothing is read yet.

        Args:
          path: the file.
          shown: its name in error messages.
          names: fields to read.
          position: where to begin; None for the beginning.
          opener: opens the file; None for a file of this machine.
        """
        self._path, self.shown, self._fields = path, shown, Fields(names)
        self._opener = opener or io.FileIO
        self._offset, self._line, self._number = position or (0, 0, 0)
        self._begins, self._array, self._record = self._line, False, b""

    def __iter__(self) -> Iterator[Values | Problem]:
        """The values of every record, or the reason why it has none.

        Raises:
          UserError: the file is not JSON, or is cut short.
        """
        try:
            yield from self._read()
        except compressed.ERRORS as error:
            raise unreadable(self.shown, "json", f"line {self._line}", error) from error

    def where(self) -> str:
        """The place of the record given last."""
        record = f", record {self._number}" if self._array else ""
        return f"{self.shown}, line {self._begins + 1}{record}"

    def position(self) -> list[int]:
        """The position after that record."""
        return [self._offset, self._line, self._number]

    def keys(self) -> list[str]:
        """The names of that record's fields."""
        return keys_of(self._record)

    def record(self) -> dict[str, Any]:
        """All fields of that record, which must be one without a problem."""
        return json.loads(self._record)

    def _read(self) -> Iterator[Values | Problem]:
        file, seekable = compressed.open_file(self._path, self._opener)
        with file:
            head = file.peek(compressed.BUFFER)
            refuse_other_formats(head, self.shown)
            start = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
            self._array = head[start:].lstrip().startswith(b"[")
            self._offset = max(self._offset, start)
            if seekable:
                file.seek(self._offset)
            else:
                left = self._offset
                while left > 0 and (block := file.read(min(left, BLOCK))):
                    left -= len(block)
            if self._array:
                yield from self._elements(file)
            else:
                yield from self._lines(file)

    def _lines(self, file: io.BufferedReader) -> Iterator[Values | Problem]:
        fields = self._fields
        for line in iter(lambda: file.readline(RECORD_BYTES), b""):
            if len(line) == RECORD_BYTES:
                raise _too_long(f"{self.shown}, line {self._line + 1},")
            self._begins = self._line
            self._offset += len(line)
            self._line += 1
            if line.isspace():
                continue
            self._number += 1
            self._record = line
            yield fields(line)

    def _elements(self, file: io.BufferedReader) -> Iterator[Values | Problem]:
        """The elements of an array: `_cut` finds each, and they are decoded like lines."""
        if self._number == 0:
            while (byte := file.read(1)) != b"[":
                self._pass(byte)
            self._pass(b"[")
        for element, separator, problem in _cut(file, self.shown):
            self._begins = self._line + element[: -len(element.lstrip()) or None].count(b"\n")
            self._pass(element)
            self._pass(separator)
            self._number += 1
            self._record = element
            yield Problem(problem) if problem else self._fields(element)

    def _pass(self, data: bytes) -> None:
        self._offset += len(data)
        self._line += data.count(b"\n")


def _cut(file: io.BufferedReader, shown: str) -> Iterator[tuple[bytes, bytes, str]]:
    """(element, the comma after it or b"", problem or "") of the rest of an array."""
    data, depth = b"", 1
    while True:
        block = file.read(max(BLOCK, len(data)))
        data, begin, depth = data + block, 0, 1
        for token in TOKEN.finditer(data):
            kind = token[0]
            if kind == b'"':
                break
            if kind in (b"[", b"{"):
                depth += 1
            elif kind in (b"]", b"}"):
                depth -= 1
            if depth == 0 or (depth == 1 and kind == b","):
                element = data[begin : token.start()]
                begin = token.end()
                if depth == 1 or element.strip():
                    yield element, kind if depth == 1 else b"", ""
            if depth == 0:
                rest = data[begin:] + file.read(BLOCK)
                if rest.strip():
                    yield rest, b"", "there is more after the end of the array"
                return
        data = data[begin:]
        if not block:
            yield data, b"", "the file ends in the middle of the array"
            return
        if len(data) > RECORD_BYTES:
            raise _too_long(shown)


def refuse_other_formats(head: bytes, shown: str) -> None:
    """Refuse a file that is not JSON, by its first bytes.

    Raises:
      UserError: the file has another format, which the error names.
    """
    kind = formats.kind_of(head)
    if kind is not None and kind != "json":
        raise UserError(f"{shown} {formats.REMEDIES[kind]}")


def _too_long(where: str) -> UserError:
    return UserError(
        f"{where} holds a record of more than {RECORD_BYTES:,} bytes, or is no JSON; name other "
        "files"
    )
