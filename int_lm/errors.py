"""The one exception that speaks to the user, and the exit code that goes with it."""

import contextlib
import difflib
import signal
import sys
from collections.abc import Iterator, Sequence

from int_lm import signals

EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3  # another process of the run is gone


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what, where and what to do next."""


def nearest(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """'; did you mean X?' for the closest known name, else `otherwise`, else the known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if otherwise is None else otherwise


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def explain_os_error(error: OSError) -> str:
    """One sentence for a failure of the file system (disk full, read-only, no permission)."""
    where = f" at {error.filename}" if error.filename else ""
    return (
        f"the file system refused{where}: {error.strerror or error}; "
        "free some space or choose a directory you can write to (--run.dir)"
    )


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """Run an entry point: a `UserError` or `OSError` becomes one line on stderr and exit code 2.

    So does a signal that asks to stop (`signals.STOPPING`), where nothing else sees to it, with
    the exit code that shells give it: 128 + its number, 130 for Ctrl-C.
    """
    try:
        with signals.Ending(lambda message: signals.tell(f"{program}: error: {message}\n")):
            yield
    except BrokenPipeError:  # the reader of our output went away (`| head`): not an error
        sys.stderr.close()
        sys.exit(0)
    except (UserError, OSError, KeyboardInterrupt) as error:
        status, message = explained(error)
        tell(program, message)
        sys.exit(status)


def explained(error: UserError | OSError | KeyboardInterrupt) -> tuple[int, str]:
    """Exit code and sentence for what a user can mend, or has asked for."""
    if isinstance(error, KeyboardInterrupt):
        stopped = error if isinstance(error, signals.Stopped) else signals.Stopped(signal.SIGINT)
        return 128 + stopped.number, str(stopped)
    message = explain_os_error(error) if isinstance(error, OSError) else str(error)
    return EXIT_USER_ERROR, message


def say(sentence: str) -> None:
    """One line on stderr of what is no mistake but worth knowing."""
    print(sentence, file=sys.stderr, flush=True)


def tell(program: str, message: str) -> None:
    """One line on stderr."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
