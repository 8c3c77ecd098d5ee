"""Many devices: what crosses between them, what sharing costs on one machine, what the hash costs.

    python benchmarks/scaling.py [--json] [--repeats 20] [--config configs/quickstart.yaml ...]

For every configuration: the bytes that each kind of collective moves in a step, read from the
compiled program, beside the formula of docs/scaling.md; the step on two devices of this machine's
CPU against the step on one, taking turns, both with all cores; and the hash of the weights against
a step.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import numpy as np

from int_lm import config
from int_lm.config import Config

VOCAB_SIZE = 256
DEVICES = 2
CONFIGURATIONS = ("configs/quickstart.yaml", "configs/recurrent_only.yaml")
BYTES = {"s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "pred": 1}


def crossing(program: str) -> dict[str, int]:
    """Bytes of the results of every kind of collective in a compiled program, on one device."""
    found: dict[str, int] = {}
    pattern = r"= (\(?[\w\[\],{} ]*?\)?) (all-[\w-]+?|reduce-scatter|collective-\w+)\("
    for shapes, kind in re.findall(pattern, program):
        for dtype, size in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in size.split(",") if n], dtype=np.int64))
            found[kind] = found.get(kind, 0) + count * BYTES[dtype]
    return found


def formula(settings: Config, vocab_size: int, devices: int, sharded: bool) -> dict[str, int]:
    """Bytes that docs/scaling.md says a device ends up with, by kind of collective."""
    from int_lm.method import evolve
    from int_lm.model import params

    es, specs = settings.es, evolve.specs_of(settings, vocab_size)
    network = params.count(params.without_direct(specs))
    readings, tables = es.population // 2 * es.segment_length, len(settings.model.direct)
    gathered = 4 * es.population + tables * 4 * readings
    if tables:
        gathered += readings * vocab_size
    if sharded:
        kinds = {"reduce-scatter": 4 * network // devices, "all-gather": gathered + network}
    else:
        kinds = {"all-reduce": 4 * network, "all-gather": gathered}
    return kinds


def medians(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function, taking turns, after one call of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def stepper(settings: Config, place: Any, steps: int) -> Callable[[], None]:
    """A function that does the next `steps` steps on random tokens."""
    from int_lm.method import evolve

    es = settings.es
    shape = es.streams, es.segment_length + 1
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, shape, dtype=np.uint8)
    specs = evolve.specs_of(settings, VOCAB_SIZE)
    held = {"state": evolve.placed(evolve.initial(settings, VOCAB_SIZE), specs, place), "number": 0}
    step = evolve.compiled_step(settings, VOCAB_SIZE, place)

    def run() -> None:
        for _ in range(steps):
            held["state"], metrics = step(held["state"], tokens, held["number"])
            metrics.scores_P.block_until_ready()
            held["number"] += 1

    return run


def row_of(name: str, settings: Config, repeats: int) -> dict[str, Any]:
    """One configuration: bytes that cross, the price of two devices, the price of the hash."""
    import jax
    import jax.numpy as jnp

    from int_lm.method import evolve, placement, population
    from int_lm.model import hashing

    row: dict[str, Any] = {"configuration": name}
    for update in ("replicated", "sharded"):
        distributed = dataclasses.replace(settings.distributed, devices=DEVICES, update=update)
        place = placement.choose(distributed, settings.es, 1)
        assert place is not None
        divided = population.chunked(settings, DEVICES)
        state = evolve.initial(settings, VOCAB_SIZE)
        state = evolve.placed(state, evolve.specs_of(settings, VOCAB_SIZE), place)
        tokens = placement.put(
            place.by_stream, np.zeros((divided.es.streams, divided.es.segment_length + 1), np.uint8)
        )
        word = jnp.uint32(0)

        def step(state: Any, tokens: Any, divided=divided, place=place, word=word) -> Any:
            pace = evolve.pace(divided, 0)
            return evolve.step(divided, VOCAB_SIZE, state, tokens, word, word, pace, place)

        program = jax.jit(step).lower(state, tokens).compile().as_text()
        row[f"bytes_{update}"] = crossing(program)
        row[f"formula_{update}"] = formula(settings, VOCAB_SIZE, DEVICES, update == "sharded")
        if update == "replicated":
            two = stepper(settings, place, 1)
    one = stepper(settings, None, 1)
    weights = jax.tree.map(jnp.asarray, evolve.initial(settings, VOCAB_SIZE).weights)
    times = medians(
        {
            "one": one,
            "two": two,
            "hash": lambda: hashing.compiled_lanes(weights).block_until_ready(),
        },
        repeats,
    )
    row["two_devices_over_one"] = times["two"] / times["one"]
    row["hash_over_logged_steps"] = times["hash"] / (times["one"] * settings.run.log_every)
    row["hash_over_step"] = times["hash"] / times["one"]
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=20, help="runs per figure (median)")
    parser.add_argument("--config", nargs="+", default=CONFIGURATIONS, metavar="FILE")
    arguments = parser.parse_args()

    import jax

    rows = []
    for path in arguments.config:
        settings = config.validate(config.load(path))
        rows.append(row_of(Path(path).stem, settings, arguments.repeats))
    machine = f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}"
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": rows}))
        return
    print(f"{machine}; medians of {arguments.repeats}")
    for row in rows:
        for key, value in row.items():
            print(
                f"  {key:<24} {value:.4f}" if isinstance(value, float) else f"  {key:<24} {value}"
            )


if __name__ == "__main__":
    main()
