"""What a terminal is shown: a progress bar, and text that a model wrote, made safe."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left, on stderr if that is a terminal.

    Yields its `update(count)`, which moves it on by `count`.

    Args:
      what: is counted, shown in front of the bar.
      total: of all counts; None where it is not known.
    """
    with tqdm(
        total=total,
        desc=what,
        unit_scale=True,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as shown:

        def update(count: int) -> None:
            shown.update(count)

        yield update


def shown(text: bytes) -> str:
    r"""UTF-8 text that is safe on a terminal: invalid bytes and control characters as `\x1b`."""
    decoded = text.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in decoded
    )
