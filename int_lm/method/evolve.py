"""One step of training: perturb, objective, votes, update. A pure function of integers.

    (recipe, state, tokens_ST, clock, values of the schedules) -> (state, metrics)

Nothing in it has a floating dtype (a test walks its jaxpr), so a run's bits depend neither on the
machine nor on the order of any sum. Members vote on the device where they are (`placement`);
weights move on every device alike.

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
from int_lm.method.clock import Clock
from int_lm.method.placement import AXIS, Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import STORED, State, Tables
from int_lm.method.update import Tensor, Votes
from int_lm.model import context_tables, params
from int_lm.model.params import Parameters, Tree

Values = Mapping[str, Array]  # what the schedules say of one step: int32 scalars (`Update.values`)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step reports.

    Attributes:
      scores_P: int32, in the units of the objective, summed over a segment.
      changed, saturated: int32 scalars, numbers of weights of the network that moved, that stand
        at +-127.
    """

    scores_P: Array
    changed: Array
    saturated: Array


def initial(recipe: Recipe) -> State:
    """The state before the first step: a pure function of the recipe."""
    weights = params.initialise(recipe.model.specs, recipe.settings.run.seed)
    return _beginning(recipe, jax.tree.map(jnp.asarray, weights))


def abstract(recipe: Recipe) -> State:
    """Shapes and dtypes of `initial`, without its memory."""

    def state() -> State:
        specs = recipe.model.specs.by_path()
        zeros = {path: jnp.zeros(spec.full_shape, jnp.int8) for path, spec in specs.items()}
        return _beginning(recipe, Parameters.of_paths(zeros))

    return jax.eval_shape(state)


def _beginning(recipe: Recipe, weights: Parameters) -> State:
    """A state with these weights and nothing read."""
    memory: dict[str, dict[str, Array]] = {}
    for path, spec in params.flatten(recipe.model.specs.network):
        for name, array in recipe.update.memory(spec).items():
            require(
                name not in STORED and array.shape == spec.full_shape,
                f"the update {recipe.es.update} keeps {name} of {path}, which must have the "
                f"tensor's shape, and another name than {', '.join(sorted(STORED))}",
            )
            memory.setdefault(name, {})[path] = array
    return State(
        network=weights.network,
        tables=Tables(weights.tables, context_tables.initial_counts(recipe.model.settings)),
        members=recipe.model.initial_state(recipe.es.population),
        memory=memory,
    )


def values(recipe: Recipe, step: int) -> dict[str, np.int32]:
    """What the schedules say of a step."""
    found = recipe.update.values(recipe.settings, step)
    return {name: np.int32(value) for name, value in found.items()}


# -- One step --------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PopulationResult:
    """What the whole population says.

    Attributes:
      scores_P: of all members, int32. fitness_I: of all pairs, int8.
      members: recurrent states after the segment. votes: on the network's tensors by path, int32.
      tables: context tables, moved.
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
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      place: the devices, whose number must divide that of the chunks; None for one.
    """
    result = divided(recipe, place)(
        population.all_chunks(recipe),
        state.weights,
        state.tables.counts,
        state.members,
        tokens_ST,
        clock,
    )
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
    """Perturb, objective, votes: what one device's members do, summed with those of the others.

    Args:
      chunks_C: numbers of this device's chunks; `members` and `tokens_ST` are theirs.
      counts: of the context tables.
      axis: name of the devices' axis, None if there is one device.
      split: how votes are left split among the devices, by path.
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
    """Context tables after a step, from the row errors of all devices."""
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
    """`population_result`, its chunks divided among the devices."""
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
        check_vma=False,  # what was gathered is the same everywhere, which it cannot see
    )


def moved(
    recipe: Recipe, state: State, result: PopulationResult, clock: Clock, values: Values
) -> tuple[Tree, dict[str, dict[str, Array]]]:
    """The network's weights after one update, and the update's memory."""
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
    """Moved weights on every device: each moves its part of them, and int8 is what is gathered."""
    specs = recipe.model.specs.network
    parts_of = params.map_leaves(lambda spec: place.of_votes(spec.full_shape), specs)
    parts = jax.lax.with_sharding_constraint(network, parts_of)
    # otherwise the compiler would rather gather the votes, which are four times as large
    parts = jax.lax.optimization_barrier(parts)
    return jax.lax.with_sharding_constraint(parts, place.everywhere)


# -- Compiled --------------------------------------------------------------------------------------

StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(recipe: Recipe, place: Placement | None = None) -> StepFunction:
    """`(state, tokens_ST, step) -> (state, metrics)`, compiled at its first call and only then.

    The step and what the schedules say enter as arguments, so that no step recompiles. Context
    tables are changed in place: the state that was passed in loses them.

    Args:
      place: the devices; states are then those of `placed`, and tokens are divided here.
    """
    jitted = jitted_step(recipe, place)

    def run(state: State, tokens_ST: np.ndarray, step: int) -> tuple[State, Metrics]:
        clock = Clock(np.uint32(recipe.settings.run.seed), np.uint32(step))  # type: ignore[arg-type]
        tokens = tokens_ST if place is None else placement.put(place.by_stream, tokens_ST)
        return jitted(*donated(state), tokens, clock, values(recipe, step))

    return run


def jitted_step(recipe: Recipe, place: Placement | None = None) -> Any:
    """`step` under `jax.jit`, as runs use it: its arguments are those of `donated` and, from
    tokens_ST on, those of `step`. The context tables are donated.
    """
    recipe = population.chunked(recipe, place.devices if place else 1)

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(tables: Tables, rest: State, tokens_ST: Array, clock: Clock, values: Values):
        state = dataclasses.replace(rest, tables=tables)
        return step(recipe, state, tokens_ST, clock, values, place)

    return jitted


def donated(state: State) -> tuple[Tables, State]:
    """The context tables, which a step changes in place, and the rest."""
    return state.tables, dataclasses.replace(state, tables=Tables())


def changes_in_place(state: State) -> bool:
    """Whether the next step changes what NumPy sees of a state: tables, which share their memory.

    Elsewhere than on CPUs NumPy has a copy.
    """
    return bool(state.tables.values) and jax.default_backend() == "cpu"


def placed(recipe: Recipe, state: State, place: Placement | None) -> State:
    """A whole state, of which every process has all, laid out over the devices; None for one."""
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
