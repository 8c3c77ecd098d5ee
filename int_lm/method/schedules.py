"""Schedules: how rates rise and decay over a run. Floats; updates round them to their integers."""

import math

NAMES = ("constant", "linear", "inverse", "inverse_sqrt", "inverse_sqrt_to_zero", "cosine")


def decay(schedule: str, step: int, halflife: float, steps: int) -> float:
    """The factor, from 1 at step 0 down to 0, by which a rate is multiplied at `step`.

    Args:
      schedule: one of `NAMES` (`EsConfig` says what each does).
      step: number of steps done before.
      halflife: in steps; of the inverse schedules.
      steps: number of steps of the whole run; of the schedules that end at 0.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "inverse":
        return 1.0 / (1.0 + step / halflife)
    if schedule == "inverse_sqrt":
        return 1.0 / math.sqrt(1.0 + step / halflife)
    done = min(1.0, step / max(1, steps))
    if schedule == "inverse_sqrt_to_zero":
        return (1.0 - done) / math.sqrt(1.0 + step / halflife)
    return 1.0 - done if schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0


def warm(step: int, warmup: int) -> float:
    """The factor, in (0, 1], by which a rate is multiplied at `step` while it rises.

    Args:
      step: number of steps done before.
      warmup: number of steps until the factor is 1; 0 for none.
    """
    return min(1.0, (step + 1) / max(1, warmup))
