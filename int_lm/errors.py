"""The one exception that speaks to the user, and the exit code that goes with it."""

import contextlib
import difflib
import sys
from collections.abc import Iterator, Sequence

EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3  # another process of the run is gone
EXIT_INTERRUPTED = 130  # as the shell has it: 128 + SIGINT


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

    So does Ctrl-C where nothing else sees to it, with exit code 130.
    """
    try:
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
        return EXIT_INTERRUPTED, "interrupted; what is finished is kept"
    message = explain_os_error(error) if isinstance(error, OSError) else str(error)
    return EXIT_USER_ERROR, message


def say(sentence: str) -> None:
    """One line on stderr of what is no mistake but worth knowing."""
    print(sentence, file=sys.stderr, flush=True)


def tell(program: str, message: str) -> None:
    """One line on stderr."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
