"""One step of training: perturb, objective, votes, update. A pure function of integers.

    (recipe, state, tokens_ST, clock, values of the schedules) -> (state, metrics)

No array in it has a floating dtype (a test checks the jaxpr), so the result depends neither on the
machine nor on the order of any sum. `population` perturbs the members, runs the objective and sums
the votes over all devices; then each tensor's update moves its weights.

Axes: P members, S streams, T segment length, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.errors import require
from int_lm.method import placement, pool, population
from int_lm.method.clock import Clock
from int_lm.method.placement import Placement
from int_lm.method.population import PopulationResult
from int_lm.method.pull import ANCHOR
from int_lm.method.recipe import Recipe
from int_lm.method.state import STORED, Metrics, State, Tables
from int_lm.method.update import Scalars, Tensor, Votes
from int_lm.model import compiling, context_tables, document_cache, params
from int_lm.model.params import Parameters, Tree


def step(
    recipe: Recipe,
    state: State,
    tokens_ST: Array,
    clock: Clock,
    values: Scalars,
    place: Placement | None = None,
) -> tuple[State, Metrics]:
    """One step.

    Args:
      state: the state before the step.
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      clock: seed and step.
      values: schedule values of this step (`values`).
      place: the devices; None for a single one.

    Returns:
      The state after the step, and its metrics.
    """
    result = population.result(
        recipe, state.network, state.tables, state.members, tokens_ST, clock, place
    )
    return updated(recipe, state, result, clock, values, place)


def updated(
    recipe: Recipe,
    state: State,
    result: PopulationResult,
    clock: Clock,
    values: Scalars,
    place: Placement | None,
) -> tuple[State, Metrics]:
    """The state after the update that follows from a population's result, and the metrics."""
    network, memory = moved(recipe, state, result, clock, values)
    if place is not None:
        network = _gathered(recipe, network, place)
    counts = jax.tree.reduce(jnp.add, jax.tree.map(params.counts, network, state.network))
    metrics = Metrics(scores_P=result.scores_P, changed=counts[0], saturated=counts[1])
    return State(network, result.tables, result.members, memory), metrics


def moved(
    recipe: Recipe, state: State, result: PopulationResult, clock: Clock, values: Scalars
) -> tuple[Tree, dict[str, dict[str, Array]]]:
    """The network's int8 weights after the update, and the update's memory, by name and path."""
    weights, memory = dict(params.flatten(state.network)), {name: {} for name in state.memory}
    numbers = params.tensor_ids(recipe.model.specs)
    for path, spec in params.flatten(recipe.model.specs.network):
        votes = Votes(
            result.votes[path], result.fitness_I if recipe.estimator_of(spec).plain else None
        )
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

Held = tuple[Tables, Tree]  # the context tables, and the rows of the document cache
StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(recipe: Recipe, place: Placement | None = None) -> StepFunction:
    """`(state, tokens_ST, step) -> (state, metrics)`, compiled once, at its first call.

    The step and the schedule values are arguments of the compiled program, so no later step
    recompiles. What `donated` returns first is changed in place: do not use that part of the state
    that was passed in any more.

    Args:
      place: the devices; None for a single one. With several devices pass states of `placed`; the
        tokens of all streams are passed, and divided among the devices here.
    """
    make = functools.partial(jitted_step, recipe, place)
    program = compiling.Program(make) if place is None else make()

    def run(state: State, tokens_ST: np.ndarray, step: int) -> tuple[State, Metrics]:
        clock = Clock.at(recipe.settings.run.seed, step)
        tokens = tokens_ST if place is None else placement.put(place.by_stream, tokens_ST)
        return program(*donated(state), tokens, clock, values(recipe, step))

    return run


def jitted_step(recipe: Recipe, place: Placement | None = None) -> Any:
    """`step` under `jax.jit`: (tables, rest, tokens_ST, clock, values) -> (state, metrics).

    The first two arguments are those that `donated` returns, the others those of `step`. The memory
    of the context tables and of the document cache is donated to the result.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(held: Held, rest: State, tokens_ST: Array, clock: Clock, values: Scalars):
        tables, cache = held
        state = dataclasses.replace(rest, tables=tables, members=rest.members | cache)
        return step(recipe, state, tokens_ST, clock, values, place)

    return jitted


def donated(state: State) -> tuple[Held, State]:
    """What a step changes in place, and the state without it: tables and the document cache."""
    members = dict(state.members)
    cache = {name: members.pop(name) for name in (document_cache.NAME,) if name in members}
    return (state.tables, cache), dataclasses.replace(state, tables=Tables(), members=members)


def lends_memory(state: State) -> bool:
    """Whether NumPy arrays that were made from this state hold memory that the next step asks for.

    On CPUs such an array shares its memory with JAX's. While it exists, a step cannot change the
    context tables in place: JAX leaves them as they are and takes new memory for the result, so
    that the tables are held twice. On other platforms NumPy holds a copy.
    """
    return bool(state.tables.values) and jax.default_backend() == "cpu"


@functools.cache
def _compiled_settled(recipe: Recipe) -> Callable[[Tree, Tables], Parameters]:
    def settled(network: Tree, tables: Tables) -> Parameters:
        return pool.settled(recipe.model, Parameters(network, tables.values), tables)

    return compiling.quick_jit(settled)


def weights(recipe: Recipe, state: State) -> Parameters:
    """The weights of the model that has been learnt: the state's, of a pool times its trust."""
    if not recipe.es.pooled:
        return state.weights
    return _compiled_settled(recipe)(state.network, state.tables)


def without_memory(recipe: Recipe, state: State) -> State:
    """What `weights` needs of a state, and nothing that only steps do."""
    tables = state.tables if recipe.es.pooled else Tables(state.tables.values)
    return State(state.network, tables, members={}, memory={})


# -- The state -------------------------------------------------------------------------------------


def initial(recipe: Recipe, weights: Parameters | None = None) -> State:
    """The state before the first step, with these int8 weights, or random ones of the seed.

    Of a pool, given weights are trusted in full: they are those of a model whose parts fit each
    other, or have had a trust multiplied in.
    """
    begun = weights or params.initialise(recipe.model.specs, recipe.settings.run.seed)
    # NumPy's arrays are copied once, and the copies become the state's
    state = _compiled_beginning(recipe)(jax.tree.map(np.asarray, begun))
    if weights is None or not recipe.es.pooled:
        return state
    trust = pool.initial(recipe.model.settings, pool.WHOLE)
    return dataclasses.replace(state, tables=dataclasses.replace(state.tables, trust=trust))


@functools.cache
def _compiled_beginning(recipe: Recipe) -> Callable[[Parameters], State]:
    return compiling.quick_jit(functools.partial(_beginning, recipe), donate_argnums=0)


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
    if recipe.es.anchor:
        memory[ANCHOR] = dict(params.flatten(weights.network))
    trust = pool.initial(recipe.model.settings) if recipe.es.pooled else None
    return State(
        network=weights.network,
        tables=Tables(weights.tables, _initial_counts(recipe), trust),
        members=recipe.learner.initial_state(recipe.es.population, recipe.es.members_per_stream),
        memory=memory,
    )


def _initial_counts(recipe: Recipe) -> dict[str, Array]:
    """The counts of all context tables before the first step, by name."""
    settings = recipe.model.settings
    return context_tables.initial_counts(settings) | document_cache.initial_counts(settings)


def values(recipe: Recipe, step: int) -> dict[str, np.int32]:
    """The schedule values of a step, by name."""
    found = recipe.update.values(recipe.settings, step)
    return {name: np.int32(value) for name, value in found.items()}


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
