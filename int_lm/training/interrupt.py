"""Signals while a run trains: a request to save and stop at the next step, or to save and go on."""

import signal
from collections.abc import Iterable

from int_lm import signals

HURRYING = (signal.SIGINT, signal.SIGTERM)  # the second of these stops at once


class StopFlag(signals.Listener):
    """Context manager that catches `signals.STOPPING`; does nothing outside the main thread.

    SIGINT and SIGTERM hurry: the second of them ends the process at once. A scheduler's or a
    terminal's signal may come several times, and SIGTERM after it, and the save is still finished.

    Args:
      going_on: names, such as `USR1`, of signals at which the run saves and goes on.

    Attributes:
      requested: name of the signal that asked to stop, None so far. Poll it at every step, and
        leave the manager before what takes long and has nothing to save.
      save_requested: whether a signal asked to save and go on; set it to False before saving.
    """

    def __init__(self, going_on: Iterable[str] = ()) -> None:
        super().__init__(signals.STOPPING, self._hear, self._request, ignored=HURRYING)
        self._going_on = frozenset(f"SIG{name}" for name in going_on)
        self._hurried = 0
        self._told = False
        self.requested: str | None = None
        self.save_requested = False

    def _request(self, number: signal.Signals) -> None:
        """In the main thread; `_hear`, in the other one, says it."""
        if number.name in self._going_on:
            return
        self.requested = self.requested or number.name

    def _hear(self, number: signal.Signals) -> None:
        name = number.name
        if name in self._going_on:
            self.save_requested = True
            signals.tell(f"\n{name}: saving after this step, and going on\n")
            return
        self._hurried += number in HURRYING
        if self._hurried == 2:
            signals.leave(number)
        self._request(number)
        if not self._told or number in HURRYING:
            self._told = True
            signals.tell(f"\n{name}: saving and stopping after this step; {_once_more(number)}\n")


def _once_more(number: signal.Signals) -> str:
    return "once more stops at once" if number in HURRYING else "SIGTERM twice stops at once"
