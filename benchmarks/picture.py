"""The picture of the README: held-out bits per byte against seconds of training.

    python benchmarks/picture.py --rows ROWS.jsonl ... --out docs/learning.svg
                                 [--run runs/quickstart ...] [--level gzip=2.927 ...]

Draws the rows that `benchmarks/learning.py --out` wrote, medians over seeds with the range between
the best and the worst seed, and the evaluations in the `metrics.jsonl` of run directories. Needs
`pip install -e '.[bench]'`.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from int_lm import errors

Point = tuple[str, float, float]  # curve, seconds, bits per byte


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise errors.UserError(f"{path} line {number}: not a line of JSON") from None
    except OSError as error:
        raise errors.UserError(f"{path}: {error.strerror}") from None


def of_rows(path: Path) -> Iterator[Point]:
    """Points of a file of `benchmarks/learning.py`."""
    for row in lines(path):
        yield row["recipe"], float(row["at"]), row["bits_per_byte"]


def of_run(directory: Path) -> Iterator[Point]:
    """Points of a run's metrics: its evaluations on held-out text."""
    for row in lines(directory / "metrics.jsonl"):
        if row.get("valid_bits_per_byte") is not None:
            yield directory.name, row["seconds"], row["valid_bits_per_byte"]


def draw(points: list[Point], levels: dict[str, float], out: Path) -> None:
    """A line for each curve and a dashed one for each level; the format is `out`'s suffix."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "int_lm"  # the same picture, the same bytes
    from matplotlib import pyplot

    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, seconds, bits in points:
        curves[name][seconds].append(bits)
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for name, measured in curves.items():
        seconds = sorted(measured)
        [line] = axes.plot(
            seconds, [statistics.median(measured[at]) for at in seconds], marker=".", label=name
        )
        axes.fill_between(
            seconds,
            [min(measured[at]) for at in seconds],
            [max(measured[at]) for at in seconds],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    for name, bits in levels.items():
        axes.axhline(bits, linestyle="--", linewidth=0.8, color="gray")
        axes.annotate(
            name,
            (1, bits),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            color="gray",
        )
    axes.set(xscale="log", xlabel="seconds of training", ylabel="held-out bits per byte")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--run", nargs="+", type=Path, default=[], metavar="DIR")
    parser.add_argument("--level", nargs="+", default=[], metavar="NAME=BITS")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".svg, .png, .pdf")
    arguments = parser.parse_args()
    points = [point for path in arguments.rows for point in of_rows(path)]
    points += [point for path in arguments.run for point in of_run(path)]
    if not points:
        raise errors.UserError("nothing to draw: name files with --rows or runs with --run")
    levels = {name: float(bits) for name, _, bits in (x.partition("=") for x in arguments.level)}
    draw(points, levels, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    with errors.reported("picture.py"):
        main()
