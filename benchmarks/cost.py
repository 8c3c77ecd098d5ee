"""The cost of a step, how it grows, and how close the predictions of plans are.

    python benchmarks/cost.py [--axis V --values 256 8192 32768 --chunk 64] [--out FILE.svg]
    python benchmarks/cost.py --plan [CONFIG ...] [--steps 60] [--every 20]

Without --plan: P, T, R, D, L and V, one varied at a time, of the default recipe without context
tables, with 512 members of 16 tokens. Steps of one axis take turns. Their processor time is fitted
by a constant plus a part in proportion to the axis (for D: to the operations). Every row has the
ratio of the fitted to the measured time, and the share of the part that grows with the axis.
`compile_seconds` is processor time too.

With --plan: what `train.py --plan` predicts, and a run of so many steps from its beginning, with an
evaluation and a checkpoint every so many, each in a process of its own; of configs/quickstart.yaml
and configs/recurrent_only.yaml unless CONFIG names others. Speed is the median of the rows that the
run logs, four from one evaluation to the next, the first one left out, which compiles; memory is
the most that was resident. `all_but_steps` is the part of the time from the first evaluation to
the last row that is not steps: evaluating, logging, saving. Anything else that the machine does
shows in the speed.
"""

import functools
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common
from int_lm.method import evolve
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.plot import picture
from int_lm.training import plan

AXES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "P": ("es", "population", (256, 512, 1024, 2048)),
    "T": ("es", "segment_length", (8, 16, 32, 64)),
    "R": ("es", "rank", (1, 2, 4)),
    "D": ("model", "width", (32, 64, 128, 256)),
    "L": ("model", "layers", (1, 2, 4, 12)),
    "V": ("", "", (256, 1024, 4096)),
}
CONFIGURATIONS = [str(common.CONFIGS / f"{name}.yaml") for name in ("quickstart", "recurrent_only")]
HELDOUT_BYTES = 150_000  # all of it is read at the end


def varied(axis: str, value: int, chunk: int) -> Recipe:
    """The recipe at one point."""
    base = common.with_fields(common.shipped("quickstart"), "model", direct=(), cache=())
    base = common.with_fields(base, "es", population=512, segment_length=16, chunk=chunk)
    section, name, _ = AXES[axis]
    if not section:
        return common.recipe_of(base, value)
    return common.recipe_of(common.with_fields(base, section, **{name: value}))


def prepared(recipe: Recipe) -> tuple[Callable[[], Any], dict[str, float]]:
    """A compiled step ready to be called, and what is known of it."""
    es, word = recipe.es, np.uint32(0)
    arguments = (
        *evolve.donated(evolve.initial(recipe)),
        common.tokens_of(recipe),
        Clock(word, word),  # type: ignore[arg-type]
        evolve.values(recipe, 0),
    )
    started = time.process_time()
    step = evolve.jitted_step(recipe).lower(*arguments).compile()
    memory = step.memory_analysis()
    return functools.partial(step, *arguments), {
        "compile_seconds": time.process_time() - started,
        "operations": plan.costs(recipe).operations * es.population * es.segment_length,
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
    }


def along(axis: str, values: list[int], chunk: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one axis, with the fit."""
    recipes = [varied(axis, value, chunk) for value in values]
    steps, known = zip(*map(prepared, recipes), strict=True)
    times = common.medians({str(i): step for i, step in enumerate(steps)}, repeats)
    seconds = np.array([times[str(i)].cpu for i in range(len(steps))])
    places = [facts["operations"] for facts in known] if axis == "D" else values
    design = np.stack([np.ones(len(places)), np.array(places, float)], axis=1)
    relative = design / seconds[:, None]  # so that errors are
    constant, slope = np.linalg.lstsq(relative, np.ones(len(places)), rcond=None)[0]
    rows = []
    for recipe, value, spent, place, facts in zip(
        recipes, values, seconds, places, known, strict=True
    ):
        fitted = constant + slope * place
        rows.append(
            {
                "axis": axis,
                "value": value,
                "cpu_seconds": spent,
                "fitted_over_measured": fitted / spent,
                "share_of_axis": slope * place / fitted,
                "tokens_per_cpu_second": recipe.es.population * recipe.es.segment_length / spent,
                **facts,
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """One panel for every axis: tokens per second of processor time, and temporaries."""
    figure, panels = picture.pyplot().subplots(2, 3, figsize=(9, 5), layout="constrained")
    for panel, axis in zip(panels.flat, AXES, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in own]
        panel.loglog(values, [row["tokens_per_cpu_second"] for row in own], "o-", label="tokens/s")
        panel.loglog(
            values, [row["temporary_bytes"] for row in own], "s--", label="temporary bytes"
        )
        panel.set_xlabel(axis)
        panel.set_xticks(values, map(str, values))
        panel.minorticks_off()
    panels.flat[0].legend()
    picture.save(figure, Path(file))


def planned(configuration: str) -> dict[str, float]:
    """Speed and memory by the plan; no memory where it is not that of the process alone."""
    text, _ = common.train("--config", configuration, "--plan")
    found = {"tokens_per_s": re.search(r"^speed +([\d,]+)", text, re.MULTILINE)}
    found["megabytes"] = re.search(r"([\d,]+) MB at the most", text)
    return {name: float(hit[1].replace(",", "")) for name, hit in found.items() if hit}


def trained(configuration: str, steps: int, every: int) -> dict[str, float]:
    """Speed and memory of a run, and the part of its time that is not steps."""
    with tempfile.TemporaryDirectory() as place:
        flags = {"dir": f"{place}/run", "steps": steps, "log_every": max(1, every // 4)}
        flags |= {"seconds": 0, "eval_every": every, "checkpoint_every": every}
        run = [text for name, flag in flags.items() for text in (f"--run.{name}", str(flag))]
        data = ["--data.shards", f"{place}/shards", "--data.heldout_bytes", str(HELDOUT_BYTES)]
        _, finished = common.train("--config", configuration, *data, *run)
        lines = (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    counted = [row for row in rows if row["step"] >= every]
    span = counted[-1]["seconds"] - counted[0]["seconds"]
    stepping = sum(
        (row["tokens"] - before["tokens"]) / row["tokens_per_second"]
        for before, row in zip(counted[:-1], counted[1:], strict=True)
    )
    return {
        "tokens_per_s": statistics.median(row["tokens_per_second"] for row in rows[1:]),
        "megabytes": finished.peak / 1e6,
        "all_but_steps": 1 - stepping / span,
    }


def of_plans(configurations: list[str], steps: int, every: int) -> list[dict[str, Any]]:
    """A row for each configuration and figure of its plan."""
    rows = []
    for configuration in configurations:
        predicted, found = planned(configuration), trained(configuration, steps, every)
        for name, value in predicted.items():
            row = {"config": Path(configuration).stem, "of": name, "predicted": value}
            row |= {"measured": found[name], "ratio": value / found[name]}
            rows.append(row | {"all_but_steps": found["all_but_steps"]})
    return rows


def line(row: dict[str, Any]) -> str:
    """A row for a reader."""
    if "config" in row:
        return (
            f"{row['config']:<20} {row['of']:<13} predicted {row['predicted']:>12,.0f}   "
            f"measured {row['measured']:>12,.0f}   ratio {row['ratio']:.2f}   "
            f"{row['all_but_steps']:.1%} of the run is not steps"
        )
    return (
        f"{row['axis']} {row['value']:>5}  {1000 * row['cpu_seconds']:8.1f} ms, fitted "
        f"{row['fitted_over_measured']:.2f} of it, {row['share_of_axis']:.0%} by the axis  "
        f"{row['tokens_per_cpu_second']:>9,.0f} tokens/s  temporaries "
        f"{row['temporary_bytes'] / 1e6:6.1f} MB  compiled in {row['compile_seconds']:.1f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--axis", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--values", nargs="+", type=int, help="of the axes, in place of our own")
    parser.add_argument("--chunk", type=int, default=0, help="members at once (0: as in training)")
    parser.add_argument("--out", help="draw a picture into this file (needs matplotlib)")
    parser.add_argument("--plan", nargs="*", metavar="CONFIG", help="compare plans with runs")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations, of a run")
    arguments = parser.parse_args()
    if arguments.plan is not None:
        if arguments.out:
            parser.error("--out draws the axes, not plans")
        if not 0 < arguments.every < arguments.steps:
            parser.error("--every must be below --steps, so that something follows an evaluation")
        rows = of_plans(arguments.plan or CONFIGURATIONS, arguments.steps, arguments.every)
    else:
        rows = []
        for axis in arguments.axis:
            values = arguments.values or list(AXES[axis][2])
            rows += along(axis, values, arguments.chunk, arguments.repeats)
    if arguments.out:
        draw(rows, arguments.out)
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))
        return
    print(f"{common.machine()}; medians of {arguments.repeats}")
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
