"""How long a run is: `run.steps`, and the steps at which it was changed.

The rates of some schedules depend on it. So steps that are computed again, to verify a run, need to
know which value each of them had. Checkpoints keep it in their host data (`resume`).
"""

from collections.abc import Mapping
from typing import Any

from int_lm.config import Config, RunConfig
from int_lm.errors import counted
from int_lm.method import schedules


def of(host: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Steps from which `run.steps` had another value, with that value; the first of them is 0.

    In checkpoints that do not say when it changed, the last value counts for all steps.

    Args:
      host: the host data of a checkpoint, checked.
    """
    last = host["config"].get("run", {}).get("steps", RunConfig().steps)
    return [(first, steps) for first, steps in host.get("lengths") or [(0, last)]]


def after(host: Mapping[str, Any] | None, settings: Config, first: int) -> list[tuple[int, int]]:
    """`of` a run that goes on with `settings`.

    Args:
      host: the host data of the checkpoint; None for a new run.
      first: its step; 0 for a new run.
    """
    lengths = [length for length in of(host) if length[0] < first] if host else []
    same = lengths and lengths[-1][1] == settings.run.steps
    return lengths if same else [*lengths, (first, settings.run.steps)]


def changed(host: Mapping[str, Any], settings: Config) -> str | None:
    """A sentence if `run.steps` changed and the schedule depends on it; otherwise None.

    The weights then differ from those of a run that had the new length from its start.

    Args:
      host: the host data of the checkpoint, checked.
    """
    before, now = host["config"].get("run", {}).get("steps"), settings.run.steps
    if type(before) is not int:
        return None
    schedule = settings.es.schedule
    if schedules.decay(schedule, 1, 1.0, before) == schedules.decay(schedule, 1, 1.0, now):
        return None
    return (
        f"es.schedule {schedule} ends at run.steps, which was {before} and is {now}: rates go on "
        f"as those of a run of {counted(now, 'step')}, to other weights than such a run would have"
    )
