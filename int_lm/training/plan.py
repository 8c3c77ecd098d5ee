"""The cost of a configuration, before it runs: weights, operations, bytes and seconds.

`costs` counts, from the parameter tree alone. `measure` asks the compiler for memory and times
small populations. `python train.py --plan` prints both. A multiplication and its addition count as
two operations. Only operations of matrices are counted: there are hundreds of them for each other
one.

Axes: P members, T segment length, M outputs, N inputs, R rank, V vocabulary.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from int_lm.config import Config
from int_lm.limits import voters
from int_lm.measure import evaluate
from int_lm.method import bounds, evolve, pool, recipe
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import context_tables, params
from int_lm.settings import StrategySettings
from int_lm.training import memory, warmup


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one configuration. "Per token" means: for each token that a member reads.

    Attributes:
      weights: number of weights of the network; also their bytes, because they are int8.
      table_weights: number of entries of the context tables; also their bytes.
      inference_operations: per token, of the matrices of the unperturbed model.
      perturbation_operations: per token, of x B and of the addition of A.
      voting_operations: per token, of the votes made token by token. Votes made from the fitness
        of pairs cost nothing per token.
      inference_bytes: per token, that must be moved: int8 inputs and outputs of every matrix, the
        member's state read and written, and the logits.
      state_bytes: bytes of the recurrent states of all members.
      carried_bytes: bytes of the update's memory, of the counts of the context tables, and of
        trust.
    """

    weights: int
    table_weights: int
    inference_operations: int
    perturbation_operations: int
    voting_operations: int
    inference_bytes: int
    state_bytes: int
    carried_bytes: int

    @property
    def operations(self) -> int:
        """Operations of a training step, per token."""
        return self.inference_operations + self.perturbation_operations + self.voting_operations

    @property
    def held_bytes(self) -> int:
        """Bytes of everything that a run carries from step to step."""
        return self.weights + self.table_weights + self.state_bytes + self.carried_bytes


def _bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def costs(recipe: Recipe) -> Costs:
    """Costs of a recipe; nothing is compiled or allocated."""
    model, es = recipe.model, recipe.es
    state = jax.eval_shape(
        lambda: recipe.learner.initial_state(es.population, es.members_per_stream)
    )
    state_bytes = _bytes(state)
    inference = perturbation = voting = moved = 0
    for _, spec in params.flatten(model.specs.network):
        count, estimator = max(1, spec.layers), recipe.estimator_of(spec)
        voting += count * estimator.operations(spec)
        if spec.role not in bounds.MATRICES:
            continue
        outputs, inputs = spec.shape
        inference += 2 * count * outputs * inputs
        moved += count * (outputs + inputs)
        if recipe.perturbs(spec):
            perturbation += 2 * count * es.rank * (outputs + inputs)
    weights = params.count(model.specs.network)
    specs = [spec for _, spec in params.flatten(model.specs.network)]
    memory = jax.eval_shape(lambda: [recipe.update.memory(spec) for spec in specs])
    trust = jax.eval_shape(lambda: pool.initial(model.settings)) if es.pooled else None
    rows = len(context_tables.names(model.settings)) << model.settings.direct_bits
    return Costs(
        weights=weights,
        table_weights=rows * model.vocab_size,
        inference_operations=inference,
        perturbation_operations=perturbation,
        voting_operations=voting * voters(es) // (es.population // 2),
        inference_bytes=moved + 2 * model.vocab_size + 2 * state_bytes // es.population,
        state_bytes=state_bytes,
        carried_bytes=4 * rows + _bytes((memory, trust)),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run of a configuration will need on this machine.

    Attributes:
      costs: counted from the parameter tree.
      step_bytes: memory at the peak of a step: everything that is held, a second copy of it
        without the context tables, and the temporary memory of the compiled step. Of a pool at
        least what is held and a second copy of all weights, which is made to evaluate.
      process_bytes: peak memory of Python and JAX after they have compiled what a run needs. Most
        of it is free afterwards.
      seconds: of one step.
      tokens_per_s: tokens of all members per second.
      compile_seconds: time to compile the step.
    """

    costs: Costs
    step_bytes: int
    process_bytes: int
    seconds: float
    tokens_per_s: float
    compile_seconds: float


PROBE_MEMBERS = (128, 512)  # populations that are timed in place of a larger one
PROBE_TABLE_BITS = 12  # each of their context tables has at most 2^12 rows
PROBE_REPEATS = 5


def measure(config: Config, vocab_size: int) -> Plan:
    """The plan of a configuration: its step is compiled, and smaller populations are timed.

    No array of the run's own size is allocated: the compiler says how much memory a step needs.
    The time of a step is taken to be linear in the population, so two smaller sizes give it.
    """
    whole = recipe.of(config, vocab_size)
    counted, es = costs(whole), config.es
    tokens_ST = np.zeros(_tokens_shape(es), np.uint8 if vocab_size <= 256 else np.uint16)
    piece = np.zeros(evaluate.PIECE_BYTES, tokens_ST.dtype)
    pieces = [piece] * max(1, config.run.eval_bytes // len(piece))
    started = time.perf_counter()
    sampling = config.run.sample_tokens > 0
    with warmup.beside(whole, tokens_ST, pieces, sampling=sampling) as warm:  # as a run compiles
        needed = _lowered(whole).compile().memory_analysis()
        temporary = needed.temp_size_in_bytes if needed else 0  # None on some platforms
        compile_seconds = time.perf_counter() - started
        memory.trim()
        warm.begin()
        warm.ready()
    process_bytes = memory.peak()
    readers = es.members_per_stream
    sizes = [min(es.population, max(1, size // readers) * readers) for size in PROBE_MEMBERS]
    small, large = sizes
    probes = [_probe(config, size) for size in sorted(set(sizes))]
    times = _timed([recipe.of(probe, vocab_size) for probe in probes])
    slope = max(times[-1] - times[0], 0.0) / max(1, large - small)
    seconds = times[-1] + slope * (es.population - large)
    renewed = counted.held_bytes - counted.table_weights  # tables are changed in place
    settled = counted.weights + counted.table_weights if es.pooled else 0  # for an evaluation
    return Plan(
        costs=counted,
        step_bytes=counted.held_bytes + max(renewed + temporary, settled),
        process_bytes=process_bytes,
        seconds=seconds,
        tokens_per_s=es.population * es.segment_length / seconds,
        compile_seconds=compile_seconds,
    )


def _tokens_shape(es: StrategySettings) -> tuple[int, int]:
    return es.streams, es.segment_length + 1


def _lowered(whole: Recipe) -> jax.stages.Lowered:
    """The training step for the compiler, from shapes alone."""
    state = evolve.abstract(whole)
    tokens_ST = jax.ShapeDtypeStruct(_tokens_shape(whole.es), np.uint16)
    word = jax.ShapeDtypeStruct((), np.uint32)
    step = evolve.jitted_step(whole)
    values = evolve.values(whole, 0)
    return step.lower(*evolve.donated(state), tokens_ST, Clock(word, word), values)  # type: ignore[arg-type]


def _probe(config: Config, population: int) -> Config:
    """The configuration at a smaller population."""
    es, bits = config.es, min(config.model.direct_bits, PROBE_TABLE_BITS)
    chunk = es.chunk if es.chunk and population % es.chunk == 0 else 0
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, direct_bits=bits),
        es=dataclasses.replace(es, population=population, chunk=chunk),
    )


def _timed(probes: list[Recipe]) -> list[float]:
    """Median seconds of a step of each recipe; the recipes take turns."""
    generator = np.random.default_rng(0)
    steps = [evolve.compiled_step(probe) for probe in probes]
    states = [evolve.initial(probe) for probe in probes]
    texts = [
        generator.integers(0, probe.model.vocab_size, _tokens_shape(probe.es)).astype(np.uint16)
        for probe in probes
    ]
    times: list[list[float]] = [[] for _ in probes]
    for turn in range(PROBE_REPEATS + 1):  # the first one compiles
        for place, step in enumerate(steps):
            started = time.perf_counter()
            states[place], metrics = step(states[place], texts[place], turn)
            metrics.scores_P.block_until_ready()
            if turn:
                times[place].append(time.perf_counter() - started)
    return [statistics.median(column) for column in times]


def lines(config: Config, found: Plan) -> list[str]:
    """The plan as lines of text."""
    counted, es = found.costs, config.es
    tokens = es.population * es.segment_length
    weights = f"{counted.weights:,} int8 of the network"
    if counted.table_weights:
        weights += f", {counted.table_weights:,} of context tables"
    shares = {
        "inference": counted.inference_operations,
        "perturbation": counted.perturbation_operations,
        "votes": counted.voting_operations,
    }
    parts = ", ".join(f"{name} {part / counted.operations:.0%}" for name, part in shares.items())
    speed = f"{found.tokens_per_s:,.0f} member tokens/s, {1000 * found.seconds:,.1f} ms a step"
    held, step = counted.held_bytes / 1e6, found.step_bytes / 1e6
    own = found.process_bytes / 1e6
    process = f"{own:,.0f} MB of the process besides"
    if jax.default_backend() == "cpu":
        process += f": {step + own:,.0f} MB at the most"
    minutes = config.run.steps * found.seconds / 60
    return [
        f"weights      {weights}",
        f"a step       {es.population:,} members x {es.segment_length} tokens = {tokens:,} member "
        f"tokens, {es.streams * es.segment_length:,} of text",
        f"operations   {counted.operations * tokens / 1e9:,.1f}e9 a step: {parts}",
        f"memory       {held:,.0f} MB held, {step:,.0f} MB at the height of a step, {process}",
        f"speed        {speed}, after {found.compile_seconds:.0f} s of compiling",
        f"the run      {config.run.steps:,} steps, {minutes:,.1f} minutes of training",
    ]
