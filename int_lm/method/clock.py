"""The clock of a run: its seed and its step. Noise and dithers depend on them."""

import dataclasses

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clock:
    """Seed and step, uint32 scalars.

    Attributes:
      seed: seed of the run.
      step: number of steps done before this one.
    """

    seed: Array
    step: Array
