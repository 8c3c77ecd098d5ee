"""How the cost of a training step grows: with P, T, D, L, V and R, one varied at a time.

    python benchmarks/cost.py [--json] [--repeats 3] [--out FILE.svg]

The default recipe without direct connections, with 512 members of 16 tokens. Steps of one axis
take turns; their processor time is fitted by a constant and a share in proportion to the axis, or,
for D, to the operations. Every row says how much of its time the fit gives.
`compile_seconds` is processor time too.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import throughput

from int_lm import config
from int_lm.config import Config
from int_lm.method import evolve
from int_lm.training import plan

AXES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "P": ("es", "population", (256, 512, 1024, 2048)),
    "T": ("es", "segment_length", (8, 16, 32, 64)),
    "R": ("es", "rank", (1, 2, 4)),
    "D": ("model", "width", (32, 64, 128, 256)),
    "L": ("model", "layers", (1, 2, 4, 12)),
    "V": ("", "", (256, 1024, 4096)),
}
BASE = {"population": 512, "segment_length": 16}


def varied(axis: str, value: int) -> tuple[Config, int]:
    """The configuration and the vocabulary at one point."""
    base = throughput.recipes()["quickstart"]
    base = dataclasses.replace(base, es=dataclasses.replace(base.es, **BASE))
    section, name, _ = AXES[axis]
    if not section:
        return config.validate(base), value
    changed = dataclasses.replace(getattr(base, section), **{name: value})
    return config.validate(dataclasses.replace(base, **{section: changed})), 256


def prepared(settings: Config, vocab_size: int) -> tuple[Any, dict[str, float]]:
    """A compiled step ready to be called, and what is known of it."""
    generator, es = np.random.default_rng(0), settings.es
    state = evolve.initial(settings, vocab_size)
    tokens_ST = generator.integers(1, vocab_size, (es.streams, es.segment_length + 1))
    word = np.uint32(0)
    arguments = state, tokens_ST.astype(np.uint16), word, word, evolve.pace(settings, 0)
    started = time.process_time()
    step = jax.jit(functools.partial(evolve.step, settings, vocab_size)).lower(*arguments).compile()
    counted = plan.costs(settings, vocab_size)
    memory = step.memory_analysis()
    return functools.partial(step, *arguments), {
        "compile_seconds": time.process_time() - started,
        "operations": counted.operations * es.population * es.segment_length,
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
    }


def measured(axis: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of one axis, with the fit."""
    values = AXES[axis][2]
    ready = {value: prepared(*varied(axis, value)) for value in values}
    times = throughput.medians({str(value): ready[value][0] for value in values}, repeats)
    seconds = np.array([times[str(value)].cpu for value in values])
    along = np.array(
        [ready[value][1]["operations"] if axis == "D" else value for value in values], float
    )
    design = np.stack([np.ones(len(along)), along], axis=1) / seconds[:, None]  # relative errors
    fit = np.linalg.lstsq(design, np.ones(len(along)), rcond=None)[0]
    rows = []
    for value, spent, place in zip(values, seconds, along, strict=True):
        es = varied(axis, value)[0].es
        predicted = fit[0] + fit[1] * place
        rows.append(
            {
                "axis": axis,
                "value": value,
                "cpu_seconds": spent,
                "fitted_over_measured": predicted / spent,
                "tokens_per_cpu_second": es.population * es.segment_length / spent,
                **ready[value][1],
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """One panel for every axis: tokens per second of processor time, and temporaries."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "int_lm"  # the same file for the same rows
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(9, 5), layout="constrained")
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
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=3, help="runs per figure (median)")
    parser.add_argument("--axis", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--out", help="draw a picture into this file (needs matplotlib)")
    arguments = parser.parse_args()
    rows = [row for axis in arguments.axis for row in measured(axis, arguments.repeats)]
    if arguments.out:
        draw(rows, arguments.out)
    if arguments.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(
            f"{row['axis']} {row['value']:>5}  {1000 * row['cpu_seconds']:8.1f} ms, fitted "
            f"{row['fitted_over_measured']:.2f} of it  {row['tokens_per_cpu_second']:>9,.0f} "
            f"tokens/s  temporaries {row['temporary_bytes'] / 1e6:6.1f} MB  compiled in "
            f"{row['compile_seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
