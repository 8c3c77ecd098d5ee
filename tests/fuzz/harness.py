"""Starts `child` on numbered mutations of formats and collects what came of them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.formats import FORMATS

ROOT = Path(__file__).resolve().parent.parent.parent
# A format without digests has no forgeries: whatever is written is as good as damage.
LABELS = tuple(
    f"{name}:{mode}"
    for name in FORMATS
    for mode in ("damage", "forge")
    if mode == "damage" or FORMATS[name].forge
)


@dataclass
class Outcome:
    """What came of reading mutated files.

    Attributes:
      counts: how often they were refused, the same as before, another valid value, or a fault.
      faults: (number of the mutation, what was wrong) of every fault.
      seconds: the longest reading. excess: most bytes allocated above twice the size of the files.
    """

    counts: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    excess: int = 0

    def add(self, found: dict[str, Any]) -> None:
        for verdict, number in found["counts"].items():
            self.counts[verdict] = self.counts.get(verdict, 0) + number
        self.faults += [(number, problem) for number, problem in found["faults"]]
        self.seconds = max(self.seconds, found["seconds"])
        self.excess = max(self.excess, found["excess"])


def make(names: Sequence[str], room: Path) -> None:
    """Honest examples of formats, for `run`."""
    for name in names:
        directory = room / name / "honest"
        directory.parent.mkdir(parents=True)
        FORMATS[name].make(directory)


def run(labels: Sequence[str], room: Path, first: int, count: int) -> dict[str, Outcome]:
    """Read mutations `first` to `first + count - 1` of each of `LABELS`; a crash is a fault."""
    outcomes = {label: Outcome() for label in labels}
    left = [(list(labels), first, first + count)]
    while left:
        some, begin, end = left.pop()
        if not some or begin >= end:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.child", room, str(begin), str(end - begin), *some],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        for found in map(json.loads, done.stdout.splitlines()):
            outcomes[found["label"]].add(found)
            some.remove(found["label"])
        if done.returncode == 0:
            continue
        label, number, found = json.loads((room / "at").read_text())
        problem = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
        if number is None:  # the honest example cannot be read
            raise RuntimeError(f"{label}: {problem}")
        outcomes[label].add(found)
        outcomes[label].add({**found, "counts": {"fault": 1}, "faults": [(number, problem)]})
        some.remove(label)
        left += [(some, begin, end), ([label], number + 1, end)]
    return outcomes
