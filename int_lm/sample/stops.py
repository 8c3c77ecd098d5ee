"""Stop strings: cuts a text that arrives in pieces before the first of several strings."""

from collections.abc import Iterable, Iterator, Sequence


class Cut:
    """The cut of one text.

    Bytes that may begin a stop string are held back until it is known that they do not.

    Attributes:
      found: whether a stop string has come; the text ended before it.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        """Make it.

        Args:
          stops: the stop strings, none of them empty.
        """
        self._stops, self._held, self.found = tuple(stops), b"", False

    def feed(self, piece: bytes) -> bytes:
        """Take the next piece; the bytes that are known to belong to the text, perhaps none."""
        held = self._held + piece
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held, self.found = b"", True
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> bytes:
        """What is still held back when the text has ended."""
        held, self._held = self._held, b""
        return held


def until(pieces: Iterable[bytes], stops: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the text of `pieces` up to the first stop string, which is left out.

    No piece is taken after the one that completes a stop string.

    Args:
      pieces: the text.
      stops: the stop strings, none of them empty.
    """
    cut = Cut(stops)
    for piece in pieces:
        ready = cut.feed(piece)
        if ready or cut.found:
            yield ready
        if cut.found:
            return
    if rest := cut.end():
        yield rest


def _overlap(text: bytes, stop: bytes) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
