"""Schedules: how rates decay over a run. Reals, of which every update makes its own integers."""

import math


def decay(schedule: str, step: int, halflife: float, steps: int) -> float:
    """What a scheduled value has decayed to at `step`, as a factor from 1 down (see `EsConfig`)."""
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
