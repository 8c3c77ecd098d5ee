"""Throughput of the population: tokens/s of inference, of the perturbed forward pass, of a step.

    python benchmarks/throughput.py [--json] [--repeats 5] [--shape D,L,P,T ...]

Every figure of a row is the median of runs that take turns, so that a machine whose speed drifts
slows them all alike; compare ratios, not absolute times. `int8_peak_gops` is the best int8 dot
measured in the same run. `learn` is fitness, votes (with their noise) and update; the noise of the
forward pass is counted in `perturbed` and given apart as well.
"""

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from int_lm import config
from int_lm.config import Config, EsConfig, ModelConfig

SHAPES = ((64, 2, 2048, 50), (256, 4, 2048, 20))
VOCAB_SIZE = 256
PEAK_SHAPES = ((8192, 64, 64), (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256))


def seconds_of(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function, taking turns, after one call that compiles."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def int8_peak_gops(repeats: int) -> float:
    """The best rate of int8 x int8 -> int32 dots over `PEAK_SHAPES`, in 10^9 operations/s."""
    import jax
    import numpy as np

    from int_lm import fixed

    generator = np.random.default_rng(0)
    best = 0.0
    for rows, inputs, outputs in PEAK_SHAPES:
        x = jax.device_put(generator.integers(-127, 128, (rows, inputs), dtype=np.int8))
        w = jax.device_put(generator.integers(-127, 128, (outputs, inputs), dtype=np.int8))
        dot = jax.jit(fixed.dot)
        seconds = seconds_of({"dot": lambda dot=dot, x=x, w=w: dot(x, w)}, 4 * repeats)["dot"]
        best = max(best, 2 * rows * inputs * outputs / seconds / 1e9)
    return best


def row_of(width: int, layers: int, members: int, segment: int, repeats: int) -> dict[str, Any]:
    """One row: the rates, ratios and memory of a shape."""
    import jax
    import numpy as np

    from int_lm import evolve, params, perturb, population, tables

    settings = config.validate(
        Config(
            model=ModelConfig(width=width, layers=layers),
            es=EsConfig(population=members, segment_length=segment),
        )
    )
    model, es = settings.model, settings.es
    specs = evolve.specs_of(settings, VOCAB_SIZE)
    state = evolve.initial(settings, VOCAB_SIZE)
    streams = members // es.members_per_stream
    generator = np.random.default_rng(0)
    tokens_ST = generator.integers(1, VOCAB_SIZE, (streams, segment + 1), dtype=np.uint8)
    tokens_PT = np.repeat(tokens_ST, es.members_per_stream, axis=0)
    bare = perturb.unperturbed(state.weights)
    # arguments, not constants, which the compiler would fold into ready-made noise
    numbers = (np.uint32(0), np.uint32(0))
    z = np.int32(tables.vote_threshold(es, 0))

    infer = jax.jit(functools.partial(population.read, model))
    noise = jax.jit(functools.partial(population.chunk_noise, es, specs))
    perturbed = jax.jit(functools.partial(population.scores, model, es, specs))
    learn = jax.jit(functools.partial(evolve.learn, es, specs))
    scores_P = perturbed(state.weights, state.members, tokens_ST, *numbers)[0]
    whole = jax.jit(functools.partial(evolve.step, settings, VOCAB_SIZE))
    compiled = whole.lower(state, tokens_ST, *numbers, z).compile()
    seconds = seconds_of(
        {
            "inference": lambda: infer(bare, state.members, tokens_PT),
            "perturbed": lambda: perturbed(state.weights, state.members, tokens_ST, *numbers),
            "noise": lambda: noise(*numbers, np.int32(0)),
            "learn": lambda: learn(state.weights, scores_P, *numbers, z),
            "step": lambda: compiled(state, tokens_ST, *numbers, z),
        },
        repeats,
    )
    tokens = members * segment
    # operations of the matrices alone: two per weight and token
    matrices = sum(
        int(np.prod(spec.full_shape))
        for _, spec in params.flatten(specs)
        if spec.role in (params.Role.MATRIX, params.Role.READOUT)
    )
    memory = compiled.memory_analysis()
    return {
        "width": width,
        "layers": layers,
        "population": members,
        "segment_length": segment,
        "weights": params.count(specs),
        "inference_tokens_per_s": tokens / seconds["inference"],
        "perturbed_tokens_per_s": tokens / seconds["perturbed"],
        "step_tokens_per_s": tokens / seconds["step"],
        "perturbed_over_inference": seconds["inference"] / seconds["perturbed"],
        "noise_share_of_step": seconds["noise"] / seconds["step"],
        "learn_share_of_step": seconds["learn"] / seconds["step"],
        "inference_gops": 2 * matrices * tokens / seconds["inference"] / 1e9,
        "step_temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5, help="runs per figure (median)")
    parser.add_argument(
        "--shape",
        action="append",
        metavar="D,L,P,T",
        help=f"width, layers, population, segment length (default: {SHAPES})",
    )
    arguments = parser.parse_args()
    shapes = [tuple(map(int, shape.split(","))) for shape in arguments.shape or ()] or SHAPES

    import jax

    peak = int8_peak_gops(arguments.repeats)
    rows = []
    for width, layers, members, segment in shapes:
        row = row_of(width, layers, members, segment, arguments.repeats)
        rows.append(
            {**row, "int8_peak_gops": peak, "inference_over_peak": row["inference_gops"] / peak}
        )
    device = jax.devices()[0]
    machine = f"{platform.machine()}, {device.platform} {device.device_kind}, jax {jax.__version__}"
    if arguments.json:
        print(json.dumps({"machine": machine, "python": platform.python_version(), "rows": rows}))
        return
    print(f"{machine}, Python {platform.python_version()}; medians of {arguments.repeats}")
    for name in rows[0]:
        cells = (
            f"{row[name]:>14,.3f}" if isinstance(row[name], float) else f"{row[name]:>14,}"
            for row in rows
        )
        print(f"{name:<26}", *cells)


if __name__ == "__main__":
    main()
