"""Orbax as checkpoints use it: silent, one process alone, and failing only when it is at rest.

Nothing here runs in the background. Orbax's `AsyncCheckpointer` is not used: its `__del__` asks a
thread whether it lives, and where Python collects garbage while it starts another thread, that
waits for ever for a lock that it holds itself.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np


def orbax_module() -> Any:
    """Orbax, imported when first needed (it imports jax) and told to be silent."""
    import absl.logging
    import orbax.checkpoint

    absl.logging.set_verbosity(absl.logging.FATAL)  # every failure reaches us as an exception
    return orbax.checkpoint


def processes_of_orbax() -> Any:
    """What tells Orbax that this process reads or writes alone, whatever other ones there are."""
    import jax

    own = jax.process_index()
    options = orbax_module().options.MultiprocessingOptions
    return options(primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own))


def tree_handler() -> Any:
    """What reads and writes trees of NumPy arrays, without copying them."""
    orbax = orbax_module()
    registry = orbax.type_handlers.create_type_handler_registry((np.ndarray, _patient_handler()))
    return orbax.PyTreeCheckpointHandler(
        multiprocessing_options=processes_of_orbax(), type_handler_registry=registry
    )


def read_arrays(place: Path, target: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that Orbax wrote into the directory `place`.

    Args:
      place: absolute.
      target: an array of the dtype and shape to expect for every name. Orbax casts, pads and cuts
        what differs without a word.

    Raises:
      Exception: what Orbax and TensorStore raise, when no array is being read any more.
    """
    orbax = orbax_module()
    arguments = orbax.args.PyTreeRestore(
        target, restore_args=orbax.checkpoint_utils.construct_restore_args(target)
    )
    alone = processes_of_orbax()
    with orbax.Checkpointer(tree_handler(), multiprocessing_options=alone) as reader:
        return reader.restore(place, args=arguments)


def _patient_handler() -> Any:
    """Orbax's handler of arrays, which waits for all of them even if one fails.

    Orbax's own leaves at the first error and closes the event loop under the others: TensorStore's
    threads then print tracebacks, go on writing, or meet an interpreter that has ended.
    """

    class PatientHandler(orbax_module().type_handlers.NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any) -> list[Any]:
            """Writes each array in a thread; returns when all are done."""
            own = super().serialize
            each = zip(values, infos, args, strict=True)
            writes = [write for one in each for write in await own(*([part] for part in one))]
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
    """Wait for a write; what went wrong."""
    try:
        write.result()
    except Exception as error:
        return error
    return None
