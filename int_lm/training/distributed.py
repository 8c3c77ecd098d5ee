"""The processes of a run: how they meet, compare what they see, and notice that one is lost.

JAX's own runtime (`jax.distributed`) connects them: every process runs the same command, sees the
devices of all processes, and computes its members' part of every step. This module adds what a run
needs beyond that. Every process reads text, evaluates and counts steps by itself, from the same
numbers. Only the first process writes.
"""

import contextlib
import hashlib
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from int_lm import errors
from int_lm.config import DistributedConfig
from int_lm.errors import UserError
from int_lm.files import lock
from int_lm.files.lock import Lock
from int_lm.training import launchers

CONNECTING_SECONDS = 300  # for processes that start one after another
SILENT_SECONDS = 3.0  # then a message says for whom a process waits; again every minute
# JAX's runtime aborts a process if the heartbeats of another one are missing for too long.
# `Watchdog` must act earlier, because it says why. Its time may begin late: an evaluation can
# delay a process. So heartbeats may be missing for this many times `timeout`, plus a minute.
HEARTBEATS_OVER_TIMEOUT, HEARTBEAT_SECONDS = 2, 60


def expected(
    distributed: DistributedConfig, environment: Mapping[str, str]
) -> launchers.Launched | None:
    """The processes that this one must meet; None if there are no others.

    Args:
      environment: the environment variables, in which launchers describe their processes.

    Raises:
      UserError: a launcher started several processes, and they cannot find one another.
    """
    if distributed.coordinator == "auto":
        return launchers.launched(environment)
    if distributed.coordinator == "none" or distributed.processes <= 1:
        return None
    process = str(distributed.process_id)
    return launchers.Launched(distributed.processes, process, distributed.coordinator)


@contextlib.contextmanager
def processes(program: str, distributed: DistributedConfig) -> Iterator[None]:
    """Meet the other processes of the run, if there are any, and disconnect at the end.

    An error inside ends this process at once, after one sentence on stderr. An orderly exit would
    wait for the other processes. They notice that this one is gone, and end as well.

    Args:
      program: the name of the command, with which the sentence begins.

    Raises:
      UserError: the others cannot be met.
    """
    others = expected(distributed, os.environ)
    if others is None:
        yield
        return
    with _told(program, others):
        _connect(distributed)
    try:
        yield
    except BaseException as error:
        status, sentence = _explained(error)
        sys.stdout.flush()
        errors.tell(program, f"process {jax.process_index()}: {sentence}")
        os._exit(status)
    jax.distributed.shutdown()


@contextlib.contextmanager
def _told(program: str, others: launchers.Launched) -> Iterator[None]:
    """Say for whom this process waits, and where; end it after `CONNECTING_SECONDS`."""
    met = threading.Event()
    waits = f"process {others.process} of {others.processes}"

    def say() -> None:
        began, waiting = time.monotonic(), SILENT_SECONDS
        while not met.wait(waiting):
            if time.monotonic() - began >= CONNECTING_SECONDS:
                errors.tell(
                    program,
                    f"{waits} did not meet the others at {others.where} in {CONNECTING_SECONDS} "
                    "seconds; start all of them, with the same coordinator and a process_id of "
                    f"their own each, or train in one process with {launchers.ALONE}",
                )
                os._exit(errors.EXIT_USER_ERROR)
            errors.say(
                f"{waits} waits for the others at {others.where}, up to {CONNECTING_SECONDS} "
                f"seconds; if there are none, stop it and train alone with {launchers.ALONE}"
            )
            waiting = min(60, CONNECTING_SECONDS)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        met.set()
        teller.join()


def _connect(distributed: DistributedConfig) -> None:
    named = distributed.coordinator != "auto"
    heartbeats = HEARTBEAT_SECONDS + math.ceil(HEARTBEATS_OVER_TIMEOUT * distributed.timeout)
    # Otherwise JAX would handle SIGTERM. `interrupt` does, and `most` tells the other processes.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=distributed.coordinator if named else None,
            num_processes=distributed.processes if named else None,
            process_id=distributed.process_id if named else None,
            initialization_timeout=2 * CONNECTING_SECONDS,  # JAX aborts; `_told` is there before
            heartbeat_timeout_seconds=heartbeats,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of the run did not meet at {distributed.coordinator} "
            f"({str(error).splitlines()[0][:200]}); start all of them, with the same coordinator "
            "and a process_id of their own each"
        ) from error


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit status and sentence for the error that ended this process."""
    if isinstance(error, UserError | OSError | KeyboardInterrupt):
        return errors.explained(error)
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), str(error.code)
    first = (str(error).splitlines() or [""])[0][:200]
    if re.search(r"[Gg]loo|NCCL|coordination|[Cc]onnection|DEADLINE|UNAVAILABLE", str(error)):
        return errors.EXIT_LOST_PROCESS, (
            f"another process of the run ended or cannot be reached ({first}); start all of them "
            "again with the same commands: they go on from the newest checkpoint"
        )
    import traceback

    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {first}"


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[Lock | None]:
    """Hold the lock of a run directory in the first process; the others hold none.

    Raises:
      HeldError: another run holds it.
    """
    if not is_first():
        yield None
        return
    with lock.hold(directory, "wait until it ends, or choose another --run.dir") as held:
        yield held


def shares() -> tuple[int, int]:
    """(number of this process, number of processes), to divide work among them."""
    return jax.process_index(), jax.process_count()


def wait_for_first() -> None:
    """Wait until the first process has called this, too. All processes must call it."""
    most(0)


def most(value: int) -> int:
    """The largest of the values (int32) of all processes. All processes must call it."""
    return int(np.max(everyones(np.asarray(value, np.int32))))


def everyones(value: np.ndarray) -> np.ndarray:
    """The arrays of all processes on a new first axis, in the order of the processes.

    All processes must call it, with arrays of the same shape and dtype.
    """
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def require_agreement(what: str, value: Any) -> None:
    """Stop the run if its processes see different values.

    Args:
      what: names the value, for the error.
      value: its text (`str`) is compared.

    Raises:
      UserError: names the processes that differ from most of them.
    """
    own = np.frombuffer(hashlib.sha256(str(value).encode()).digest()[:8], np.uint32)
    odd = _odd_ones([bytes(row) for row in everyones(own)])
    if odd:
        raise UserError(
            f"process {', '.join(map(str, odd))} of {jax.process_count()} sees another {what} than "
            f"the others (here: {value}); all must be given the same configuration and see the "
            "same files"
        )


def require_equal_weights(step: int, lanes: np.ndarray) -> None:
    """Stop the run if copies of the weights differ.

    Args:
      step: number of updates done, for the error.
      lanes: the hash of every copy of this process, uint32 [devices, 2].

    Raises:
      UserError: names the process and the device that differ from most of them.
    """
    of_all = everyones(lanes)
    copies = [bytes(hash_2) for process in of_all for hash_2 in process]
    odd = _odd_ones(copies)
    if odd:
        devices = of_all.shape[1]
        named = ", ".join(f"device {i % devices} of process {i // devices}" for i in odd)
        raise UserError(
            f"the weights of {named} differ from those of the others after step {step}, which no "
            "sound machine does; take it out and start again: checkpoints before this step are "
            "those of a run whose processes agreed"
        )


def _odd_ones(values: list[bytes]) -> list[int]:
    """Indices of the values that are not the most frequent one (of equals, the first one)."""
    common, _ = Counter(values).most_common(1)[0]
    return [index for index, value in enumerate(values) if value != common]


class Watchdog:
    """Ends this process if the others keep it waiting: a context manager around calls that wait.

    The time limits of collectives are not reliable, and a process that waits in one cannot be
    interrupted. So a thread ends the process, with the exit status `errors.EXIT_LOST_PROCESS`.
    A run of one process is never ended.

    Args:
      program: the name of the command, with which the message begins.
      seconds: time limit; 0 for none.
    """

    def __init__(self, program: str, seconds: float):
        self._program, self._seconds = program, seconds
        self._timer: threading.Timer | None = None

    def __enter__(self) -> None:
        if self._seconds > 0 and jax.process_count() > 1:
            self._timer = threading.Timer(self._seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        sentence = (
            f"\n{self._program}: error: process {jax.process_index()}: waited {self._seconds:.0f} "
            "seconds for another process of the run, which is stuck or gone; end all of them and "
            "start them again with the same commands: they go on from the newest checkpoint\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, sentence.encode())
        os._exit(errors.EXIT_LOST_PROCESS)
