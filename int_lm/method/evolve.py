"""One step of training: perturb, objective, votes, update. A pure function of integers.

    (recipe, state, tokens_ST, clock, values of the schedules) -> (state, metrics)

No array in it has a floating dtype (a test checks the jaxpr), so the result depends neither on the
machine nor on the order of any sum. Each device computes the votes of its own members
(`placement`). The votes are summed over the devices, and then the weights are updated.

Axes: P members, I = P/2 pairs, S streams, C chunks, T segment length, L layers, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from int_lm.errors import require
from int_lm.method import fitness, placement, population
from int_lm.method.anchor import ANCHOR
from int_lm.method.clock import Clock
from int_lm.method.placement import AXIS, Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import STORED, Metrics, State, Tables
from int_lm.method.update import Tensor, Votes
from int_lm.model import context_tables, params
from int_lm.model.params import Parameters, Tree

Values = Mapping[str, Array]  # schedule values of one step by name: int32 scalars (`Update.values`)


def initial(recipe: Recipe, weights: Parameters | None = None) -> State:
    """The state before the first step, with these int8 weights, or random ones of the seed."""
    weights = weights or params.initialise(recipe.model.specs, recipe.settings.run.seed)
    return _beginning(recipe, jax.tree.map(jnp.asarray, weights))


def abstract(recipe: Recipe) -> State:
    """Shapes and dtypes of `initial`; no array is allocated."""

    def state() -> State:
        specs = recipe.model.specs.by_path()
        zeros = {path: jnp.zeros(spec.full_shape, jnp.int8) for path, spec in specs.items()}
        return _beginning(recipe, Parameters.of_paths(zeros))

    return jax.eval_shape(state)


def _beginning(recipe: Recipe, weights: Parameters) -> State:
    """The state before the first step, with these int8 weights.

    Raises:
      UserError: the update declares an array whose name is taken or whose shape is wrong.
    """
    memory: dict[str, dict[str, Array]] = {}
    for path, spec in params.flatten(recipe.model.specs.network):
        for name, array in recipe.update.memory(spec).items():
            require(
                name not in STORED and array.shape == spec.full_shape,
                f"the update {recipe.es.update} keeps {name} of {path}, which must have the "
                f"tensor's shape, and another name than {', '.join(sorted(STORED))}",
            )
            memory.setdefault(name, {})[path] = array
    memory |= {ANCHOR: dict(params.flatten(weights.network))} if ANCHOR in memory else {}
    return State(
        network=weights.network,
        tables=Tables(weights.tables, context_tables.initial_counts(recipe.model.settings)),
        members=recipe.model.initial_state(recipe.es.population),
        memory=memory,
    )


def values(recipe: Recipe, step: int) -> dict[str, np.int32]:
    """The schedule values of a step, by name."""
    return {name: np.int32(v) for name, v in recipe.update.values(recipe.settings, step).items()}


# -- One step --------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PopulationResult:
    """Result of the whole population in one step.

    Attributes:
      scores_P: scores of all members, int32.
      fitness_I: fitness of all pairs, int8.
      members: recurrent states after the segment, leaves [L, P, ...]; on several devices each holds
        its own members.
      votes: votes on the network's tensors by path, int32, summed over all members.
      tables: context tables after the step.
    """

    scores_P: Array
    fitness_I: Array
    members: Tree
    votes: dict[str, Array]
    tables: Tables


def step(
    recipe: Recipe,
    state: State,
    tokens_ST: Array,
    clock: Clock,
    values: Values,
    place: Placement | None = None,
) -> tuple[State, Metrics]:
    """One step.

    Args:
      state: the state before the step.
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      clock: seed and step.
      values: schedule values of this step (`values`).
      place: the devices; None for a single one. Their number must divide the number of chunks.

    Returns:
      The state after the step, and its metrics.
    """
    result = divided(recipe, place)(
        population.all_chunks(recipe),
        state.weights,
        state.tables.counts,
        state.members,
        tokens_ST,
        clock,
    )
    return updated(recipe, state, result, clock, values, place)


def updated(
    recipe: Recipe,
    state: State,
    result: PopulationResult,
    clock: Clock,
    values: Values,
    place: Placement | None,
) -> tuple[State, Metrics]:
    """The state after the update that follows from a population's result, and the metrics."""
    network, memory = moved(recipe, state, result, clock, values)
    if place is not None:
        network = _gathered(recipe, network, place)
    changed = jax.tree.map(
        lambda new, old: jnp.sum(new != old, dtype=jnp.int32), network, state.network
    )
    metrics = Metrics(
        scores_P=result.scores_P,
        changed=jax.tree.reduce(jnp.add, changed),
        saturated=params.saturated(network),
    )
    return State(network, result.tables, result.members, memory), metrics


def population_result(
    recipe: Recipe,
    chunks_C: Array,
    weights: Parameters,
    counts: dict[str, Array],
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    *,
    axis: str | None = None,
    split: dict[str, PartitionSpec] | None = None,
) -> PopulationResult:
    """Perturb, run the objective, sum the votes: one device's members, then all devices together.

    Args:
      chunks_C: indices of this device's chunks, int32.
      weights: int8.
      counts: counts of the context tables: steps that have read each row, int32 by name.
      members: recurrent states of this device's members, leaves [L, P, ...].
      tokens_ST: tokens of this device's streams.
      clock: seed and step.
      axis: name of the mesh axis of the devices; None for a single device.
      split: by path, how the summed votes are divided among the devices; None for a single device.
    """
    own = population.outcome(recipe, weights, members, tokens_ST, clock, chunks_C)
    scores_P = placement.gathered(own.scores_P, axis)
    fitness_I = fitness.fitness(recipe.es, scores_P, recipe.objective.score_max(recipe.es))
    own_I = fitness_I.reshape(population.chunks(recipe), -1)[chunks_C]
    votes = own.votes | population.votes_of_fitness(recipe, own_I, clock, chunks_C)
    return PopulationResult(
        scores_P=scores_P,
        fitness_I=fitness_I,
        members=own.members,
        votes={
            path: placement.summed(sums, axis, split[path] if split else None)
            for path, sums in votes.items()
        },
        tables=_learnt(recipe, Tables(weights.tables, counts), own.row_errors, clock, axis),
    )


def _learnt(
    recipe: Recipe,
    tables: Tables,
    row_errors: population.RowErrors | None,
    clock: Clock,
    axis: str | None,
) -> Tables:
    """The context tables after a step, from the row errors of all devices."""
    if row_errors is None:
        return tables
    errors_JV, learnt = placement.gathered(row_errors.errors_JV, axis), Tables()
    for name, table in tables.values.items():
        rows_J = placement.gathered(row_errors.rows[name], axis)
        learnt.values[name], learnt.counts[name] = context_tables.update(
            recipe.es, table, tables.counts[name], rows_J, errors_JV, clock.step
        )
    return learnt


def divided(recipe: Recipe, place: Placement | None) -> Callable[..., PopulationResult]:
    """`population_result` with the chunks divided among the devices of `place`."""
    if place is None:
        return functools.partial(population_result, recipe)
    everywhere, by_member, first = PartitionSpec(), PartitionSpec(None, AXIS), PartitionSpec(AXIS)
    network = params.flatten(recipe.model.specs.network)
    split = {path: place.split(spec.full_shape) for path, spec in network}
    return jax.shard_map(
        functools.partial(population_result, recipe, axis=AXIS, split=split),
        mesh=place.mesh,
        in_specs=(first, everywhere, everywhere, by_member, first, everywhere),
        out_specs=PopulationResult(everywhere, everywhere, by_member, split, everywhere),  # type: ignore[arg-type]
        check_vma=False,  # gathered arrays are equal on all devices; JAX's check cannot infer that
    )


def moved(
    recipe: Recipe, state: State, result: PopulationResult, clock: Clock, values: Values
) -> tuple[Tree, dict[str, dict[str, Array]]]:
    """The network's int8 weights after the update, and the update's memory, by name and path."""
    weights, memory = dict(params.flatten(state.network)), {name: {} for name in state.memory}
    numbers = params.tensor_ids(recipe.model.specs)
    for path, spec in params.flatten(recipe.model.specs.network):
        of_fitness = recipe.estimator_of(spec).of_fitness is not None
        votes = Votes(result.votes[path], result.fitness_I if of_fitness else None)
        kept = {name: arrays[path] for name, arrays in state.memory.items() if path in arrays}
        weights[path], kept = recipe.update.move(
            recipe.es, Tensor(spec, numbers[path], clock), weights[path], kept, votes, values
        )
        for name, array in kept.items():
            memory[name][path] = array
    return params.unflatten(weights), memory


def _gathered(recipe: Recipe, network: Tree, place: Placement) -> Tree:
    """Gather the updated weights on every device.

    Each device updates its part of the weights. The int8 weights are gathered, not the int32 votes.
    """
    specs = recipe.model.specs.network
    parts_of = params.map_leaves(lambda spec: place.of_votes(spec.full_shape), specs)
    parts = jax.lax.with_sharding_constraint(network, parts_of)
    # without the barrier the compiler gathers the votes, which are four times as large
    parts = jax.lax.optimization_barrier(parts)
    return jax.lax.with_sharding_constraint(parts, place.everywhere)


# -- Compiled --------------------------------------------------------------------------------------

StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(recipe: Recipe, place: Placement | None = None) -> StepFunction:
    """`(state, tokens_ST, step) -> (state, metrics)`, compiled once, at its first call.

    The step and the schedule values are arguments of the compiled program, so no later step
    recompiles. The context tables are changed in place: do not use those of the state that was
    passed in any more.

    Args:
      place: the devices; None for a single one. With several devices pass states of `placed`; the
        tokens of all streams are passed, and divided among the devices here.
    """
    jitted = jitted_step(recipe, place)

    def run(state: State, tokens_ST: np.ndarray, step: int) -> tuple[State, Metrics]:
        clock = Clock(np.uint32(recipe.settings.run.seed), np.uint32(step))  # type: ignore[arg-type]
        tokens = tokens_ST if place is None else placement.put(place.by_stream, tokens_ST)
        return jitted(*donated(state), tokens, clock, values(recipe, step))

    return run


def jitted_step(recipe: Recipe, place: Placement | None = None) -> Any:
    """`step` under `jax.jit`: (tables, rest, tokens_ST, clock, values) -> (state, metrics).

    The first two arguments are those that `donated` returns, the others those of `step`. The memory
    of the context tables is donated to the result.
    """
    recipe = population.chunked(recipe, place.devices if place else 1)

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(tables: Tables, rest: State, tokens_ST: Array, clock: Clock, values: Values):
        state = dataclasses.replace(rest, tables=tables)
        return step(recipe, state, tokens_ST, clock, values, place)

    return jitted


def donated(state: State) -> tuple[Tables, State]:
    """(context tables, the state without them). A step changes the context tables in place."""
    return state.tables, dataclasses.replace(state, tables=Tables())


def lends_memory(state: State) -> bool:
    """Whether NumPy arrays that were made from this state hold memory that the next step asks for.

    On CPUs such an array shares its memory with JAX's. While it exists, a step cannot change the
    context tables in place: JAX leaves them as they are and takes new memory for the result, so
    that the tables are held twice. On other platforms NumPy holds a copy.
    """
    return bool(state.tables.values) and jax.default_backend() == "cpu"


def placed(recipe: Recipe, state: State, place: Placement | None) -> State:
    """Lay a state out over the devices.

    Args:
      state: the whole state; every process passes the same.
      place: the devices; None for a single one.
    """
    if place is None:
        return jax.tree.map(jnp.asarray, state)

    def everywhere(leaf: Array) -> Array:
        return placement.put(place.everywhere, leaf)

    network = dict(params.flatten(recipe.model.specs.network))
    return State(
        network=jax.tree.map(everywhere, state.network),
        tables=jax.tree.map(everywhere, state.tables),
        members=jax.tree.map(lambda leaf: placement.put(place.by_member, leaf), state.members),
        memory={
            name: {
                path: placement.put(place.of_votes(network[path].full_shape), leaf)
                for path, leaf in arrays.items()
            }
            for name, arrays in state.memory.items()
        },
    )
