"""Signals during training: each asks the run to save and stop, or to save and go on."""

import signal
from collections.abc import Iterable

from int_lm import signals

HURRYING = (signal.SIGINT, signal.SIGTERM)  # the second one of these ends the process at once


class StopFlag(signals.Listener):
    """Context manager that catches `signals.STOPPING`; does nothing outside the main thread.

    The second SIGINT or SIGTERM ends the process at once. The other signals of a scheduler or a
    terminal may come several times, and one SIGTERM after them: the save is still finished.

    Args:
      going_on: names, such as `USR1`, of signals at which the run saves and goes on.

    Attributes:
      requested: name of the signal that asked to stop, such as `SIGINT`; None before there was one.
        Read it at every step. Leave the context before long work that has nothing to save.
      save_requested: whether a signal asked to save and go on. Set it to False before saving.
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
