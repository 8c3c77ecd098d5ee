"""One training step: forward pass, fitness, votes, update. A pure function of integers.

    (state, tokens_ST, step) -> (state, metrics)

Nothing in it has a floating dtype (a test walks its jaxpr), so a run's bits depend neither on the
machine nor on the order of any sum.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import direct, fitness, models, noise, params, population, tables, update, votes
from int_lm.config import Config, EsConfig
from int_lm.params import Tree


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
    return models.specs(config.model, vocab_size)


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
        members=models.initial_state(config.model, config.es.population),
        remainders={path: jnp.zeros(spec.full_shape, jnp.int16) for path, spec in carried.items()},
        counts=direct.initial_counts(config.model),
    )


def plain_votes(
    es: EsConfig, specs: Tree, fitness_I: Array, seed: Array, number: Array
) -> dict[str, Array]:
    """Votes by path of the tensors that the plain estimator votes on, over regenerated noise."""
    plain = {
        path for path, spec in params.flatten(specs) if votes.estimator(es, spec.role) == "eggroll"
    }

    def chunk_votes(chunk: Array, fitness_I: Array) -> tuple[None, dict[str, Array]]:
        noises = population.chunk_noise(es, specs, seed, number, chunk)
        return None, {
            path: votes.eggroll(es, noise, fitness_I)
            for path, noise in params.flatten(noises)
            if path in plain
        }

    if not plain:
        return {}
    fitnesses = fitness_I.reshape(population.chunks(es), -1)
    return population.over_chunks(chunk_votes, es, fitnesses)[1]


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
) -> tuple[State, Metrics]:
    """One step.

    Args:
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      seed, number: uint32 scalars, the run's seed and the step's number.
      pace: what the schedules say of this step.
    """
    specs = specs_of(config, vocab_size)
    scores_P, members, ballots, readings = population.scores(
        config, specs, state.weights, state.members, tokens_ST, seed, number
    )
    fitness_I = fitness.fitness(config.es, scores_P)
    ballots |= plain_votes(config.es, specs, fitness_I, seed, number)
    weights, remainders = learn(config.es, specs, state, ballots, fitness_I, seed, number, pace)
    changed = jax.tree.map(
        lambda new, old: jnp.sum(new != old, dtype=jnp.int32),
        weights,
        params.without_direct(state.weights),
    )
    metrics = Metrics(
        scores_P=scores_P,
        changed=jax.tree.reduce(jnp.add, changed),
        saturated=params.saturated(weights),
    )
    counts = {}
    if readings is not None:
        weights["direct"] = {}
        for name, table in state.weights["direct"].items():
            weights["direct"][name], counts[name] = direct.update(
                config.es,
                table,
                state.counts[name],
                readings.rows[f"direct/{name}"],
                readings.errors_JV,
                number,
            )
    return State(weights, members, remainders, counts), metrics


StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(config: Config, vocab_size: int) -> StepFunction:
    """`(state, tokens_ST, number) -> (state, metrics)`, compiled at its first call and only then.

    The step number and what the schedules say enter as arguments, so that no step recompiles. The
    tables of direct connections are changed in place: the state that was passed in loses them.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(
        tables: tuple[Tree, Tree],
        state: State,
        tokens_ST: Array,
        seed: Array,
        number: Array,
        pace: Pace,
    ):
        return step(config, vocab_size, _joined(tables, state), tokens_ST, seed, number, pace)

    def run(state: State, tokens_ST: np.ndarray, number: int) -> tuple[State, Metrics]:
        seed = np.uint32(config.run.seed)
        return jitted(*_split(state), tokens_ST, seed, np.uint32(number), pace(config, number))

    return run


def _split(state: State) -> tuple[tuple[Tree, Tree], State]:
    """The tables of direct connections with their counts, and the rest."""
    weights = params.without_direct(state.weights)
    rest = dataclasses.replace(state, weights=weights, counts={})
    return (state.weights.get("direct", {}), state.counts), rest


def _joined(tables: tuple[Tree, Tree], state: State) -> State:
    """The inverse of `_split`."""
    weights = state.weights | {"direct": tables[0]} if tables[0] else state.weights
    return dataclasses.replace(state, weights=weights, counts=tables[1])
