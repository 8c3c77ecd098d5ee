"""Faults of a run of two processes: what one suffers, the other must not wait for."""

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator

from .bench import Bench, Fault, Outcome, Training
from .cases import SAME

TIMEOUT = 20  # seconds, --distributed.timeout
PAUSE = 6 * TIMEOUT  # in which the other process must have ended


@contextlib.contextmanager
def two(bench: Bench, name: str, *flags_of_second: str) -> Iterator[tuple[Training, Training]]:
    """The two processes of a run, on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", "2"]
    flags += ["--distributed.timeout", str(TIMEOUT), "--distributed.process_id"]
    with (
        bench.training(name, [*flags, "0"]) as first,
        bench.training(name, [*flags, "1", *flags_of_second]) as second,
    ):
        yield first, second


def _goes_on_as_two(bench: Bench, name: str) -> None:
    """The same commands once more end as the undisturbed run of one process."""
    with two(bench, name) as (first, second):
        first.assert_ends_as_undisturbed()
        assert second.end() == 0


def one_told_to_stop(bench: Bench) -> Outcome:
    """SIGTERM to the second process alone; one process goes on."""
    with two(bench, "one_told") as (first, second):
        first.until_checkpoint()
        second.process.terminate()
        assert [first.end(), second.end()] == [0, 0]
        last = first.stdout().strip().splitlines()[-1]
        assert last.startswith(f"saved step {first.newest()}")
    bench.assert_goes_on("one_told")
    return Outcome(
        f"exit code 0 of both, at the same step: `{last}`",
        "every step; one process or two go on to the weights and the log of the undisturbed run",
    )


def _killed(bench: Bench, name: str, victim: int) -> Outcome:
    with two(bench, name) as both:
        both[0].until_between_checkpoints()
        both[victim].kill()
        other = both[1 - victim]
        ended = other.process.wait(PAUSE)
        if victim == 0 and ended == -signal.SIGABRT:  # the first one is JAX's coordinator
            assert "JAX distributed service" in other.stderr()
            said = "JAX, which was faster to see it, ended the process"
        else:
            assert ended == 3, other.stderr()
            assert "Traceback" not in other.stderr()
            said = next(line for line in other.stderr().splitlines() if "another process" in line)
    _goes_on_as_two(bench, name)
    return Outcome(
        f"exit code 3 of the other: `{_general(said)}`", f"the newest checkpoint; {SAME}"
    )


def first_killed(bench: Bench) -> Outcome:
    """SIGKILL to the process that writes, where the others meet."""
    return _killed(bench, "first_killed", 0)


def second_killed(bench: Bench) -> Outcome:
    """SIGKILL to another one."""
    return _killed(bench, "second_killed", 1)


def one_stuck(bench: Bench) -> Outcome:
    """SIGSTOP to the second process."""
    with two(bench, "one_stuck") as (first, second):
        first.until_between_checkpoints()
        second.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert first.process.wait(PAUSE) == 3, first.stderr()
        assert time.monotonic() - began < PAUSE and "Traceback" not in first.stderr()
        said = next(line for line in first.stderr().splitlines() if "newest checkpoint" in line)
    _goes_on_as_two(bench, "one_stuck")
    return Outcome(
        f"exit code 3 after `--distributed.timeout`: `{_general(said)}`",
        f"the newest checkpoint; {SAME}",
    )


def another_configuration(bench: Bench) -> Outcome:
    """The second process is given another seed."""
    with two(bench, "another", "--run.seed", "1") as (first, second):
        assert [first.end(), second.end()] == [2, 2]
        seen = first.sentence()
        assert "sees another configuration" in seen
        assert not first.directory.exists()
    return Outcome(f"exit code 2 of both: `{_general(seen)}`", "nothing has been written")


def _general(line: str) -> str:
    """A line of stderr, without addresses and configurations."""
    return re.sub(r"\(.*\)", "(...)", line)


FAULTS = [
    Fault("SIGTERM to one of two processes", one_told_to_stop),
    Fault("SIGKILL to the first of two processes", first_killed),
    Fault("SIGKILL to the second of two processes", second_killed),
    Fault("one of two processes is stuck (SIGSTOP)", one_stuck),
    Fault("two processes are given different configurations", another_configuration),
]
