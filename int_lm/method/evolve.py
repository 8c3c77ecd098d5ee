"""One training step: forward pass, fitness, votes, update. A pure function of integers.

    (state, tokens_ST, step) -> (state, metrics)

Nothing in it has a floating dtype (a test walks its jaxpr), so a run's bits depend neither on the
machine nor on the order of any sum. Members read and vote where they lie (`placement`); weights
move on every device alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import noise, tables
from int_lm.config import Config, EsConfig
from int_lm.method import placement, population, update, voting
from int_lm.method.estimator import votes
from int_lm.method.placement import Placement
from int_lm.model import context_tables, language_model, params
from int_lm.model.params import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run carries from step to step, and all that a checkpoint must hold.

    Attributes:
      weights: int8 tree. members: recurrent state of every member, leaves [L, P, ...].
      remainders: of update `carry`, int16 by path of the weights; none for the other updates.
      counts: of direct connections, steps that have read each row, int32 by name of the table.
    """

    weights: Tree
    members: Tree
    remainders: dict[str, Array] = dataclasses.field(default_factory=dict)
    counts: dict[str, Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pace:
    """What the schedules say of one step: int32 scalars of `tables`.

    Attributes:
      z: threshold of the votes. rate: learning rate.
    """

    z: Array
    rate: Array


def pace(config: Config, number: int) -> Pace:
    """The schedules at step `number`."""
    return Pace(
        z=jnp.int32(tables.vote_threshold(config, number)),
        rate=jnp.int32(tables.learning_rate(config, number)),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step reports.

    Attributes:
      scores_P: int32, units of 2^-16 bit, summed over a segment.
      changed, saturated: int32 scalars, numbers of weights that moved, that stand at +-127; direct
        connections do not count.
    """

    scores_P: Array
    changed: Array
    saturated: Array


def specs_of(config: Config, vocab_size: int) -> Tree:
    """The parameter tree of a configuration."""
    return language_model.specs(config.model, vocab_size)


def initial(config: Config, vocab_size: int) -> State:
    """The state before the first step: a pure function of the configuration."""
    specs = specs_of(config, vocab_size)
    weights = params.initialise(specs, config.run.seed)
    return _beginning(config, specs, jax.tree.map(jnp.asarray, weights))


def abstract(config: Config, vocab_size: int) -> State:
    """Shapes and dtypes of `initial`, without its memory."""
    specs = specs_of(config, vocab_size)

    def state() -> State:
        zeros = params.map_leaves(lambda spec: jnp.zeros(spec.full_shape, jnp.int8), specs)
        return _beginning(config, specs, zeros)

    return jax.eval_shape(state)


def _beginning(config: Config, specs: Tree, weights: Tree) -> State:
    """A state with these weights and nothing read."""
    network = params.without_direct(specs)
    carried = dict(params.flatten(network)) if config.es.update == "carry" else {}
    return State(
        weights=weights,
        members=language_model.initial_state(config.model, config.es.population),
        remainders={path: jnp.zeros(spec.full_shape, jnp.int16) for path, spec in carried.items()},
        counts=context_tables.initial_counts(config.model),
    )


def learn(
    es: EsConfig,
    specs: Tree,
    state: State,
    ballots: dict[str, Array],
    fitness_I: Array,
    seed: Array,
    number: Array,
    pace: Pace,
) -> tuple[Tree, dict[str, Array]]:
    """The weights of the network and their remainders after one update.

    Args:
      ballots: votes of every tensor by path, int32.
      fitness_I: int8, what plain votes were made from.
      seed, number: uint32 scalars.
    """
    weights, remainders = {}, {}
    old, tensors = (
        dict(params.flatten(state.weights)),
        dict(params.flatten(params.tensor_ids(specs))),
    )
    for path, spec in params.flatten(params.without_direct(specs)):
        weight, ballot = old[path], ballots[path]
        if es.update == "threshold":
            if votes.estimator(es, spec.role) == "eggroll":
                moved = update.threshold(spec.role, es.rank, weight, ballot, fitness_I, pace.z)
            else:
                moved = update.threshold_by_magnitude(weight, ballot, pace.z)
        else:
            strengths = update.strength(ballot, es.vote_clip)
            if es.update == "carry":
                moved, remainders[path] = update.carry(
                    weight, state.remainders[path], strengths, pace.rate
                )
            else:
                key = noise.tensor_key(seed, number, jnp.uint32(tensors[path]))
                random = noise.rounding(key, weight.size, tables.LEARNING_RATE_BITS)
                moved = update.stochastic(
                    weight, strengths, pace.rate, random.reshape(weight.shape)
                )
        weights[path] = moved
    return params.unflatten(weights), remainders


def step(
    config: Config,
    vocab_size: int,
    state: State,
    tokens_ST: Array,
    seed: Array,
    number: Array,
    pace: Pace,
    place: Placement | None = None,
) -> tuple[State, Metrics]:
    """One step.

    Args:
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      seed, number: uint32 scalars, the run's seed and the step's number.
      pace: what the schedules say of this step.
      place: the devices, whose number must divide that of the chunks; None for one.
    """
    specs = specs_of(config, vocab_size)
    verdict = voting.vote(
        config, specs, state.weights, state.members, state.counts, tokens_ST, seed, number, place
    )
    weights, remainders = learn(
        config.es, specs, state, verdict.ballots, verdict.fitness_I, seed, number, pace
    )
    if place is not None:
        weights = _gathered(weights, specs, place)
    changed = jax.tree.map(
        lambda new, old: jnp.sum(new != old, dtype=jnp.int32),
        weights,
        params.without_direct(state.weights),
    )
    metrics = Metrics(
        scores_P=verdict.scores_P,
        changed=jax.tree.reduce(jnp.add, changed),
        saturated=params.saturated(weights),
    )
    if verdict.tables:
        weights["direct"] = verdict.tables
    return State(weights, verdict.members, remainders, verdict.counts), metrics


def _gathered(weights: Tree, specs: Tree, place: Placement) -> Tree:
    """Moved weights on every device: each moves its part of them, and int8 is what is gathered."""
    network = params.without_direct(specs)
    divided = params.map_leaves(lambda spec: place.of_votes(spec.full_shape), network)
    parts = jax.lax.with_sharding_constraint(weights, divided)
    # otherwise the compiler would rather gather the votes, which are four times as large
    parts = jax.lax.optimization_barrier(parts)
    return jax.lax.with_sharding_constraint(parts, place.everywhere)


StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(config: Config, vocab_size: int, place: Placement | None = None) -> StepFunction:
    """`(state, tokens_ST, number) -> (state, metrics)`, compiled at its first call and only then.

    The step number and what the schedules say enter as arguments, so that no step recompiles. The
    tables of direct connections are changed in place: the state that was passed in loses them.

    Args:
      place: the devices; states are then those of `placed`, and tokens are divided here.
    """
    jitted = jitted_step(config, vocab_size, place)

    def run(state: State, tokens_ST: np.ndarray, number: int) -> tuple[State, Metrics]:
        seed = np.uint32(config.run.seed)
        tokens = tokens_ST if place is None else placement.put(place.by_stream, tokens_ST)
        return jitted(*split(state), tokens, seed, np.uint32(number), pace(config, number))

    return run


def jitted_step(config: Config, vocab_size: int, place: Placement | None = None) -> Any:
    """`step` under `jax.jit`, as runs use it; arguments are those of `split` and, from tokens_ST
    on, those of `step`. The tables of direct connections are donated.
    """
    config = population.chunked(config, place.devices if place else 1)

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(
        tables: tuple[Tree, Tree],
        state: State,
        tokens_ST: Array,
        seed: Array,
        number: Array,
        pace: Pace,
    ):
        whole = _joined(tables, state)
        return step(config, vocab_size, whole, tokens_ST, seed, number, pace, place)

    return jitted


def changes_in_place(state: State) -> bool:
    """Whether the next step changes what NumPy sees of a state: tables, which share their memory.

    Elsewhere than on CPUs NumPy has a copy.
    """
    return bool(state.counts) and jax.default_backend() == "cpu"


def placed(state: State, specs: Tree, place: Placement | None) -> State:
    """A whole state, of which every process has all, laid out over the devices; None for one."""
    if place is None:
        return jax.tree.map(jnp.asarray, state)

    def everywhere(leaf: Array) -> Array:
        return placement.put(place.everywhere, leaf)

    network = dict(params.flatten(params.without_direct(specs)))
    return State(
        weights=jax.tree.map(everywhere, state.weights),
        members=jax.tree.map(lambda leaf: placement.put(place.by_member, leaf), state.members),
        remainders={
            path: placement.put(place.of_votes(network[path].full_shape), leaf)
            for path, leaf in state.remainders.items()
        },
        counts=jax.tree.map(everywhere, state.counts),
    )


def split(state: State) -> tuple[tuple[Tree, Tree], State]:
    """The tables of direct connections with their counts, and the rest."""
    weights = params.without_direct(state.weights)
    rest = dataclasses.replace(state, weights=weights, counts={})
    return (state.weights.get("direct", {}), state.counts), rest


def _joined(tables: tuple[Tree, Tree], state: State) -> State:
    """The inverse of `split`."""
    weights = state.weights | {"direct": tables[0]} if tables[0] else state.weights
    return dataclasses.replace(state, weights=weights, counts=tables[1])
