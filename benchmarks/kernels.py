"""The time of each kernel and of the JAX code that it replaces, at the shapes of a recipe.

    python benchmarks/kernels.py [--json] [--shape D,L,P,T] [--rank 0 1 4] [--repeats 15]

The recipe is that of configs/quickstart.yaml. For linears and outer
products of each of the model's matrices, the table also has 10^9 operations per second, and those
of XLA's int8 dot alone. Each function is called many times in one program, so that the start of the
program is a small part of the time. Operands that fit stay in the caches. The two programs of a
line take turns. If no kernel is built, or none exists for the device, both columns are JAX.
"""

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, throughput
from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.limits import voters
from int_lm.method import bounds, chunks
from int_lm.method.estimator import credit, deep, local, node, outer, unit
from int_lm.method.estimator.rounding import Rounding
from int_lm.method.recipe import Recipe
from int_lm.model import context_tables, document_cache, hashing, layers, likelihood, params
from int_lm.model.document_cache import Reading
from int_lm.model.params import Parameters, Role
from int_lm.model.perturb import Weight

SHIFT = 7  # of a perturbation
VOCABULARY = common.VOCAB_SIZE
SECONDS = 0.05  # of a program, by the slower of both
MOST_CALLS = 200
IN_PLACE = {"direct_update, in place": 2, "cache_over_tokens, in place": 3}  # operands that change
Case = tuple[str, int, Callable[..., Any], tuple[Any, ...]]  # name, operations, function, operands


class Drawn:
    """Operands at random."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def int8(self, *shape: int, most: int = 40) -> jax.Array:
        """Entries within +-most."""
        return jnp.asarray(self.random.integers(-most, most + 1, shape, dtype=np.int8))

    def below(self, size: int, *shape: int) -> jax.Array:
        """int32 in [0, size)."""
        return jnp.asarray(self.random.integers(0, size, shape, dtype=np.int32))


def of_matrices(recipe: Recipe, ranks: list[int], draw: Drawn) -> Iterator[Case]:
    """Linears of a chunk's members, and the sums of outer products of its pairs' tokens."""
    members = chunks.size(recipe.es)
    readings = members // 2 * recipe.es.segment_length
    for path, spec in params.flatten(recipe.model.specs.network):
        if spec.role not in bounds.MATRICES:
            continue
        outputs, inputs = spec.shape
        narrowed = layers.readout if spec.role is Role.READOUT else layers.linear
        name, operations = f"{path} {inputs} x {outputs}", 2 * inputs * outputs
        value, x_PN = draw.int8(outputs, inputs), draw.int8(members, inputs)
        yield f"dot {name}", operations * members, fixed.dot, (x_PN, value)
        for rank in ranks:
            left = draw.int8(members // 2, outputs, rank) if rank else None
            right = draw.int8(members // 2, inputs, rank) if rank else None
            weight = Weight(value, left, right, shift=SHIFT)
            yield f"linear {name}, rank {rank}", operations * members, narrowed, (weight, x_PN)
        operands = draw.int8(readings, 1, outputs), draw.int8(readings, 1, inputs)
        yield f"outer {name}", operations * readings, outer.outer, operands
        if spec.layers:
            left, inputs_L = operands[0], draw.int8(spec.layers, *operands[1].shape)
            operations *= readings * spec.layers
            yield f"outer_of_layers {name}", operations, outer.outer_of_layers, (left, inputs_L)


def of_rows(recipe: Recipe, draw: Drawn) -> Iterator[Case]:
    """Operations on every row: norms, likelihoods, and the inputs of votes."""
    model, es = recipe.model.settings, recipe.es
    length, pairs, width = es.segment_length, chunks.size(es) // 2, model.width
    rounding = Rounding(draw.below(1 << 20, pairs), jnp.uint32(7), 0)
    logits = draw.int8(length, pairs, VOCABULARY).astype(jnp.int16)
    targets = draw.below(VOCABULARY, length, pairs)
    gain = jnp.full((length, pairs, width), 16, jnp.int32)
    residual, stream = draw.int8(length, pairs, width), draw.int8(length, pairs, width)
    errors = credit.readout_errors(logits, targets, rounding)
    head, hidden = draw.int8(VOCABULARY, width), model.ffn_multiple * width
    value, effect = draw.int8(width, hidden), draw.int8(length, pairs, hidden)
    weight = Weight(head, draw.int8(pairs, hidden, es.rank), draw.int8(pairs, width, es.rank))

    def dithered(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: function(*operands, rounding)

    yield "norm", 0, layers.norm, (gain[0], residual[0])
    yield "likelihood", 0, likelihood.log2_likelihood, (logits[0], targets[0])
    yield "errors", 0, dithered(credit.readout_errors), (logits, targets)
    yield "stream", 0, dithered(credit.of_stream), (gain, residual, head, errors)
    yield "through", 0, dithered(credit.through), (value, stream)
    yield "unit", 0, dithered(node.operand), (weight, residual, effect, effect)
    depth, effects = model.layers, (length, pairs, hidden)
    weights = Weight(
        draw.int8(depth, hidden, width),
        draw.int8(depth, pairs, hidden, es.rank),
        draw.int8(depth, pairs, width, es.rank),
    )
    shifts = *node.shifts_of(weights, width), credit.THROUGH_BITS

    def votes(*operands: Any) -> jax.Array:
        return unit.unit_votes(*operands, rounding, *shifts)  # pyright: ignore[reportCallIssue]

    operands = draw.int8(depth, length, pairs, width), draw.int8(depth, *effects)
    behind = draw.int8(depth, width, hidden), draw.below(3, depth)
    yield "unit_votes", 0, votes, (weights, *operands, stream, *behind)
    responses = draw.int8(depth, *effects)

    def locally(*operands: Any) -> jax.Array:
        shifts = local.PRODUCT_SHIFT, credit.THROUGH_BITS
        return local.local_votes(*operands, rounding, *shifts)  # pyright: ignore[reportCallIssue]

    yield "local_votes", 0, locally, (responses, operands[0], stream, *behind)
    yield "counts", 0, params.counts, (weights.value, draw.int8(depth, hidden, width))
    parts, bits = [(stream, draw.int8(length, pairs, 3 * width)), (residual, residual)], 9

    def to_outputs(parts: Any, down: jax.Array) -> jax.Array:
        return deep.to_outputs(parts, [down], bits, rounding)  # pyright: ignore[reportCallIssue]

    yield "to_outputs", 0, to_outputs, (parts, jnp.int32(-4))
    shift, starts = draw.below(128, width), draw.below(40, length, pairs) == 0
    operands = residual, stream, stream, jnp.int32(-4), shift, starts
    yield "to_stream", 0, dithered(deep.to_stream), operands


def of_tables(recipe: Recipe, draw: Drawn) -> Iterator[Case]:
    """Context tables: reading them, updating them, and the hash of one."""
    model, es = recipe.model.settings, recipe.es
    size, readings = 1 << model.direct_bits, voters(es) * es.segment_length
    tables = {f"context_{length}": draw.int8(size, VOCABULARY) for length in model.direct}
    rows = {name: draw.below(size, chunks.size(es)) for name in tables}
    logits = draw.int8(chunks.size(es), VOCABULARY).astype(jnp.int16)
    yield "direct_added", 0, context_tables.added, (tables, rows, logits)
    table, counts = draw.int8(size, VOCABULARY), draw.below(100, size)
    read = draw.below(size, readings), draw.int8(readings, VOCABULARY), jnp.uint32(7)
    update = functools.partial(context_tables.update, es)
    yield "direct_update, in place", 0, update, (table, counts, *read)
    yield "hash_words", 0, lambda table: hashing.lanes(Parameters({"table": table})), (table,)


def of_cache(recipe: Recipe, draw: Drawn) -> Iterator[Case]:
    """The document cache: a segment of every stream; what it adds to the logits of a token."""
    model, es = recipe.model.settings, recipe.es
    sizes, bits, streams = tuple(document_cache.lengths(model)), model.cache_bits, es.streams
    state = document_cache.initial_state(model, streams)
    names = document_cache.NAME, document_cache.PLACE, document_cache.HASH
    context_KP = draw.below(VOCABULARY, max(sizes), streams)
    tokens_TP = draw.below(VOCABULARY, es.segment_length, streams)
    over_tokens = functools.partial(document_cache._over_tokens, sizes, bits)
    operands = *(state[name] for name in names), context_KP, tokens_TP
    yield "cache_over_tokens, in place", 0, over_tokens, operands
    (spec,) = document_cache.specs(model).values()
    members, slots = chunks.size(es), len(sizes) * document_cache.SLOTS
    readers = members // es.members_per_stream, slots
    said = Reading(draw.below(int(np.prod(spec.shape)), *readers), draw.below(VOCABULARY, *readers))
    logits = draw.int8(members, VOCABULARY).astype(jnp.int16)
    yield "cache_added", 0, document_cache.added, (draw.int8(*spec.shape), said, logits)


def repeated(case: Case, times: int, kernels: bool) -> Callable[[], Any]:
    """A program that calls a case's function so many times, with kernels or without.

    Its operands, some of which are large, are donated and returned, so that none is copied.
    """
    name, _, function, operands = case
    moving = IN_PLACE.get(name, 0)  # operands that the first results take the place of

    def program(operands: Any) -> Any:
        def again(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            operands = jax.lax.optimization_barrier(carry[0])  # or it would be called once for all
            result = function(*operands)
            if not moving:
                return operands, result
            return (*result[:moving], *operands[moving:]), result[moving:]

        shapes = jax.eval_shape(function, *operands)
        shapes = shapes[moving:] if moving else shapes
        result = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, times, again, (operands, result))

    held = jax.tree.map(jnp.copy, operands)
    with contextlib.nullcontext() if kernels else native.without_kernels():
        compiled = jax.jit(program, donate_argnums=0).lower(held).compile()

    def call() -> Any:
        nonlocal held
        held, result = compiled(held)
        return held[:moving], result

    return call


def row_of(case: Case, repeats: int) -> dict[str, Any]:
    """A line of the table.

    Raises:
      AssertionError: the kernel and the JAX code give different results.
    """
    name, operations = case[:2]
    functions = {key: repeated(case, 1, key == "kernel") for key in ("kernel", "jax")}
    jax.tree.map(np.testing.assert_array_equal, *(call() for call in functions.values()))
    once = max(median.seconds for median in common.medians(functions, 3).values())
    times = min(MOST_CALLS, math.ceil(SECONDS / once))
    functions = {key: repeated(case, times, key == "kernel") for key in ("kernel", "jax")}
    medians = common.medians(functions, repeats)
    kernel, plain = (medians[key].seconds / times for key in ("kernel", "jax"))
    row = {"part": name, "kernel_ms": kernel * 1e3, "jax_ms": plain * 1e3}
    row["kernel_over_jax"] = kernel / plain
    if operations:
        row |= {"kernel_gops": operations / kernel / 1e9, "jax_gops": operations / plain / 1e9}
    return row


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, repeats=15)
    parser.add_argument("--shape", default="64,2,512,16", metavar="D,L,P,T", help="of the recipe")
    parser.add_argument("--rank", type=int, nargs="+", default=[0, 1, 4], help="of linears")
    arguments = parser.parse_args()
    shape = tuple(map(int, arguments.shape.split(",")))
    recipe = common.recipe_of(throughput.sized(common.shipped("quickstart"), shape, 1, 0))
    draw, rows = Drawn(), []
    for cases in (
        of_matrices(recipe, arguments.rank, draw),
        of_rows(recipe, draw),
        of_tables(recipe, draw),
        of_cache(recipe, draw),
    ):
        for case in cases:
            rows.append(row_of(case, arguments.repeats))
            print(f"{case[0]}: {rows[-1]['kernel_over_jax']:.2f}", file=sys.stderr, flush=True)
    if arguments.json:
        found = {"machine": common.machine(), "kernels": native.available(), "rows": rows}
        print(json.dumps(found))
        return
    print(f"{common.machine()}; kernels {'built' if native.available() else 'not built'}")
    print(f"{'':<44}{'ms':>10}{'JAX, ms':>10}{'ratio':>8}{'10^9/s':>8}{'JAX':>8}")
    for row in rows:
        rates = [row[key] for key in ("kernel_gops", "jax_gops") if key in row]
        print(
            f"{row['part']:<44}{row['kernel_ms']:>10.3f}{row['jax_ms']:>10.3f}"
            f"{row['kernel_over_jax']:>8.2f}" + "".join(f"{rate:>8.0f}" for rate in rates)
        )


if __name__ == "__main__":
    main()
