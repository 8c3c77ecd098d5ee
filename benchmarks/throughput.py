"""Throughput: tokens/s of inference, of the perturbed forward pass, of a whole training step.

    python benchmarks/throughput.py [--json] [--repeats 5] [--shape D,L,P,T ...]
        [--recipe egg rwkv quickstart] [--config FILE ...] [--rank R ...] [--chunk N] [--profile]

Rows are recipes x shapes x ranks: `egg` and `rwkv` with plain votes (the paper's recipe) and
`quickstart`, the default recipe without its direct connections; `--config` adds configurations
just as they are. The parts of a row take turns, and every figure is a median, so that a machine
whose speed drifts slows them all alike: compare ratios, not absolute times. Ratios that end in
`_cpu` are those of processor time, which other programs on the machine disturb least.

    inference   the bare model reads and scores what the population reads, in the same chunks
    perturbed   the same under perturbations, with their noise: the forward pass alone
    voting      the forward pass with what votes are gathered from, and these votes
    step        everything; `noise`, `update` (of votes at random) are parts of it
    dots        the model's own matrices on their own, as XLA's int8 dots: its peak at these shapes

Two floors stand beside the time of inference: its operations at `int8_peak_gops`, the best int8
dot of the run, and the bytes it must move at `copy_gbytes_per_s`. With `--profile` a table follows
that says where the time of a step goes (`breakdown.py`).
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from int_lm import config
from int_lm.arithmetic import fixed
from int_lm.config import Config, ModelConfig
from int_lm.method import evolve, population
from int_lm.model import params, perturb
from int_lm.model.params import Role, Spec, Tree
from int_lm.training import memory, plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHAPES = ((64, 2, 2048, 50), (256, 4, 2048, 20))
VOCAB_SIZE = 256
PEAK_SHAPES = ((8192, 64, 64), (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256))
COPY_BYTES = 1 << 26
GPU_PEAK_SHAPES = ((65536, 256, 256), (65536, 1024, 1024), (16384, 8192, 8192))
GPU_COPY_BYTES = 1 << 30
DOT_TURNS = 4  # calls timed together: one is short

Functions = dict[str, Callable[[], Any]]


def recipes() -> dict[str, Config]:
    """The recipes by name; their sizes are replaced by those of a shape."""
    default = config.load(CONFIGS / "quickstart.yaml")
    default = dataclasses.replace(default, model=dataclasses.replace(default.model, direct=()))
    return {
        "egg": Config(),
        "rwkv": Config(model=ModelConfig(architecture="rwkv", ffn_multiple=2)),
        "quickstart": default,
    }


def sized(settings: Config, shape: Sequence[int], rank: int, chunk: int) -> Config:
    """A recipe at (D, L, P, T)."""
    width, layers, members, segment = shape
    model = dataclasses.replace(settings.model, width=width, layers=layers)
    es = dataclasses.replace(
        settings.es, population=members, segment_length=segment, rank=rank, chunk=chunk
    )
    return config.validate(dataclasses.replace(settings, model=model, es=es))


@dataclasses.dataclass(frozen=True)
class Median:
    """Of several runs: seconds by the clock, and of processor time."""

    seconds: float
    cpu: float


def medians(functions: Functions, repeats: int) -> dict[str, Median]:
    """Medians of each function, taking turns, after one call that compiles.

    As in training, scratch memory is kept from then on: otherwise what allocates more is slower.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        if turn == 1:
            memory.trim()
            memory.keep()
        for name, function in functions.items():
            start, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            if turn:
                spent = time.perf_counter() - start, time.process_time() - cpu
                times[name].append(spent)
    return {
        name: Median(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def dots_of(shapes: Sequence[tuple[int, int, int]]) -> Callable[[], Any]:
    """int8 dots of random operands, (rows, inputs, outputs) each, in one compiled function."""
    generator = np.random.default_rng(0)

    def operand(*shape: int) -> jax.Array:
        return jax.device_put(generator.integers(-127, 128, shape, dtype=np.int8))

    pairs = [(operand(rows, inputs), operand(outputs, inputs)) for rows, inputs, outputs in shapes]
    return functools.partial(jax.jit(lambda pairs: [fixed.dot(*pair) for pair in pairs]), pairs)


def machine_rates(repeats: int) -> tuple[float, float]:
    """The best int8 dot of some shapes in 10^9 operations/s; a copy, read and write, in GB/s."""
    gpu = jax.default_backend() == "gpu"
    best = 0.0
    for shape in GPU_PEAK_SHAPES if gpu else PEAK_SHAPES:
        median = medians({"dot": dots_of([shape])}, 4 * repeats)["dot"]
        best = max(best, 2 * int(np.prod(shape)) / median.seconds / 1e9)
    size = GPU_COPY_BYTES if gpu else COPY_BYTES
    block = jnp.zeros(size, jnp.int8)
    copy = jax.jit(lambda x: x ^ jnp.int8(1))
    seconds = medians({"copy": lambda: copy(block)}, 2 * repeats)["copy"].seconds
    return best, 2 * size / seconds / 1e9


def trained_like(specs: Tree, weights: Tree) -> Tree:
    """Weights with what starts at zero filled in: zeros would make activations, and work, easy."""
    generator = np.random.default_rng(1)

    def leaf(spec: Spec, weight: jax.Array) -> jax.Array:
        if spec.init == 0 and spec.role is not Role.DIRECT:
            return jnp.asarray(generator.integers(-16, 17, weight.shape, dtype=np.int8))
        return weight

    return params.map_leaves(leaf, specs, weights)


def functions_of(settings: Config) -> tuple[Functions, jax.stages.Compiled]:
    """The compiled parts of a configuration's step, by name, ready to be called; the whole step."""
    settings = population.chunked(settings)
    es = settings.es
    specs = evolve.specs_of(settings, VOCAB_SIZE)
    state = evolve.initial(settings, VOCAB_SIZE)
    state = dataclasses.replace(state, weights=trained_like(specs, state.weights))
    generator = np.random.default_rng(0)
    tokens_ST = generator.integers(
        1, VOCAB_SIZE, (es.streams, es.segment_length + 1), dtype=np.uint8
    )
    # arguments, not constants, which the compiler would fold into ready-made noise
    seed, number, pace = np.uint32(0), np.uint32(0), evolve.pace(settings, 0)

    def forward(members_of: Callable[[Any], Tree], state: Tree, tokens_ST: Any):
        """Every chunk's reading, by the members that a function of its number gives."""

        def one_chunk(chunk: Any, arguments: tuple[Tree, Any]):
            state, tokens_ST = arguments
            tokens_PT = jnp.repeat(tokens_ST, es.members_per_stream, axis=0)
            return population.read(settings.model, members_of(chunk), state, tokens_PT), ()

        tokens = tokens_ST.reshape(population.chunks(es), -1, tokens_ST.shape[1])
        members = population.split_members(population.chunks(es), state)
        return population.over_chunks(one_chunk, population.all_chunks(es), (members, tokens))

    @jax.jit
    def inference(weights: Tree, state: Tree, tokens_ST: Any):
        return forward(lambda chunk: perturb.unperturbed(weights), state, tokens_ST)

    @jax.jit
    def perturbed(weights: Tree, state: Tree, tokens_ST: Any, seed: Any, number: Any):
        def members_of(chunk: Any) -> Tree:
            return params.map_leaves(
                lambda _, value, noise: perturb.perturbed(es, value, noise),
                specs,
                weights,
                population.chunk_noise(es, specs, seed, number, chunk),
            )

        return forward(members_of, state, tokens_ST)

    @jax.jit
    def noise(seed: Any, number: Any):
        def one_chunk(chunk: Any, _: Any):
            return population.chunk_noise(es, specs, seed, number, chunk), ()

        every = population.all_chunks(es)
        return population.over_chunks(one_chunk, every, every)

    voting = jax.jit(functools.partial(population.scores, settings, specs))
    update = jax.jit(functools.partial(evolve.learn, es, specs))
    moving = jax.tree.map(jnp.copy, state)  # its tables of direct connections change in place
    rest = tokens_ST, seed, number, pace
    program = evolve.jitted_step(settings, VOCAB_SIZE).lower(*evolve.split(moving), *rest).compile()

    def step() -> Any:
        nonlocal moving
        moving, metrics = program(*evolve.split(moving), *rest)
        return metrics

    ballots = {
        path: jax.device_put(generator.integers(-999, 999, spec.full_shape, dtype=np.int32))
        for path, spec in params.flatten(params.without_direct(specs))
    }
    fitness_I = jnp.ones(es.population // 2, jnp.int8)
    dots = dots_of([(es.chunk, inputs, outputs) for outputs, inputs in plan.matrices(specs)])
    read = state.weights, state.members, tokens_ST
    functions = {
        "inference": lambda: inference(*read),
        "perturbed": lambda: perturbed(*read, seed, number),
        "voting": lambda: voting(*read, seed, number, population.all_chunks(es)),
        "step": step,
        "noise": lambda: noise(seed, number),
        "update": lambda: update(state, ballots, fitness_I, seed, number, pace),
        "dots": lambda: [dots() for _ in range(DOT_TURNS)],
    }
    return functions, program


def row_of(name: str, settings: Config, peak: float, copy: float, repeats: int) -> dict[str, Any]:
    """One row: rates, ratios, floors and memory of a configuration."""
    model, es = settings.model, population.chunked(settings).es
    functions, program = functions_of(settings)
    times = medians(functions, repeats)
    memory = program.memory_analysis()
    tokens = es.population * es.segment_length
    costs = plan.costs(settings, VOCAB_SIZE)
    operations = costs.inference_operations * tokens
    turns = tokens / es.chunk / DOT_TURNS  # of the dots, for as many tokens

    def rate(part: str) -> float:
        return tokens / times[part].seconds

    def ratio(over: str, under: str) -> dict[str, float]:
        name, above, below = f"{over}_over_{under}", times[over], times[under]
        return {name: above.seconds / below.seconds, f"{name}_cpu": above.cpu / below.cpu}

    return {
        "recipe": name,
        "architecture": model.architecture,
        "votes": f"{es.votes}, {es.readout}",
        "width": model.width,
        "layers": model.layers,
        "population": es.population,
        "segment_length": es.segment_length,
        "rank": es.rank,
        "chunk": es.chunk,
        "weights": costs.weights,
        "inference_tokens_per_s": rate("inference"),
        "perturbed_tokens_per_s": rate("perturbed"),
        "voting_tokens_per_s": rate("voting"),
        "step_tokens_per_s": rate("step"),
        "perturbed_over_inference": rate("perturbed") / rate("inference"),
        "perturbed_over_inference_cpu": times["inference"].cpu / times["perturbed"].cpu,
        **ratio("step", "perturbed"),
        **ratio("noise", "step"),
        **ratio("update", "step"),
        "int8_peak_gops": peak,
        "copy_gbytes_per_s": copy,
        "inference_gops": operations / times["inference"].seconds / 1e9,
        "inference_over_dots": turns * times["dots"].seconds / times["inference"].seconds,
        "inference_over_dots_cpu": turns * times["dots"].cpu / times["inference"].cpu,
        "operations_floor": operations / peak / 1e9 / times["inference"].seconds,
        "bytes_floor": costs.inference_bytes * tokens / copy / 1e9 / times["inference"].seconds,
        "step_temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as columns."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:>18,.3f}" if value < 100 else f"{value:>18,.0f}"
        return f"{value:>18,}" if isinstance(value, int) else f"{value:>18}"

    return "\n".join(f"{name:<30}" + "".join(cell(row[name]) for row in rows) for name in rows[0])


def machine() -> str:
    """What the figures are of: processor, device and version of JAX."""
    device = jax.devices()[0]
    return f"{platform.machine()}, {device.platform} {device.device_kind}, jax {jax.__version__}"


def progress(row: dict[str, Any]) -> str:
    """One line that says how far the benchmark is, and the row's first figures."""
    return (
        f"{row['recipe']}, width {row['width']}, rank {row['rank']}: "
        f"{row['perturbed_tokens_per_s']:,.0f} tokens/s perturbed, "
        f"{row['perturbed_over_inference']:.3f} of inference; "
        f"step / perturbed {row['step_over_perturbed']:.3f}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5, help="runs per figure (median)")
    parser.add_argument("--recipe", nargs="+", default=list(recipes()), choices=list(recipes()))
    parser.add_argument(
        "--shape",
        action="append",
        metavar="D,L,P,T",
        help=f"width, layers, population, segment length (default: {SHAPES})",
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[1], help="of perturbations")
    parser.add_argument("--chunk", type=int, default=0, help="members at once (0: as in training)")
    parser.add_argument("--config", nargs="+", default=[], help="configurations, in place of these")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.config:
        chosen = [
            (Path(path).stem, config.validate(config.load(path))) for path in arguments.config
        ]
    else:
        shapes = [tuple(map(int, shape.split(","))) for shape in arguments.shape or ()] or SHAPES
        chosen = [
            (name, sized(recipes()[name], shape, rank, arguments.chunk))
            for shape in shapes
            for name in arguments.recipe
            for rank in arguments.rank
        ]
    peak, copy = machine_rates(arguments.repeats)
    rows = []
    for row in chosen:
        rows.append(row_of(*row, peak, copy, arguments.repeats))
        print(progress(rows[-1]), file=sys.stderr, flush=True)
    profiles = []
    if arguments.profile:
        import breakdown

        for name, settings in chosen:
            functions, program = functions_of(settings)
            jax.block_until_ready(functions["step"]())
            parts = breakdown.of_call(functions["step"], program.as_text())
            profiles.append({"recipe": name, "width": settings.model.width, "parts": parts})
    if arguments.json:
        found = {"machine": machine(), "python": platform.python_version(), "rows": rows}
        print(json.dumps(found | ({"profiles": profiles} if profiles else {})))
        return
    print(f"{machine()}, Python {platform.python_version()}; medians of {arguments.repeats}")
    print(table(rows))
    for profile in profiles:
        print(f"\n{profile['recipe']}, width {profile['width']}: share of a step's time")
        for part, share in profile["parts"].items():
            print(f"  {part:<20}{share:7.1%}")


if __name__ == "__main__":
    main()
