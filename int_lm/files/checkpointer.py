"""Writes the checkpoints of a run in the background, through Orbax (`checkpoint` reads them)."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from int_lm.errors import UserError
from int_lm.files import checkpoint, digest, storage
from int_lm.files.lock import Lock

COPIED_BYTES = 1 << 26  # arrays that are not lasting are copied up to this size
FIRST_RETRY = 1  # seconds until the next try after a save failed; doubled after each failure
LAST_RETRY = 300  # the longest of these times
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that Orbax has not finished


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """Which checkpoints Orbax keeps (a PreservationPolicy): the newest `keep` and the best."""

    keep: int
    evaluations: Mapping[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For every checkpoint, whether it is kept."""
        del context
        steps = [info.step for info in checkpoints]
        best = checkpoint.best_of({step: self.evaluations.get(step) for step in steps})
        kept = {*steps[-self.keep :], best}
        return [step in kept for step in steps]


class Checkpointer:
    """Writes checkpoints of one run in the background; a context manager.

    Creating a Checkpointer makes the directory and removes incomplete steps of killed processes.
    So only the process that trains may create one.

    A save that fails does not end the run: `poll` reports the failure, `retry_due` says when to
    save again, and `close` raises the error if no later save has succeeded.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest steps are kept; the best step is kept, too.
      lock: of the run directory; checked before and after every save.

    Raises:
      OSError: the directory cannot be created.
    """

    def __init__(self, directory: str | Path, *, keep: int, lock: Lock | None = None):
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._lock = lock
        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._leftovers():
            shutil.rmtree(leftover)
        self._manager: Any = None
        self._saving: threading.Thread | None = None
        self._saving_step = self._tried_step = -1
        self._error: Exception | None = None
        self._evaluations: dict[int, float | None] = {}
        self._failure: UserError | None = None  # of the last save; None if it succeeded
        self._reported = True
        self._retry_after = FIRST_RETRY
        self._retry_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def save(
        self,
        step: int,
        state: Any,
        host: Mapping[str, Any],
        *,
        valid_bits_per_byte: float | None,
        lasting: bool = False,
    ) -> None:
        """Write `state` in the background, after the previous save has ended.

        If the arrays are not lasting, they are copied first. If they are also larger than
        `COPIED_BYTES`, they are written before this returns; only the digests of the files are
        computed in the background. `poll` says later whether the save failed.

        Args:
          step: number of updates done; larger than that of every checkpoint in the directory.
          state: pytree of non-empty arrays.
          host: JSON-able data to keep beside the arrays.
          valid_bits_per_byte: bits per byte of held-out text at this step; None if not evaluated.
          lasting: whether the arrays can be held, and do not change, until they are written.
        """
        self._finish()
        arrays = {path: np.asarray(leaf) for path, leaf in checkpoint.leaves(state).items()}
        wait = not lasting and sum(array.nbytes for array in arrays.values()) > COPIED_BYTES
        if not (lasting or wait):
            arrays = {path: array.copy() for path, array in arrays.items()}
        document = {
            "format": checkpoint.FORMAT,
            "step": step,
            "valid_bits_per_byte": valid_bits_per_byte,
            "host": json.loads(digest.canonical_json(dict(host))),
        }
        write = functools.partial(self._write, arrays, document)
        try:
            if self._lock:
                self._lock.check()
            if wait:
                write()
        except Exception as error:
            self._failed(step, error)
            return
        self._saving_step = step
        left = None if wait else write
        self._saving = threading.Thread(target=self._complete, args=(left,), name="checkpoint")
        self._saving.start()

    def failed(self, step: int, error: Exception) -> None:
        """Record that `step` was not saved, for a caller who could not call `save`."""
        self._finish()
        self._failed(step, error)

    def poll(self) -> UserError | None:
        """The error of the last save, if it failed; each error is returned once, then None.

        Call this at every step: it never waits.
        """
        if self._saving is not None and not self._saving.is_alive():
            self._finish()
        failure = None if self._reported else self._failure
        self._reported = True
        return failure

    def retry_due(self) -> bool:
        """Whether the last save failed and it is time to try again.

        The time between tries is 1 s, then 2 s, 4 s, ..., at most 300 s.
        """
        return (
            self._saving is None
            and self._failure is not None
            and time.monotonic() >= self._retry_at
        )

    def wait(self) -> bool:
        """Wait for the last save; returns whether it succeeded."""
        self._finish()
        return self._failure is None

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints newer than `step`: a run that resumes at `step` writes them again.

        Raises:
          OSError: the file system refused.
        """
        self._finish()
        newest_first = reversed(checkpoint.steps(self._directory))
        for newer in itertools.takewhile(lambda found: found > step, newest_first):
            doomed = self._directory / f"{newer}{_UNFINISHED}"  # not a step any more if killed now
            (self._directory / str(newer)).rename(doomed)
            shutil.rmtree(doomed)
        self._forget()

    def close(self) -> None:
        """Wait for the last save, and close Orbax's manager.

        Raises:
          UserError: the last save failed.
        """
        self._finish()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise UserError(f"{failure}; mend that and run the same command again")

    def _write(self, arrays: Mapping[str, np.ndarray], document: dict[str, Any]) -> None:
        """Let Orbax write a step, unless an earlier try of this step wrote all but the digests.

        Such a try fails where an old step cannot be removed. Runs in a thread, except for large
        arrays that are not lasting.
        """
        step, newest = document["step"], checkpoint.latest_step(self._directory)
        if self._failure and step == self._tried_step == newest:
            return
        if step != newest:  # if it is there, it is another run's
            self._tried_step = step
        orbax = storage.orbax_module()
        if self._manager is None:
            self._manager = self._open()
        document["arrays"] = {
            path: {**checkpoint.signature(array), "sha256": digest.of_array(array)}
            for path, array in arrays.items()
        }
        document["sha256"] = digest.of_json(document)
        self._evaluations[step] = document["valid_bits_per_byte"]
        saved = self._manager.save(
            step,
            args=orbax.args.Composite(
                state=storage.arguments(arrays), host=orbax.args.JsonSave(document)
            ),
        )
        if not saved:
            newest = checkpoint.latest_step(self._directory)
            raise UserError(f"the directory holds the newer checkpoint {newest}")

    def _open(self) -> Any:
        """A new manager of Orbax for the current content of the directory."""
        self._evaluations = checkpoint.evaluations(self._directory)
        orbax, alone = storage.orbax_module(), storage.processes_of_orbax()
        return orbax.CheckpointManager(
            self._directory,
            item_handlers={
                "state": storage.tree_handler(),
                "host": orbax.JsonCheckpointHandler(
                    filename=checkpoint.HOST_FILE, multiprocessing_options=alone
                ),
            },
            options=orbax.CheckpointManagerOptions(
                create=False,  # `__init__` has made the directory
                multiprocessing_options=alone,
                preservation_policy=_NewestAndBest(self._keep, self._evaluations),
                lightweight_initialize=True,  # a damaged metadata file must not stop it
                enable_async_checkpointing=False,  # the thread is ours: see `storage`
            ),
        )

    def _complete(self, write: Callable[[], None] | None) -> None:
        """Runs in a thread: call `write` if it is given, then write the digests of the files."""
        try:
            if write is not None:
                write()
            digest.seal(self._directory / str(self._saving_step))
            if self._lock:  # TensorStore creates a directory again if it was moved or deleted
                self._lock.check()
        except Exception as error:
            self._error = error

    def _finish(self) -> None:
        if self._saving is None:
            return
        self._saving.join()
        self._saving = None
        error, self._error = self._error, None
        if error is not None:
            self._failed(self._saving_step, error)
        else:
            self._failure, self._reported, self._retry_after = None, True, FIRST_RETRY

    def _failed(self, step: int, error: Exception) -> None:
        self._forget()
        try:
            newest = checkpoint.latest_step(self._directory)
        except OSError:
            newest = None
        self._failure = UserError(
            f"checkpoint {step} could not be written to {self._directory}: "
            f"{checkpoint.reason(error)}; "
            + ("no checkpoint is there" if newest is None else f"the newest there is {newest}")
        )
        self._reported = False
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, LAST_RETRY)

    def _forget(self) -> None:
        """Close Orbax's manager: its record of the directory is out of date."""
        if self._manager is not None:
            with contextlib.suppress(Exception):  # it can raise the error of the save again
                self._manager.close()
        self._manager = None
        for leftover in self._leftovers():  # they may be what fills the disk
            shutil.rmtree(leftover, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        return list(self._directory.glob(f"*{_UNFINISHED}*"))
