"""Orbax for checkpoints: silent, in one process alone, and without threads left after an error.

Nothing here runs in the background. Orbax's `AsyncCheckpointer` is not used: its `__del__` asks
whether a thread is alive. If Python collects garbage while it starts another thread, that call
waits for ever for a lock that the same thread holds.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

WRITTEN_AT_ONCE = 2  # arrays
FILE_BYTES, FILES_AT_MOST = 1 << 21, 64  # of an array, before it is compressed: larger if need be


def orbax_module() -> Any:
    """Orbax, imported when first needed (it imports jax) and told to be silent."""
    import absl.logging
    import orbax.checkpoint

    absl.logging.set_verbosity(absl.logging.FATAL)  # every failure also raises an exception
    return orbax.checkpoint


def processes_of_orbax() -> Any:
    """Orbax's options for a process that reads or writes alone, also in a run of several."""
    import jax

    own = jax.process_index()
    options = orbax_module().options.MultiprocessingOptions
    return options(primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own))


def tree_handler() -> Any:
    """The handler that reads and writes trees of NumPy arrays without copying them.

    It writes files that each hold a part of an array. Orbax's default gathers all arrays in the
    files of one key-value store, and so in memory, until the last one is compressed. Both are read.
    """
    orbax = orbax_module()
    registry = orbax.type_handlers.create_type_handler_registry((np.ndarray, _patient_handler()))
    return orbax.PyTreeCheckpointHandler(
        multiprocessing_options=processes_of_orbax(),
        type_handler_registry=registry,
        use_ocdbt=False,
    )


def arguments(arrays: Mapping[str, np.ndarray]) -> Any:
    """What Orbax is told to write with `tree_handler`: arrays by name, each in files of its own."""
    orbax = orbax_module()
    return orbax.args.PyTreeSave(
        arrays,
        save_args={
            name: orbax.SaveArgs(chunk_byte_size=max(FILE_BYTES, array.nbytes // FILES_AT_MOST))
            for name, array in arrays.items()
        },
    )


def read_arrays(place: Path, target: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that Orbax wrote into the directory `place`.

    Args:
      place: an absolute path.
      target: by name, an array of the dtype and shape that the stored array has. If they differ,
        Orbax casts, pads or cuts without an error.

    Raises:
      Exception: errors of Orbax and TensorStore, after the reading of all arrays has ended.
    """
    orbax = orbax_module()
    arguments = orbax.args.PyTreeRestore(
        target, restore_args=orbax.checkpoint_utils.construct_restore_args(target)
    )
    alone = processes_of_orbax()
    with orbax.Checkpointer(tree_handler(), multiprocessing_options=alone) as reader:
        return reader.restore(place, args=arguments)


def _patient_handler() -> Any:
    """A handler of arrays that waits for all of them, even if one fails.

    Orbax's own handler returns at the first error and closes the event loop that the other arrays
    use. TensorStore's threads then print tracebacks, go on writing, or outlive the interpreter.
    """

    class PatientHandler(orbax_module().type_handlers.NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any) -> list[Any]:
            """Write each array in a thread; return when all writes have ended."""
            own, writes = super().serialize, []
            for one in zip(values, infos, args, strict=True):
                if len(writes) >= WRITTEN_AT_ONCE:
                    _error_of(writes[-WRITTEN_AT_ONCE])
                writes += await own(*([part] for part in one))
            errors = [error for write in writes if (error := _error_of(write)) is not None]
            if errors:
                raise errors[0]
            return writes

        async def deserialize(self, infos: Any, args: Any) -> list[np.ndarray]:
            own = super().deserialize
            reads = [own([info], [arg]) for info, arg in zip(infos, args, strict=True)]
            found = await asyncio.gather(*reads, return_exceptions=True)
            arrays = []
            for one in found:
                if isinstance(one, BaseException):
                    raise one
                arrays += one
            return arrays

    return PatientHandler(deepcopy_host_arrays=False)


def _error_of(write: Any) -> Exception | None:
    """Wait for a write; the error that it raised, or None."""
    try:
        write.result()
    except Exception as error:
        return error
    return None
