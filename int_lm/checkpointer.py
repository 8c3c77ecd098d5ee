"""Writes the checkpoints of a run in the background, through Orbax (`checkpoint` reads them)."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from int_lm import checkpoint, digest
from int_lm.errors import UserError

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that Orbax has not finished


def _without_abandoned_writes(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`hook`, deaf to the writes of a failed save that find Orbax's event loop closed.

    They would print a traceback each beside the one sentence that reports the failure.
    """

    def filtered(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return filtered


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """Which checkpoints Orbax keeps (a PreservationPolicy): the newest `keep` and the best."""

    keep: int
    evaluations: Mapping[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        best = checkpoint.best_of({step: self.evaluations.get(step) for step in steps})
        kept = {*steps[-self.keep :], best}
        return [step in kept for step in steps]


class Checkpointer:
    """Writes checkpoints of one run in the background; a context manager.

    Creating it makes the directory and removes what killed saves left behind, so only the process
    that trains may create one. The newest `keep` steps and the best one are kept.

    Raises:
      OSError: the directory cannot be created.
    """

    def __init__(self, directory: str | Path, *, keep: int):
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        self._manager: Any = None
        self._saving: threading.Thread | None = None
        self._saving_step = -1
        self._error: Exception | None = None
        self._evaluations: dict[int, float | None] = {}

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
    ) -> None:
        """Copy `state`, then write it in the background; waits for the save before, if any.

        Args:
          step: number of updates done; larger than that of every checkpoint in the directory.
          state: pytree of non-empty arrays.
          host: JSON-able data to keep beside it.
          valid_bits_per_byte: bits per byte of held-out text at this step; None if not evaluated.

        Raises:
          UserError: this or the save before could not be written, or `step` is not the newest.
        """
        self._finish()
        # Orbax copies NumPy arrays before `save` returns, so a later step may reuse the memory.
        arrays = {path: np.asarray(leaf) for path, leaf in checkpoint.leaves(state).items()}
        document: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "step": step,
            "valid_bits_per_byte": valid_bits_per_byte,
            "host": json.loads(digest.canonical_json(dict(host))),
            "arrays": {
                path: {**checkpoint.signature(array), "sha256": digest.of_array(array)}
                for path, array in arrays.items()
            },
        }
        document["sha256"] = digest.of_json(document)
        orbax = checkpoint.orbax_module()
        try:
            if self._manager is None:
                self._manager = self._open()
            self._evaluations[step] = valid_bits_per_byte
            saved = self._manager.save(
                step,
                args=orbax.args.Composite(
                    state=orbax.args.StandardSave(arrays), host=orbax.args.JsonSave(document)
                ),
            )
        except OSError as error:
            raise self._failed(step, error) from error
        if not saved:
            self._forget()
            raise UserError(
                f"checkpoint {step} was not written: {self._directory} holds the newer checkpoint "
                f"{checkpoint.latest_step(self._directory)}; choose another --run.dir"
            )
        self._saving_step = step
        self._saving = threading.Thread(target=self._complete, name="complete-checkpoint")
        self._saving.start()

    def poll(self) -> None:
        """Report a background save that failed; call it at every step, it never waits.

        Raises:
          UserError: the save could not be written; the steps before it are intact.
        """
        if self._saving is not None and not self._saving.is_alive():
            self._finish()

    def discard_after(self, step: int) -> None:
        """Delete the checkpoints newer than `step`, so that a run that fell back can write again.

        Raises:
          OSError: the file system refused.
        """
        self._finish()
        newest_first = reversed(checkpoint.steps(self._directory))
        for newer in itertools.takewhile(lambda found: found > step, newest_first):
            doomed = self._directory / f"{newer}{_UNFINISHED}"  # a kill from here on leaves no step
            (self._directory / str(newer)).rename(doomed)
            shutil.rmtree(doomed)
        self._forget()

    def close(self) -> None:
        """Wait until everything is on the disk.

        Raises:
          UserError: the last save could not be written; the steps before it are intact.
        """
        self._finish()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> Any:
        """Orbax's manager of the directory as it is now."""
        self._evaluations = checkpoint.evaluations(self._directory)
        orbax, alone = checkpoint.orbax_module(), checkpoint.processes_of_orbax()
        return orbax.CheckpointManager(
            self._directory,
            item_handlers={
                "state": orbax.StandardCheckpointHandler(multiprocessing_options=alone),
                "host": orbax.JsonCheckpointHandler(
                    filename=checkpoint.HOST_FILE, multiprocessing_options=alone
                ),
            },
            options=orbax.CheckpointManagerOptions(
                create=False,  # it was made when this checkpointer was
                multiprocessing_options=alone,
                preservation_policy=_NewestAndBest(self._keep, self._evaluations),
                lightweight_initialize=True,  # a damaged metadata file must not stop it
                # Otherwise the other writers wait, for minutes, for a directory that failed.
                async_options=orbax.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def _complete(self) -> None:
        """Runs in a thread: wait for Orbax, then list the digests of what it wrote."""
        try:
            self._manager.wait_until_finished()
            digest.seal(self._directory / str(self._saving_step))
        except Exception as error:
            self._error = error

    def _finish(self) -> None:
        if self._saving is None:
            return
        self._saving.join()
        self._saving = None
        error, self._error = self._error, None
        if error is not None:
            raise self._failed(self._saving_step, error) from error

    def _failed(self, step: int, error: Exception) -> UserError:
        sys.unraisablehook = _without_abandoned_writes(sys.unraisablehook)
        self._forget()
        return UserError(
            f"checkpoint {step} could not be written to {self._directory}: "
            f"{checkpoint.reason(error)}; earlier checkpoints are intact; free some space or "
            "choose a directory you can write to (--run.dir)"
        )

    def _forget(self) -> None:
        """Drop what is remembered of the directory, which has changed behind Orbax's back."""
        if self._manager is not None:
            with contextlib.suppress(Exception):  # it repeats the error that brought us here
                self._manager.close()
        self._manager = None
