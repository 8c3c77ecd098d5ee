"""Orbax as checkpoints use it: silent, one process alone, and failing only when it is at rest."""

import asyncio
from collections.abc import Sequence
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


def tree_handler(numpy_handler: Any) -> Any:
    """What reads and writes trees whose arrays are left to `numpy_handler`, a `NumpyHandler`."""
    orbax = orbax_module()
    registry = orbax.type_handlers.create_type_handler_registry((np.ndarray, numpy_handler))
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
    handler = tree_handler(_patient_reader())
    with orbax.Checkpointer(handler, multiprocessing_options=processes_of_orbax()) as reader:
        return reader.restore(place, args=arguments)


def _patient_reader() -> Any:
    """Orbax's reader of arrays, which waits for all of them even if one cannot be read.

    Orbax's own leaves at the first error and closes the event loop under the others: TensorStore's
    threads then print tracebacks, or meet an interpreter that has ended.
    """

    class PatientReader(orbax_module().type_handlers.NumpyHandler):
        async def deserialize(self, infos: Sequence[Any], args: Sequence[Any]) -> list[np.ndarray]:
            own = super().deserialize
            reads = [own([info], [arg]) for info, arg in zip(infos, args, strict=True)]
            found = await asyncio.gather(*reads, return_exceptions=True)
            arrays = []
            for one in found:
                if isinstance(one, BaseException):
                    raise one
                arrays += one
            return arrays

    return PatientReader()
