"""Find the format of a file from its name, and from the first bytes of its contents."""

import json
import re
from typing import Literal

from data import compressed
from int_lm.config import RECORD_SUFFIXES

Kind = Literal["json", "parquet", "archive"]
HEAD_BYTES = 1 << 16  # read from the beginning of a file to find its format
REMEDIES = {
    "json": "holds JSON records, not plain text; read the text in them with --data.source json",
    "parquet": "is a Parquet file; read it with --data.source parquet",
    "archive": "is an archive; unpack it, and name the files in it",
    "compressed": "is compressed; unpack it first, unless it holds JSON (--data.source json)",
}
# a line of the files that `eval.py --last_word` and `--pairs` read
LAST_WORD = '{"text": "He gave her the key, and she opened the door"}'
PAIR = '{"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}'
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")
_BEGINS_RECORD = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:', re.DOTALL)
_BEGINS_ARRAY = re.compile(rb'\[\s*\{\s*"(?:[^"\\]|\\.)*"\s*:', re.DOTALL)


def kind_by_name(path: str) -> str | None:
    """`json` or `parquet` for a name that ends as those do; None for any other."""
    for kind, suffixes in RECORD_SUFFIXES.items():
        if path.lower().endswith(suffixes):
            return kind
    return None


def kind_of(head: bytes) -> str | None:
    """The format of a file that begins with `head`; None if it may be plain text.

    `json` means records: one object per line, or an array of objects. A single JSON value over
    several lines may be plain text, such as a settings file in a source tree.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "archive"
    if compressed.format_of(head):
        return "compressed"
    return "json" if _begins_with_records(head.removeprefix(b"\xef\xbb\xbf").lstrip()) else None


def _begins_with_records(head: bytes) -> bool:
    if _BEGINS_ARRAY.match(head):
        return True
    if not _BEGINS_RECORD.match(head):
        return False
    first, newline, _ = head.partition(b"\n")
    if not newline and len(head) >= HEAD_BYTES // 2:  # a long record that was cut off
        return True
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
