"""The clock of a run: its seed and its step. Noise and dithers depend on them."""

import dataclasses

import jax
import numpy as np
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

    @classmethod
    def at(cls, seed: int, step: int) -> "Clock":
        """The clock as NumPy scalars, to be an argument of a compiled program."""
        return cls(np.uint32(seed), np.uint32(step))  # type: ignore[arg-type]
