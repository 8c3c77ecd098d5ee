"""The types of documents and of their sources.

A source is read as a stream, so its size has no limit. Text is kept as it is: nothing is
normalised. It has no zero bytes, because byte 0 separates documents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from data.tally import Tally, is_state

Notice = Callable[[str], None]
Position = Any  # a JSON value; None stands before the first document


@dataclass(frozen=True)
class Document:
    """One text and where it is from.

    Attributes:
      name: path of the file; for the standard library, the path within it. If a long file was cut,
        `#0`, `#1`, ... follow.
      text: UTF-8, not empty, without zero bytes.
    """

    name: str
    text: bytes


def is_position(value: Any) -> bool:
    """Whether a JSON value is a position of a source, or None."""
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("at"), list)
        and is_state(value.get("tally"))
    )


class Source(Protocol):
    """A source of documents. Their order never changes.

    Attributes:
      tally: counts of what was left out up to the current position of the last `read`.
    """

    tally: Tally

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """Documents after `position`, each with a position to go on from after it.

        A position is {"at": [...], "tally": state of the tally}. Records are read in batches.
        Within a batch the position is None. If the last record of a batch has no text, an empty
        document carries the position.

        Raises:
          UserError: something cannot be read; the sentence names the place and what to do.
        """
        ...

    def fingerprint(self) -> Any:
        """A JSON value that differs if the text may have changed; computed without reading text."""
        ...

    def contents(self, update: Callable[[int], None]) -> str | None:
        """SHA-256 in hex of the contents of all files, in their order, whatever their names.

        Args:
          update: called with the numbers of bytes that were read.

        Returns:
          The digest; None if the fingerprint has no names and times that could change alone.
        """
        ...

    def size(self) -> int | None:
        """Bytes to read, as stored; None if that is not known."""
        ...
