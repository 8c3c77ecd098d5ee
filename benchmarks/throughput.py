"""Throughput: tokens/s of inference, of the perturbed forward pass, of a whole training step.

    python benchmarks/throughput.py [--json] [--repeats 5] [--shape D,L,P,T ...]
        [--recipe egg rwkv quickstart] [--config FILE ...] [--rank R ...] [--chunk N] [--segments]
        [--gpu] [--profile]

Rows are recipes x shapes x ranks: `egg` and `rwkv` with plain votes (the paper's recipe) and
`quickstart`, the default recipe without its context tables; `--config` adds configurations
unchanged. The parts of a row take turns, and every figure is a median, so that a change of the
machine's speed affects all parts alike: compare ratios, not absolute times. Ratios that end in
`_cpu` are those of processor time, which other programs on the machine disturb least.

    inference   the bare model reads and scores what the population reads, in the same chunks
    perturbed   the same under perturbations, with their noise: the forward pass alone
    voting      the forward pass that also records the inputs of votes, and the votes
    step        everything; `noise`, `update` (of votes at random) are parts of it
    dots        the model's own matrices on their own, as XLA's int8 dots: its peak at these shapes

Two floors stand beside the time of inference: its operations at `int8_peak_gops`, the best int8
dot of the run, and the bytes it must move at `copy_gbytes_per_s`. With `--segments` the same parts
without segments in one kernel (`native.over_tokens`) take turns with them, and ratios of the two
are printed. `--gpu` is `--segments` with the kernel for GPUs, which they do not use by themselves,
at sizes for a GPU. With `--profile` a table follows that says where the time of a step goes
(`breakdown.py`).
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import breakdown, common
from int_lm import config, errors, native, switches
from int_lm.config import Config
from int_lm.measure import rate
from int_lm.method import bounds, chunks, evolve, population
from int_lm.method.clock import Clock
from int_lm.method.population import PopulationResult
from int_lm.method.recipe import Recipe
from int_lm.method.state import Tables
from int_lm.model import params, perturb, reading
from int_lm.model.params import Parameters, Spec, Tree
from int_lm.native import segment
from int_lm.training import memory, plan

SHAPES = ((64, 2, 2048, 50), (256, 4, 2048, 20))
GPU_SHAPES = ((64, 2, 32768, 50), (256, 4, 16384, 20))  # with `--gpu`
COPY_BYTES = 1 << 26
GPU_COPY_BYTES = 1 << 30
BOTH_WAYS = ("inference", "perturbed", "step")  # with `--segments`
DOT_TURNS = 4  # calls timed together: one is short

Functions = dict[str, Callable[[], Any]]


def recipes() -> dict[str, Config]:
    """The recipes by name; their sizes are replaced by those of a shape."""
    return {
        "egg": common.paper(),
        "rwkv": common.paper(architecture="rwkv", ffn_multiple=2),
        "quickstart": common.with_fields(
            common.shipped("quickstart"), "model", direct=(), cache=()
        ),
    }


def sized(settings: Config, shape: Sequence[int], rank: int, chunk: int) -> Config:
    """A configuration at (D, L, P, T)."""
    width, layers, members, segment = shape
    settings = common.with_fields(settings, "model", width=width, layers=layers)
    sizes = {"population": members, "segment_length": segment, "rank": rank, "chunk": chunk}
    return common.with_fields(settings, "es", **sizes)


def machine_rates(repeats: int) -> tuple[float, float]:
    """The best int8 dot of some shapes in 10^9 operations/s; a copy, read and write, in GB/s."""
    best = rate.best_dot(lambda dot: common.medians({"dot": dot}, 4 * repeats)["dot"].seconds)
    size = GPU_COPY_BYTES if jax.default_backend() == "gpu" else COPY_BYTES
    block = jnp.zeros(size, jnp.int8)
    copy = jax.jit(lambda x: x ^ jnp.int8(1))
    seconds = common.medians({"copy": lambda: copy(block)}, 2 * repeats)["copy"].seconds
    return best, 2 * size / seconds / 1e9


def trained_like(recipe: Recipe, state: evolve.State) -> evolve.State:
    """The network with random values for tensors that start at zero: zeros may make work faster.

    Context tables stay as they are.
    """
    generator = np.random.default_rng(1)

    def leaf(spec: Spec, weight: jax.Array) -> jax.Array:
        if spec.init == 0:
            return jnp.asarray(generator.integers(-16, 17, weight.shape, dtype=np.int8))
        return weight

    network = params.map_leaves(leaf, recipe.model.specs.network, state.network)
    return dataclasses.replace(state, network=network)


def functions_of(recipe: Recipe) -> tuple[Functions, jax.stages.Compiled]:
    """The compiled parts of a recipe's step, by name, ready to be called; the whole step."""
    state = trained_like(recipe, evolve.initial(recipe))
    tokens_ST, values = common.tokens_of(recipe), evolve.values(recipe, 0)
    # an argument, not a constant, which the compiler would fold into ready-made noise
    clock = Clock.at(0, 0)
    pairs_CI = chunks.pairs(recipe.es, 1, recipe.model.settings)

    def forward(members_of: Callable[[Any], Parameters], state: Tree, tokens_ST: Any):
        """The forward pass of every chunk; `members_of` those of some pairs."""

        def one_chunk(pairs_I: Any, arguments: tuple[Tree, Any]):
            state, tokens_ST = arguments
            tokens_PT = jnp.repeat(tokens_ST, recipe.es.members_per_stream, axis=0)
            return reading.measured(recipe.model, members_of(pairs_I), state, tokens_PT), ()

        tokens = tokens_ST.reshape(len(pairs_CI), -1, tokens_ST.shape[1])
        members = chunks.split_members(len(pairs_CI), state)
        return chunks.over(one_chunk, pairs_CI, (members, tokens))

    @jax.jit
    def inference(weights: Parameters, state: Tree, tokens_ST: Any):
        return forward(lambda pairs_I: perturb.unperturbed(weights), state, tokens_ST)

    @jax.jit
    def perturbed(weights: Parameters, state: Tree, tokens_ST: Any, clock: Clock):
        def members_of(pairs_I: Any) -> Parameters:
            return population.perturbed(
                recipe, weights, population.noise_of(recipe, clock, pairs_I)
            )

        return forward(members_of, state, tokens_ST)

    @jax.jit
    def noise(clock: Clock):
        def one_chunk(pairs_I: Any, _: Any):
            return population.noise_of(recipe, clock, pairs_I), ()

        return chunks.over(one_chunk, pairs_CI, pairs_CI)

    voting = jax.jit(functools.partial(population.outcome, recipe))
    update = jax.jit(functools.partial(evolve.moved, recipe))
    moving = jax.tree.map(jnp.copy, state)  # its context tables change in place
    memory.large_pages((state, moving))  # as in training
    rest = tokens_ST, clock, values
    program = evolve.jitted_step(recipe).lower(*evolve.donated(moving), *rest).compile()

    def step() -> Any:
        nonlocal moving
        moving, metrics = program(*evolve.donated(moving), *rest)
        return metrics

    generator = np.random.default_rng(0)
    votes = {
        path: jax.device_put(generator.integers(-999, 999, spec.full_shape, dtype=np.int32))
        for path, spec in params.flatten(recipe.model.specs.network)
    }
    result = PopulationResult(
        scores_P=jnp.zeros(recipe.es.population, jnp.int32),
        fitness_I=jnp.ones(recipe.es.population // 2, jnp.int8),
        members=state.members,
        votes=votes,
        tables=Tables(),
    )
    dots = rate.dots_of(
        [(chunks.size(recipe.es, 1, recipe.model.settings), *shape) for shape in matrices(recipe)]
    )
    read = state.weights, state.members, tokens_ST
    # without context tables, of which the update of weights changes nothing
    network = dataclasses.replace(state, tables=Tables())
    functions = {
        "inference": lambda: inference(*read),
        "perturbed": lambda: perturbed(*read, clock),
        "voting": lambda: voting(*read, clock, pairs_CI),
        "step": step,
        "noise": lambda: noise(clock),
        "update": lambda: update(network, result, clock, values),
        "dots": lambda: [dots() for _ in range(DOT_TURNS)],
    }
    return functions, program


def matrices(recipe: Recipe) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix that activations pass, one for each layer."""
    return [
        (spec.shape[1], spec.shape[0])
        for _, spec in params.flatten(recipe.model.specs.network)
        if spec.role in bounds.MATRICES
        for _ in range(max(1, spec.layers))
    ]


def row_of(
    name: str, settings: Config, peak: float, copy: float, repeats: int, segments: bool
) -> dict[str, Any]:
    """One row: rates, ratios, floors and memory of a configuration."""
    recipe = common.recipe_of(settings)
    model, es = settings.model, settings.es
    functions, program = functions_of(recipe)
    others = {}
    if segments:
        with native.segments("never"):
            by_token, _ = functions_of(recipe)
            others = {f"{part}_by_token": by_token[part] for part in BOTH_WAYS}
            jax.block_until_ready([other() for other in others.values()])  # traced here
    times = common.medians(functions | others, repeats)
    memory = program.memory_analysis()
    tokens = es.population * es.segment_length
    costs = plan.costs(recipe)
    operations = costs.inference_operations * tokens
    turns = (
        tokens / chunks.size(recipe.es, 1, recipe.model.settings) / DOT_TURNS
    )  # of the dots, for as many tokens

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
        "chunk": chunks.size(recipe.es, 1, recipe.model.settings),
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
        **{
            key: value
            for part in (BOTH_WAYS if segments else ())
            for key, value in ratio(part, f"{part}_by_token").items()
        },
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
    parser = common.parser(__doc__, repeats=5)
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
    parser.add_argument(
        "--segments", action="store_true", help="also without segments in one kernel, in turn"
    )
    parser.add_argument("--gpu", action="store_true", help="--segments, of the kernel for GPUs")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    arguments = parser.parse_args()
    if arguments.gpu:
        with errors.reported("benchmarks/throughput.py"):
            errors.require(
                jax.default_backend() == "gpu",
                "--gpu measures the kernel of a segment on a GPU, and JAX sees none here; run it "
                "on a machine with one, after pip install 'int-lm[cuda13]'",
            )
        logging.basicConfig(format="%(message)s")
        logging.getLogger(segment.__name__).setLevel(logging.DEBUG)  # if JAX computes, it says so
        os.environ[switches.GPU_SEGMENTS], arguments.segments = "1", True
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse()
    defaults = GPU_SHAPES if arguments.gpu else SHAPES
    if arguments.config:
        chosen = [(Path(path).stem, config.load(path)) for path in arguments.config]
    else:
        shapes = [tuple(map(int, shape.split(","))) for shape in arguments.shape or ()] or defaults
        chosen = [
            (name, sized(recipes()[name], shape, rank, arguments.chunk))
            for shape in shapes
            for name in arguments.recipe
            for rank in arguments.rank
        ]
    peak, copy = machine_rates(arguments.repeats)
    rows, profiles = [], []
    for name, settings in chosen:
        segments = arguments.segments
        rows.append(row_of(name, settings, peak, copy, arguments.repeats, segments))
        print(progress(rows[-1]), file=sys.stderr, flush=True)
    for name, settings in chosen if arguments.profile else ():
        functions, program = functions_of(common.recipe_of(settings))
        jax.block_until_ready(functions["step"]())
        parts = breakdown.of_call(functions["step"], program.as_text() or "")
        profiles.append({"recipe": name, "width": settings.model.width, "parts": parts})
    if arguments.json:
        found = {"machine": common.machine(), "rows": rows}
        print(json.dumps(found | ({"profiles": profiles} if profiles else {})))
        return
    print(f"{common.machine()}; medians of {arguments.repeats}")
    print(table(rows))
    for profile in profiles:
        print(f"\n{profile['recipe']}, width {profile['width']}: share of a step's time")
        for part, share in profile["parts"].items():
            print(f"  {part:<20}{share:7.1%}")


if __name__ == "__main__":
    main()
