"""Pictures by matplotlib (the extra `plot`): one style, and the same bytes for the same data."""

import importlib
import importlib.util
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from int_lm.errors import UserError, require
from int_lm.files import atomic
from int_lm.plot import ABSCISSAS, Curve, Panel, title

FORMATS = (".png", ".svg", ".pdf")
PANEL = 4.8, 3.4  # width and height of a panel in inches


def pyplot() -> Any:
    """`matplotlib.pyplot`, which draws into files.

    Raises:
      UserError: matplotlib is not installed.
    """
    require(
        importlib.util.find_spec("matplotlib") is not None,
        "pictures need the package matplotlib: pip install 'int-lm[plot]'",
    )
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts, for example
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "int_lm"  # names inside an SVG do not change
    return importlib.import_module("matplotlib.pyplot")


def check(path: Path) -> None:
    """Refuse a name of a picture whose ending names no format.

    Raises:
      UserError: names the formats.
    """
    require(
        path.suffix.lower() in FORMATS,
        f"{path} does not end with a format of pictures; use one of {', '.join(FORMATS)}",
    )


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the ending of `path` names; the date is left out.

    Raises:
      UserError: the file cannot be written, or the ending is unknown.
    """
    check(path)
    ending = path.suffix.lower()[1:]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    try:
        with atomic.replacement(path) as file:
            figure.savefig(file, format=ending, metadata=undated)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another --out"
        ) from error
    finally:
        pyplot().close(figure)


def ticks(axis: Any) -> None:
    """Numbers such as 200 and 0.5 along a logarithmic axis, in place of powers of ten."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def draw(
    panels: Sequence[Panel],
    drawn: Sequence[Sequence[Curve]],
    x: str,
    logarithmic: Sequence[str] = (),
) -> Any:
    """A figure with the curves of every panel.

    Of several runs, each has one colour, and evaluations are drawn through, with points. Of a
    single run, each metric has a colour.

    Args:
      panels: at least one.
      drawn: their curves.
      x: a key of `ABSCISSAS`.
      logarithmic: axes that are logarithmic, of `x` and `y`.

    Raises:
      UserError: matplotlib is not installed, or an axis cannot be logarithmic.
    """
    columns = math.ceil(math.sqrt(len(panels)))
    lines = math.ceil(len(panels) / columns)
    figure, every = pyplot().subplots(
        lines,
        columns,
        figsize=(columns * PANEL[0], lines * PANEL[1]),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    labels = list(dict.fromkeys(curve.label for curves in drawn for curve in curves))
    for axes in every.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel, curves in zip(every.flat, panels, drawn, strict=False):
        for curve in curves:
            _draw_curve(axes, curve, panel, labels)
        axes.set(xlabel=ABSCISSAS[x], ylabel=panel.title)
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        for name in logarithmic:
            values = [value for curve in curves for value in getattr(curve, name)]
            require(
                any(value > 0 for value in values),
                f"--log {name} can show values above 0 only, and the panel of {panel.title} has "
                "none; leave it out, or choose others with --metric",
            )
            axes.set(**{f"{name}scale": "log"})
            ticks(getattr(axes, f"{name}axis"))
        if len(curves) > 1:
            axes.legend(fontsize="small")
    if len(labels) == 1:
        figure.suptitle(labels[0], fontsize="medium")
    return figure


def _draw_curve(axes: Any, curve: Curve, panel: Panel, labels: Sequence[str]) -> None:
    """Draw one curve; `labels` are those of all runs."""
    number, alone, several = panel.metrics.index(curve.metric), len(panel.metrics) == 1, len(labels)
    color = f"C{labels.index(curve.label) if several > 1 else number}"
    words = [curve.label] if several > 1 else []
    words += [] if alone and words else [title(curve.metric)]
    if curve.smooth != curve.y:
        axes.plot(curve.x, curve.y, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(
        curve.x,
        curve.smooth,
        color=color,
        label=", ".join(words),
        linestyle="--" if several > 1 and number == 0 and not alone else "-",
        marker="" if curve.every and len(curve.x) > 1 else ".",
    )
