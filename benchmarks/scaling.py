"""Many devices: bytes moved between them, time on two of them, predicted time on more.

    python benchmarks/scaling.py [--json] [--repeats 20] [--config configs/quickstart.yaml ...]
    python benchmarks/scaling.py --predict 8 64 1024 16384 [--config configs/gpu_small.yaml ...]

For every configuration: the bytes that each kind of collective moves in a step, read from the
compiled program, beside the formula of docs/scaling.md; the step on two devices of this machine's
CPU against the step on one, taking turns, both with all cores; and the hash of the weights against
a step.

With --predict nothing is measured. The time of a step on n devices is predicted as the sum of: a
device's share of the operations, at a rate measured on one device
(docs/log/2026-11.md#2026-11-27-an-h100); the update of the weights, which is divided only if votes
are sharded; the update of context tables, which is never divided; and the collectives of
docs/scaling.md: their bytes over the bandwidth of a link, and a latency for each of the log2(n)
hops of every message. Efficiency is the time of one device over n times the time of n devices. The
prediction does not include that few members do not fill a device.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from int_lm import config
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.limits import voters
from int_lm.method import evolve, placement
from int_lm.method.clock import Clock
from int_lm.method.placement import Placement
from int_lm.method.recipe import Recipe
from int_lm.model import hashing
from int_lm.training import plan

DEVICES = 2
WAYS = ("replicated", "sharded")
MEASURED = ("quickstart", "recurrent_only")
PREDICTED = ("gpu_small", "gpu_base", "paper_egg")
BYTES = {"s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "pred": 1}
# measured on an H100 at D 256, P 16 384, T 20: whole steps, with votes of units and plain ones
OPERATIONS_PER_S = {"unit": 80e12, "eggroll": 115e12}
UPDATE_SECONDS = 0.2e-9  # of a weight, likewise
# assumed: bytes moved for every row error, token of the vocabulary and table, on each device
TABLE_BYTES, MEMORY_BYTES_PER_S = 16, 2.5e12


def crossing(program: str) -> dict[str, int]:
    """Bytes of the results of every kind of collective in a compiled program, on one device."""
    found: dict[str, int] = {}
    pattern = r"= (\(?[\w\[\],{} ]*?\)?) (all-[\w-]+?|reduce-scatter|collective-\w+)\("
    for shapes, kind in re.findall(pattern, program):
        for dtype, size in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in size.split(",") if n], dtype=np.int64))
            found[kind] = found.get(kind, 0) + count * BYTES[dtype]
    return found


def formula(recipe: Recipe, devices: int, sharded: bool) -> dict[str, int]:
    """Bytes that docs/scaling.md says a device ends up with, by kind of collective."""
    es, network = recipe.es, plan.costs(recipe).weights
    readings, tables = voters(es) * es.segment_length, len(recipe.model.specs.tables)
    gathered = 4 * es.population + tables * 4 * readings
    if tables:
        gathered += readings * recipe.model.vocab_size
    if sharded:
        return {"reduce-scatter": 4 * network // devices, "all-gather": gathered + network}
    return {"all-reduce": 4 * network, "all-gather": gathered}


# -- Measured --------------------------------------------------------------------------------------


def stepper(recipe: Recipe, place: Placement | None) -> Callable[[], Any]:
    """A function that does the next step on random tokens."""
    tokens_ST, step = common.tokens_of(recipe), evolve.compiled_step(recipe, place)
    state, number = evolve.placed(recipe, evolve.initial(recipe), place), 0

    def run() -> Any:
        nonlocal state, number
        state, metrics = step(state, tokens_ST, number)
        number += 1
        return metrics.scores_P

    return run


def program_of(recipe: Recipe, place: Placement) -> str:
    """The compiled step on some devices."""
    state = evolve.placed(recipe, evolve.initial(recipe), place)
    tokens = placement.put(place.by_stream, common.tokens_of(recipe))
    clock = Clock.at(0, 0)
    arguments = *evolve.donated(state), tokens, clock, evolve.values(recipe, 0)
    return evolve.jitted_step(recipe, place).lower(*arguments).compile().as_text() or ""


def row_of(name: str, settings: Config, repeats: int) -> dict[str, Any]:
    """One configuration: bytes that cross, the price of two devices, the price of the hash."""
    row: dict[str, Any] = {"configuration": name}
    recipe, places = common.recipe_of(settings), {}
    for way in WAYS:
        distributed = dataclasses.replace(settings.distributed, devices=DEVICES, update=way)
        places[way] = placement.choose(distributed, settings.es, 1)
        row[f"bytes_{way}"] = crossing(program_of(recipe, places[way]))
        row[f"formula_{way}"] = formula(recipe, DEVICES, way == "sharded")
    weights = jax.tree.map(jnp.asarray, evolve.initial(recipe).weights)
    functions = {
        "one": stepper(recipe, None),
        "two": stepper(recipe, places["replicated"]),
        "hash": lambda: hashing.compiled_lanes(weights),
    }
    times = {name: median.seconds for name, median in common.medians(functions, repeats).items()}
    row["two_devices_over_one"] = times["two"] / times["one"]
    row["hash_over_logged_steps"] = times["hash"] / (times["one"] * settings.run.log_every)
    row["hash_over_step"] = times["hash"] / times["one"]
    return row


# -- Predicted -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Links:
    """What connects devices.

    Attributes:
      near: devices of one host.
      near_bandwidth: bytes/s that a device receives from its own host.
      far_bandwidth: bytes/s that a device receives from other hosts.
      latency: seconds of a hop.
    """

    near: int = 8
    near_bandwidth: float = 400e9
    far_bandwidth: float = 45e9
    latency: float = 8e-6


def seconds(recipe: Recipe, devices: int, sharded: bool, links: Links) -> float:
    """Predicted seconds of a step on so many devices."""
    es, counted = recipe.es, plan.costs(recipe)
    tokens = es.population * es.segment_length
    arithmetic = counted.operations * tokens / devices / OPERATIONS_PER_S[es.votes]
    update = UPDATE_SECONDS * counted.weights / (devices if sharded else 1)
    entries = len(recipe.model.specs.tables) * tokens // 2 * recipe.model.vocab_size
    update += entries * TABLE_BYTES / MEMORY_BYTES_PER_S
    if devices == 1:
        return arithmetic + update
    passing = {"all-reduce": 2.0, "reduce-scatter": float(devices)}  # of the bytes in the formula
    collectives = formula(recipe, devices, sharded)
    crossing = sum(passing.get(kind, 1.0) * size for kind, size in collectives.items())
    bandwidth = links.near_bandwidth if devices <= links.near else links.far_bandwidth
    hops = math.ceil(math.log2(devices))
    return arithmetic + update + crossing / bandwidth + len(collectives) * hops * links.latency


def largest(settings: Config) -> Recipe:
    """The recipe with its population doubled for as long as its votes fit int32."""
    recipe = common.recipe_of(settings)
    while True:
        settings = common.with_fields(settings, "es", population=2 * settings.es.population)
        try:
            recipe = common.recipe_of(settings)
        except UserError:
            return recipe


def predicted(name: str, settings: Config, devices: list[int]) -> list[dict[str, Any]]:
    """Rows of a configuration: at its population and the largest one, on so many devices."""
    rows = []
    for recipe in dict.fromkeys((common.recipe_of(settings), largest(settings))):
        alone = seconds(recipe, 1, False, Links())
        for count in devices:
            row = {"configuration": name, "population": recipe.es.population, "devices": count}
            if recipe.es.streams % count == 0:  # otherwise they cannot be shared evenly
                times = {way: seconds(recipe, count, way == "sharded", Links()) for way in WAYS}
                best = min(times, key=lambda way: times[way])
                efficiency = alone / count / times[best]
                row |= {"update": best, "step_seconds": times[best], "efficiency": efficiency}
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], devices: list[int]) -> str:
    """The predicted rows as docs/scaling.md has them."""
    lines = ["| configuration | population | " + " | ".join(map(str, devices)) + " |"]
    lines.append("|---" * (2 + len(devices)) + "|")
    for first in range(0, len(rows), len(devices)):
        cells = [
            f"{row['efficiency']:.2f} ({row['update']}, {1e3 * row['step_seconds']:,.1f} ms)"
            if "efficiency" in row
            else "fewer streams than devices"
            for row in rows[first : first + len(devices)]
        ]
        title = f"`{rows[first]['configuration']}` | {rows[first]['population']:,}"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure or predict, and print."""
    parser = common.parser(__doc__, repeats=20)
    parser.add_argument("--config", nargs="+", metavar="FILE", help="configurations")
    parser.add_argument("--predict", nargs="+", type=int, metavar="N", help="numbers of devices")
    arguments = parser.parse_args()
    shipped = PREDICTED if arguments.predict else MEASURED
    files = arguments.config or [common.CONFIGS / f"{name}.yaml" for name in shipped]
    chosen = [(Path(file).stem, config.load(file)) for file in files]
    if arguments.predict:
        rows = [row for pair in chosen for row in predicted(*pair, arguments.predict)]
    else:
        rows = [row_of(*pair, arguments.repeats) for pair in chosen]
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))
    elif arguments.predict:
        print(table(rows, arguments.predict))
    else:
        print(f"{common.machine()}; medians of {arguments.repeats}")
        for key, value in ((key, value) for row in rows for key, value in row.items()):
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"  {key:<24} {shown}")


if __name__ == "__main__":
    main()
