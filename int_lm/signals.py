"""Signals that ask a program to stop or to save; they are answered even during a long computation.

SIGINT (Ctrl-C) and SIGTERM ask to stop. So do SIGUSR1 and SIGUSR2, which schedulers send before the
time of a job is over (`sbatch --signal=USR1@120`), and SIGHUP, which a terminal sends when it is
closed. The last three end a program that does not catch them, without a message or a save.

Python runs its signal handlers only between bytecodes of the main thread. So they do not run while
JAX compiles or computes. For this reason the number of the signal is also written to a pipe, which
a thread reads.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Self

# Signals of schedulers and terminals: a second one of these does not end a program at once.
ANNOUNCING = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
STOPPING = (signal.SIGINT, signal.SIGTERM, *ANNOUNCING)
FINISHED, NOTHING = "what is finished is kept", "nothing is kept"  # ends of messages
AGAIN_SECONDS = 0.02  # from an exception that was swallowed to the next one
LEAVING_SECONDS = 5.0  # longest time from a signal to the end of a command with nothing to save


class Stopped(KeyboardInterrupt):
    """A signal ended the command. It is raised in the main thread.

    Attributes:
      number: the signal.
    """

    def __init__(self, number: int, kept: str = FINISHED) -> None:
        """Make the exception.

        Args:
          number: the signal.
          kept: the end of the message, about the work that is done.
        """
        super().__init__(kept)
        self.number = signal.Signals(number)

    def __str__(self) -> str:
        name = "interrupted" if self.number == signal.SIGINT else f"{self.number.name}: stopped"
        return f"{name}; {self.args[0]}"


class Listener:
    """A context manager that catches signals; outside the main thread it does nothing.

    Signals that the program ignores (SIGHUP under `nohup`) stay ignored. Signals of `ANNOUNCING`
    for which other code has a handler keep that handler.

    Args:
      numbers: the signals to catch.
      heard: called for every signal in a thread, at once.
      handle: called for every signal in the main thread, as soon as Python can do so.
      ignored: signals of `numbers` that are caught even if the program ignores them.
    """

    def __init__(
        self,
        numbers: Iterable[signal.Signals],
        heard: Callable[[signal.Signals], None],
        handle: Callable[[signal.Signals], None],
        ignored: tuple[signal.Signals, ...] = (),
    ) -> None:
        self._numbers, self._heard, self._handle = tuple(numbers), heard, handle
        self._ignored = ignored
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup = self._wakeup = -1
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        read_end, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._reader = threading.Thread(target=self._watch, args=(read_end,), daemon=True)
        self._reader.start()
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup)
        for number in self._numbers:
            if self._may_catch(number):
                self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader is None:
            return
        for number, handler in self._previous.items():  # None: the handler is not Python's
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._wakeup)  # the reader sees the end of the pipe
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._reader = None

    def _may_catch(self, number: signal.Signals) -> bool:
        handler = signal.getsignal(number)
        if handler == signal.SIG_IGN:
            return number in self._ignored
        ours = isinstance(getattr(handler, "__self__", None), Listener)
        return number not in ANNOUNCING or handler == signal.SIG_DFL or ours

    def _caught(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._handle(signal.Signals(number))

    def _watch(self, read_end: int) -> None:
        """Runs in a thread: one byte arrives for every signal that Python has a handler for."""
        while received := os.read(read_end, 1):
            if received[0] in self._previous:
                self._heard(signal.Signals(received[0]))
            elif self._previous_wakeup >= 0:  # the pipe of the listener around this one
                with contextlib.suppress(OSError):
                    os.write(self._previous_wakeup, received)
        os.close(read_end)


class Ending(Listener):
    """A context for a command: a signal raises `Stopped` in the main thread.

    If the command has not ended after `LEAVING_SECONDS`, the process is ended. An exception that is
    raised where nobody can catch it, in a callback of the garbage collector such as JAX's, is lost;
    then the signal is sent again.

    Args:
      say: called with the message before the process is ended in this way.
      kept: the end of the message, about the work that is done.
    """

    def __init__(self, say: Callable[[str], None], kept: str = FINISHED) -> None:
        super().__init__(STOPPING, self._wait, self._raise)
        self._say, self._kept = say, kept
        self._raised = False
        self._left = threading.Event()
        self._previous_hook = sys.unraisablehook

    def __enter__(self) -> Self:
        sys.unraisablehook = self._lost
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._left.set()
        sys.unraisablehook = self._previous_hook
        super().__exit__(*error)

    def _lost(self, lost: "sys.UnraisableHookArgs") -> None:
        if not isinstance(lost.exc_value, Stopped):
            self._previous_hook(lost)
            return
        self._raised = False
        again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), lost.exc_value.number))
        again.daemon = True
        again.start()

    def _raise(self, number: signal.Signals) -> None:
        if not self._raised:
            self._raised = True
            raise Stopped(number, self._kept)
        if number not in ANNOUNCING:  # the second signal: the command is ending too slowly
            leave(number)

    def _wait(self, number: signal.Signals) -> None:
        """Runs in the thread, because the main thread may be in a long call of native code."""
        if not self._left.wait(LEAVING_SECONDS):
            self._say(str(Stopped(number, self._kept)))
            leave(number)


class Spared(Listener):
    """A context in which there is nothing to save: signals only print a message.

    Args:
      names: of the signals, such as `USR1`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        numbers = tuple(signal.Signals[f"SIG{name}"] for name in names)
        super().__init__(numbers, self._answer, lambda number: None)

    @staticmethod
    def _answer(number: signal.Signals) -> None:
        tell(f"{number.name}: nothing to save at present; going on\n")


def tell(text: str) -> None:
    """Write to stderr without Python's buffers, because the main thread may hold their lock."""
    with contextlib.suppress(OSError):  # stderr is closed
        os.write(2, text.encode())


def leave(number: int) -> None:
    """Restore the terminal and end the process at once, with the exit status 128 + `number`."""
    tell("\x1b[0m\x1b[?25h\n" if sys.stderr.isatty() else "\n")
    os._exit(128 + number)
