"""SIGINT and SIGTERM as a request to stop at the next step boundary; the second one stops at once.

Python runs its signal handlers only between bytecodes of the main thread, so not while a program
compiles or a step computes. The signal number is therefore also written to a pipe, which a thread
reads: the request is seen, and a second signal obeyed, within those as well.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Context manager that catches SIGINT and SIGTERM; does nothing outside the main thread.

    Attributes:
      requested: name of the signal that asked to stop, None so far. Poll it at every step, and
        leave the manager before what takes long and has nothing to save.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup = -1
        self._wakeup = -1
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        read_end, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._reader = threading.Thread(target=self._watch, args=(read_end,), daemon=True)
        self._reader.start()
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reader is None:
            return
        for number, handler in self._previous.items():  # None: installed by other than Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._wakeup)  # the reader sees the end of the pipe
        self._reader.join()
        self._reader = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or signal.Signals(number).name

    def _watch(self, read_end: int) -> None:
        """Runs in a thread: one byte arrives for every signal."""
        seen = 0
        while received := os.read(read_end, 1):
            number = received[0]
            if number not in SIGNALS:
                continue
            seen += 1
            if seen == 2:
                _restore_terminal()
                os._exit(128 + number)
            self._request(number, None)
            name = signal.Signals(number).name
            _tell(f"\n{name}: saving and stopping after this step; once more stops at once\n")
        os.close(read_end)


def _tell(text: str) -> None:
    """Write to stderr past Python's buffers, whose lock the main thread may hold."""
    with contextlib.suppress(OSError):  # nobody is left to read it
        os.write(2, text.encode())


def _restore_terminal() -> None:
    """Leave the line of the progress bar, show the cursor, end colours."""
    _tell("\x1b[0m\x1b[?25h\n" if sys.stderr.isatty() else "\n")
