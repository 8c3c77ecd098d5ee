"""The clock of a run: what noise and dithers depend on besides a tensor and a pair."""

import dataclasses

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clock:
    """Uint32 scalars.

    Attributes:
      seed: of the run. step: steps done before.
    """

    seed: Array
    step: Array
