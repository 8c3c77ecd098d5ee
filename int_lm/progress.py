"""Output for a terminal: a progress bar, and text of a model without control characters."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left, on stderr if stderr is a terminal.

    Yields a function `update(count)`, which adds `count` to the progress.

    Args:
      what: the text in front of the bar.
      total: sum of all counts at the end; None if it is not known.
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
    r"""UTF-8 text as a safe str for a terminal.

    Invalid bytes and control characters, except newline and tab, become escapes such as `\x1b`.
    """
    decoded = text.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in decoded
    )
