"""Curves of runs, out of their `metrics.jsonl`; `picture` draws them.

A metric is a number of a row. One that rows hold for every tensor or layer, such as
`vote_agreement`, is their mean, and `vote_agreement/head` is that of one of them.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from int_lm.errors import UserError, nearest, require
from int_lm.files import names as file_names
from int_lm.training import metrics_file

ABSCISSAS = {"step": "steps", "seconds": "seconds of training", "tokens": "tokens read by members"}


class Panel(NamedTuple):
    """What is drawn over one another by default, if a run has any of it.

    Attributes:
      title: of the axis.
      metrics: names of the metrics.
    """

    title: str
    metrics: tuple[str, ...]


PANELS = (
    Panel("bits per byte", ("train_bits_per_byte", "valid_bits_per_byte")),
    Panel("score", ("train_score",)),
    Panel("reward", ("reward_mean", "heldout_reward")),
    Panel("share solved", ("solved", "heldout_solved")),
    Panel("agreement of votes", ("vote_agreement",)),
    Panel("entropy of activations (bits)", ("activation_entropy",)),
    Panel("share of weights moved", ("changed",)),
)
# What rows also hold, and is drawn only if it is named.
OTHERS = frozenset(
    {
        *("step", "seconds", "tokens", "tokens_per_second", "shares", "distinct"),
        *("completion_tokens", "reward_best", "saturated", "activation_saturation"),
    }
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
      metric: its name.
      label: of the run.
      every: whether all rows of the run have it, as those of an evaluation have not.
      x: the abscissas.
      y: the values.
      smooth: means of the last values, as many as are asked for; `y` if none are.
    """

    metric: str
    label: str
    every: bool
    x: list[float]
    y: list[float]
    smooth: list[float]

    def summary(self) -> dict[str, Any]:
        """Its metric, and number, first, last, least and largest of its values."""
        return {
            "metric": self.metric,
            "points": len(self.y),
            "first": self.y[0],
            "last": self.y[-1],
            "least": min(self.y),
            "most": max(self.y),
            "x_first": self.x[0],
            "x_last": self.x[-1],
            "smooth_last": self.smooth[-1],
        }


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
      root: the run directory.
      label: of the run in the picture.
      rows: with nested values named as `metrics_file.flat` does; at least one.
    """

    root: Path
    label: str
    rows: list[dict[str, Any]]

    def names(self) -> list[str]:
        """The names of all metrics: those of numbers, and of what they are parts of."""
        found: dict[str, None] = {}
        for row in self.rows:
            for name in (name for name in row if _is_number(row[name])):
                parts = name.split("/")
                found |= {"/".join(parts[:end]): None for end in range(1, len(parts) + 1)}
        return list(found)

    def curve(self, metric: str, x: str, smooth: int) -> Curve | None:
        """A metric of this run; None if no row has it.

        Args:
          metric: its name.
          x: a key of `ABSCISSAS`.
          smooth: number of the last values whose mean is drawn; 1 for none.
        """
        places, values = [], []
        for row in self.rows:
            place = row.get(x, 0 if row["step"] == 0 else None)
            found = [
                value
                for name, value in row.items()
                if (name == metric or name.startswith(f"{metric}/")) and _is_number(value)
            ]
            if found and _is_number(place):
                places.append(place)
                values.append(statistics.fmean(found) if len(found) > 1 else found[0])
        if not values:
            return None
        every = len(values) >= len(self.rows) - 1  # row 0 of a tuning has no more than rewards
        mean = [
            statistics.fmean(values[max(0, end - smooth) : end])
            for end in range(1, len(values) + 1)
        ]
        return Curve(metric, self.label, every, places, values, mean if every else values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def labels(roots: Sequence[Path]) -> list[str]:
    """Names for run directories: as many of their last parts as tell them apart."""
    whole = [root.resolve() for root in roots]
    longest = max(len(root.parts) for root in whole)
    for count in range(1, longest + 1):
        found = ["/".join(root.parts[-count:]) for root in whole]
        if len(set(found)) == len(set(whole)):
            return found
    return [str(root) for root in roots]


def read(roots: Sequence[Path], names: Sequence[str] | None = None) -> list[Rows]:
    """The rows of runs.

    Args:
      roots: run directories.
      names: labels, one for each run; None for those of `labels`.

    Raises:
      UserError: a directory holds no run, or its metrics are damaged or empty.
    """
    require(
        names is None or len(names) == len(roots),
        f"--label names {len(names or ())}, but runs are {len(roots)}; give a name for each",
    )
    found = []
    for root, label in zip(roots, names or labels(roots), strict=True):
        path = root / file_names.METRICS
        if not path.is_file():
            raise UserError(
                f"{root} holds no run: there is no {path.name}; name the directory that training "
                "printed"
            )
        rows = [metrics_file.flat(row) for row in metrics_file.read(path)]
        if not rows:
            raise UserError(
                f"{path} has no rows yet; let the run go on until the first line of its log"
            )
        found.append(Rows(root, label, rows))
    return found


def panels(runs: Iterable[Rows], metrics: Sequence[str] = ()) -> list[Panel]:
    """What to draw: a panel for each metric that is named, or all that the runs have of `PANELS`.

    Metrics that neither `PANELS` nor `OTHERS` know are drawn too, each in a panel of its own.

    Raises:
      UserError: no run has a metric of this name; the message has the nearest one.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    for metric in metrics:
        hint = nearest(metric, names)
        require(metric in names, f"no run has a metric {metric}{hint}")
    if metrics:
        return [Panel(metric, (metric,)) for metric in dict.fromkeys(metrics)]
    known = OTHERS.union(*(panel.metrics for panel in PANELS))
    more = [Panel(name, (name,)) for name in names if "/" not in name and name not in known]
    return [panel for panel in PANELS if set(panel.metrics) & set(names)] + more


def curves(runs: Sequence[Rows], panels: Sequence[Panel], x: str, smooth: int) -> list[list[Curve]]:
    """The curves of every panel, by run and metric; the arguments are those of `Rows.curve`."""
    return [
        [
            curve
            for run in runs
            for metric in panel.metrics
            if (curve := run.curve(metric, x, smooth))
        ]
        for panel in panels
    ]


def summary(runs: Sequence[Rows], drawn: Sequence[Sequence[Curve]]) -> list[dict[str, Any]]:
    """What is drawn of every run: {run, label, rows, last_step, curves: `Curve.summary` of each}.

    Args:
      runs: the runs.
      drawn: the curves of every panel.
    """
    every = [curve for panel in drawn for curve in panel]
    return [
        {
            "run": str(run.root),
            "label": run.label,
            "rows": len(run.rows),
            "last_step": run.rows[-1]["step"],
            "curves": [curve.summary() for curve in every if curve.label == run.label],
        }
        for run in runs
    ]


def title(metric: str) -> str:
    """A metric in words, beside the title of its panel."""
    words = metric.removesuffix("_bits_per_byte").removesuffix("_mean").replace("_", " ")
    return words.replace("heldout", "held out")
