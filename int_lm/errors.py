"""The one exception that speaks to the user, and the exit code that goes with it."""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from int_lm import signals

EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3  # another process of the run is gone
EXIT_NOTHING_TO_TRAIN = 4  # for scripts that start a run repeatedly

REMEDIES = {  # of failures of the file system
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or choose another place"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may read and write"
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "check the path"),
}
# What stands in Python for flags that sentences name: patterns, and their replacements.
ARGUMENTS = (
    (r" ?\((?:see --help|--run)\)", ""),
    (r"(?<![\w/.-])--plugin (\S+)", r'trusted=["\1"]'),
    (r"(?<![\w/.-])--overwrite", "overwrite=True"),
    (r"(?<![\w/.-])--((?:\w+\.)?\w+)", r"\1"),  # a path may have -- in it, too
)


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


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 document`, `2,000 documents`.

    Args:
      count: how many.
      noun: for one.
      plural: for any other number; None for the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def differences(before: dict[str, Any], after: dict[str, Any], between: str) -> list[str]:
    """What differs between two mappings, each with its name and both values.

    Args:
      between: what stands between the values, such as `, now `.
    """
    return [
        f"{name} {before.get(name)!r}{between}{after.get(name)!r}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def in_python(sentence: str) -> str:
    """A sentence with flags, for callers of `int_lm.api`: with fields and arguments instead."""
    for flag, argument in ARGUMENTS:
        sentence = re.sub(flag, argument, sentence)
    return sentence


def explain_os_error(error: OSError) -> str:
    """One sentence for a failure of the file system (disk full, read-only, no permission)."""
    where = f" at {error.filename}" if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0, "mend that or choose another place")
    return f"the file system refused{where}: {error.strerror or error}; {remedy}"


@contextlib.contextmanager
def reported(program: str, kept: str = signals.FINISHED) -> Iterator[None]:
    """Run an entry point: a `UserError` or `OSError` becomes one line on stderr and exit code 2.

    So does a signal that asks to stop (`signals.STOPPING`), where nothing else sees to it, with
    the exit code that shells give it: 128 + its number, 130 for Ctrl-C. Its line ends with `kept`,
    about the work that is done.
    """
    _open_outputs()
    try:
        with (
            signals.Ending(lambda message: signals.tell(f"{program}: error: {message}\n"), kept),
            _written_out(),
        ):
            yield
    except BrokenPipeError:  # the reader of our output went away (`| head`): not an error
        drop_output()
        sys.exit(0)
    except (UserError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, OSError):
            unwritten = drop_output()
            error = error if error.filename else unwritten or error
        status, message = explained(error)
        tell(program, message)
        sys.exit(status)


@contextlib.contextmanager
def _written_out() -> Iterator[None]:
    """At its end what was printed is written, so that a failure of that is raised here.

    Otherwise Python would find it when it ends, and print a message of its own.
    """
    try:
        yield
    except SystemExit:  # of --help, or with an exit code of the command's own, which stays
        try:
            _flush()
        except BrokenPipeError:
            drop_output()
        raise
    _flush()


def _flush() -> None:
    """Write out what was printed: nothing, where the standard output is closed (`>&-`).

    Raises:
      OSError: it cannot be written; the error names the standard output.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise


def standard_input() -> BinaryIO:
    """The bytes of standard input, which a file name of - stands for.

    Raises:
      UserError: it is closed (`<&-`).
    """
    require(sys.stdin is not None, "standard input is closed; name the file to read instead of -")
    return sys.stdin.buffer


def output_is_closed() -> bool:
    """Whether the standard output is closed (`>&-`), so that what is printed goes nowhere."""
    return sys.stdout is None or getattr(sys.stdout, "name", None) == os.devnull


def _open_outputs() -> None:
    """Where stdout or stderr is closed (`>&-`), and so is None, what is printed goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def drop_output() -> OSError | None:
    """Leave out what was printed and is not written yet, if it cannot be written: why, or None."""
    try:
        _flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # no file, as in tests
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return error
    return None


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
