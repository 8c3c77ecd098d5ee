"""Stop strings: cuts a text that arrives in pieces before the first of several strings."""

from collections.abc import Iterable, Iterator, Sequence


def until(pieces: Iterable[bytes], stops: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the text of `pieces` up to the first stop string, which is left out.

    Bytes that may begin a stop string are yielded only when it is known that they do not. No piece
    is taken after the one that completes a stop string.

    Args:
      pieces: the text.
      stops: the stop strings, none of them empty.
    """
    held = b""
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            return
        keep = max((_overlap(held, stop) for stop in stops), default=0)
        if ready := held[: len(held) - keep]:
            yield ready
        held = held[len(held) - keep :]
    if held:
        yield held


def _overlap(text: bytes, stop: bytes) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
