"""What a document is, and what every source of documents can do.

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
    """One text: `text` is UTF-8, not empty and without zero bytes; `name` tells where it is from.

    `name` is the path of the file (for the standard library: within it). `#0`, `#1`, ... follow
    where a long file was cut.
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
    """Something that documents are read from, in an order of its own that never changes.

    Attributes:
      tally: what the last `read` left out so far, before its position too.
    """

    tally: Tally

    def read(self, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """Documents after `position`, each with a position to go on from after it.

        A position is {"at": [...], "tally": state of the tally}. Records are read in batches;
        within a batch the position is None. An empty document may carry a position where no text
        does.

        Raises:
          UserError: something cannot be read; the sentence names the place and what to do.
        """
        ...

    def fingerprint(self) -> Any:
        """A JSON value that changes where the text may have; found without reading any text."""
        ...

    def size(self) -> int | None:
        """Bytes to read, as stored; None where that is not known."""
        ...
