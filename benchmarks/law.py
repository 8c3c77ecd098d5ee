"""How held-out bits per byte fall with the size of a network and the text that it reads.

    python benchmarks/law.py --point 64x2x1000 96x2x2000 192x3x2000+ ... --out ROWS.jsonl
        [--config configs/machine_text.yaml] [--set es.learning_rate=0.5 ...]
    python benchmarks/law.py --rows docs/law.jsonl [--widths 64 96] [--picture FILE.svg] [--json]

A point is WIDTHxLAYERSxSTEPS: one run with a schedule of its own, whose rates fall to 0 at its last
step, for a run in the middle of its schedule is no fair point. Points are networks alone; one that
ends with + has the context tables and the document cache of the configuration, and 1x1xSTEPS+ is
tables and cache with hardly a network. All are scored on the same pieces of held-out text, those
that training looks at. Seconds are of the processor, in steps alone. Rows go to --out as they come.

In training a stream reads windows of up to 65,536 tokens to their ends, so that a run of some
hundred steps sees the first pages of few documents. Here it moves on after --at_most tokens.

With --rows nothing is trained. The law

    bits = E + A (N / 10^6)^-a + B (T / 10^6)^-b

is fitted to the networks alone: N weights without embedding and readout, T bytes of text read
(Hoffmann et al., arXiv 2203.15556). Printed are the residuals, what every parameter becomes if one
point is left out, and what the law says for a day: of one core, at the operations per second of
the rows, and of a GPU, at a rate that was measured on one H100 by benchmarks/scaling.py. The second
is an extrapolation over orders of magnitude.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common
from benchmarks.points import Point, beside, row_of, settings_of
from int_lm import cache, config, errors
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.plot import picture
from int_lm.training import plan

DAY = 86400.0  # seconds
LAYERS_AT_MOST = 24
CHANNELS_A_LAYER = 64  # of the networks that days are spent on: width over layers, as in 192x3
SIZES = "network", "width", "layers"
KEYS = (  # of a row
    *("width", "layers", "steps", "tables", "learning_rate", "weights", "network", "text_tokens"),
    *("operations", "processor_seconds", "bits_per_byte"),
)


@dataclasses.dataclass(frozen=True)
class Law:
    """bits = E + A (N / 10^6)^-a + B (T / 10^6)^-b."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def bits(self, network: Any, text: Any) -> Any:
        """Bits per byte of a network of so many weights that has read so many bytes."""
        size = self.A * (np.asarray(network) / 1e6) ** -self.a
        return self.E + size + self.B * (np.asarray(text) / 1e6) ** -self.b


def fitted(rows: Sequence[dict[str, Any]], near: Law | None = None) -> Law:
    """The law with the least squares of log(bits of the law / bits of the row).

    Args:
      rows: networks alone.
      near: where to start from; None: from several places.
    """
    from scipy.optimize import least_squares

    network, text, bits = (
        np.array([row[key] for row in rows], float)
        for key in ("network", "text_tokens", "bits_per_byte")
    )

    def law(x: np.ndarray) -> Law:
        return Law(*np.exp(x).tolist())

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(law(x).bits(network, text) / bits)

    low, high = np.log([1e-3, 1e-3, 0.02, 1e-3, 0.02]), np.log([bits.min(), 9, 3, 9, 3])
    starts = [
        (share * bits.min(), 0.3, a, 0.6, b)
        for share in (0.1, 0.8)
        for a, b in ((0.1, 0.2), (0.5, 0.5))
    ]
    if near:
        starts = [dataclasses.astuple(near)]
    inside = [np.clip(np.log(start), low + 1e-6, high - 1e-6) for start in starts]
    found = [least_squares(residuals, start, bounds=(low, high)) for start in inside]
    return law(min(found, key=lambda one: one.cost).x)


def shapes(base: Config) -> list[dict[str, int]]:
    """Networks of one layer for every 64 channels, with the operations of a byte of text."""
    found = []
    for layers in range(1, LAYERS_AT_MOST + 1):
        point = Point(layers * CHANNELS_A_LAYER, layers, 1, tables=False)
        recipe = common.recipe_of(settings_of(base, point, []))
        counted = plan.costs(recipe)
        row = {"width": point.width, "layers": layers, "network": beside(counted, point)}
        found.append(row | {"operations": counted.operations * recipe.es.members_per_stream})
    return found


def best_of_day(law: Law, speed: float, candidates: list[dict[str, int]]) -> dict[str, float]:
    """The candidate with the fewest bits after a day of so many operations per second."""
    found = []
    for row in candidates:
        text = speed * DAY / row["operations"]
        found.append(row | {"bytes": text, "bits": float(law.bits(row["network"], text))})
    return min(found, key=lambda row: row["bits"])


def of_rows(base: Config, rows: list[dict[str, Any]], widths: Sequence[int] = ()) -> dict[str, Any]:
    """The law of the networks alone among the rows, how sure it is, and what it says of days.

    Args:
      widths: of the networks that the law is fitted to; empty for all.

    Raises:
      UserError: so few networks that without one point no error of a law is left.
    """
    from benchmarks.scaling import OPERATIONS_PER_S

    alone = [row for row in rows if not row["tables"] and (not widths or row["width"] in widths)]
    if len(alone) < 7:
        raise UserError(f"a law of 5 parameters needs 7 networks alone at least, not {len(alone)}")
    law = fitted(alone)
    without = [fitted([*alone[:i], *alone[i + 1 :]], law) for i in range(len(alone))]
    points = []
    for row, other in zip(alone, without, strict=True):
        where = row["network"], row["text_tokens"]
        errors_of = {"of_fit": law, "of_fit_without_it": other}
        bits = row["bits_per_byte"]
        points.append({name: float(one.bits(*where)) - bits for name, one in errors_of.items()})
    core = statistics.median(
        row["operations"] * row["text_tokens"] / row["processor_seconds"] for row in alone
    )
    days, candidates = {}, shapes(base)
    for name, speed in (("core", core), ("H100", OPERATIONS_PER_S["unit"])):
        best = best_of_day(law, speed, candidates)
        others = [best_of_day(one, speed, candidates)["bits"] for one in without]
        days[name] = {"operations_per_s": speed, **best, "range": [min(others), max(others)]}
    return {
        "law": dataclasses.asdict(law),
        "left_out": {
            key: [min(values), max(values)]
            for key in dataclasses.asdict(law)
            for values in [[getattr(one, key) for one in without]]
        },
        "errors": points,
        "days": days,
    }


def draw(rows: list[dict[str, Any]], law: Law, out: Path) -> None:
    """Bits against text and against seconds: a colour for each size, the law as lines."""
    figure, panels = picture.pyplot().subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    alone = [row for row in rows if not row["tables"]]
    for network, width, layers in sorted({tuple(row[key] for key in SIZES) for row in alone}):
        own = [row for row in alone if (row["width"], row["layers"]) == (width, layers)]
        own.sort(key=lambda row: row["text_tokens"])
        text = np.array([row["text_tokens"] for row in own]) / 1e6
        bits = [row["bits_per_byte"] for row in own]
        [dots] = panels[0].plot(text, bits, "o", label=f"D {width}, L {layers}")
        line = np.geomspace(text.min() / 1.2, text.max() * 1.2)
        panels[0].plot(line, law.bits(network, line * 1e6), color=dots.get_color(), linewidth=0.8)
        seconds = [row["processor_seconds"] for row in own]
        panels[1].plot(seconds, bits, "o-", color=dots.get_color(), linewidth=0.8)
    for panel, what in zip(panels, ("MB of text read", "seconds of the processor"), strict=True):
        panel.set(xscale="log", xlabel=what, ylabel="held-out bits per byte")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("{x:g}")
        panel.grid(alpha=0.3)
    panels[0].legend()
    picture.save(figure, out)


# -- The command -----------------------------------------------------------------------------------


def printed(rows: list[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """Rows as the table of docs/scaling.md, and the law."""
    lines = ["| D | L | steps | MB read | weights | beside embedding | rate | s | bits | law |"]
    lines.append("|---" * 10 + "|")
    law = Law(**found["law"])
    for row in rows:
        what = ", tables and cache" if row["tables"] else ""
        bits = "" if row["tables"] else f"{law.bits(row['network'], row['text_tokens']):.3f}"
        lines.append(
            f"| {row['width']} | {row['layers']}{what} | {row['steps']:,} | "
            f"{row['text_tokens'] / 1e6:.1f} | {row['weights']:,} | {row['network']:,} | "
            f"{row['learning_rate']:.2g} | {row['processor_seconds']:.0f} | "
            f"{row['bits_per_byte']:.3f} | {bits} |"
        )
    for key, value in found["law"].items():
        low, high = found["left_out"][key]
        lines.append(f"{key} = {value:.3f} (without one point {low:.3f} to {high:.3f})")
    for name in ("of_fit", "of_fit_without_it"):
        values = [point[name] for point in found["errors"]]
        size = math.sqrt(statistics.fmean(value * value for value in values))
        lines.append(f"error {name}: {size:.4f} bits, {max(map(abs, values)):.4f} at most")
    for name, day in found["days"].items():
        low, high = day["range"]
        lines.append(
            f"a day of one {name} at {day['operations_per_s'] / 1e9:,.0f}e9 operations/s: D "
            f"{day['width']}, L {day['layers']}, {day['bytes'] / 1e6:,.0f} MB of text: "
            f"{day['bits']:.3f} bits per byte ({low:.3f} to {high:.3f})"
        )
    return lines


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
      UserError: it asks for nothing, for two things, or for a file that cannot be written.
    """
    parser = common.parser(__doc__)
    parser.add_argument("--point", nargs="+", type=Point.of, default=[], metavar="WxLxSTEPS[+]")
    parser.add_argument("--config", default=common.CONFIGS / "machine_text.yaml", metavar="FILE")
    parser.add_argument("--set", nargs="+", default=[], metavar="S.F=V", help="change settings")
    parser.add_argument("--bytes", type=int, default=524_288, help="held-out text scored")
    parser.add_argument(
        "--at_most", type=int, default=1024, help="tokens a stream reads before it moves on"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    parser.add_argument("--rows", nargs="+", type=Path, default=[], metavar="FILE", help="to fit")
    parser.add_argument("--widths", nargs="+", type=int, default=[], help="the law's (all)")
    common.add_picture_arguments(parser)
    arguments = parser.parse_args()
    if bool(arguments.point) == bool(arguments.rows):
        raise UserError("name points to train (--point) or rows to fit (--rows)")
    if arguments.picture and not arguments.rows:
        raise UserError("--picture draws the rows of --rows; leave it out")
    for name in ("bytes", "at_most"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}, must be at least 1")
    common.check_out(arguments.out)
    common.check_picture(arguments)
    return arguments


def main() -> None:
    """Train or fit, and print."""
    arguments = parse()
    base = config.load(arguments.config)
    cache.keep()
    for point in arguments.point:  # whose mistakes are told before any is trained
        common.recipe_of(settings_of(base, point, arguments.set))
    for point in arguments.point:
        sizes = {"score_bytes": arguments.bytes, "at_most": arguments.at_most}
        row = row_of(base, point, arguments.set, **sizes)
        print(json.dumps(row), flush=True)
        common.append(arguments.out, row)
    if not arguments.rows:
        return
    rows = [row for path in arguments.rows for row in common.rows_of(path, *KEYS)]
    found = of_rows(base, rows, arguments.widths)
    if arguments.picture:
        draw(rows, Law(**found["law"]), arguments.picture)
    if arguments.json:
        print(json.dumps({"rows": rows, **found}))
    else:
        print(*printed(rows, found), sep="\n")


if __name__ == "__main__":
    with errors.reported("law.py"):
        main()
