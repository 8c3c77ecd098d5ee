"""One training step: forward pass, fitness, votes, update. A pure function of integers.

    (state, tokens_ST, step) -> (state, metrics)

Nothing in it has a floating dtype (a test walks its jaxpr), so a run's bits depend neither on the
machine nor on the order of any sum.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import fitness, models, params, population, tables, update, votes
from int_lm.config import Config, EsConfig
from int_lm.params import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run carries from step to step, and all that a checkpoint must hold.

    Attributes:
      weights: int8 tree. members: recurrent state of every member, leaves [L, P, ...].
    """

    weights: Tree
    members: Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step reports.

    Attributes:
      scores_P: int32, units of 2^-16 bit, summed over a segment.
      changed, saturated: int32 scalars, numbers of weights that moved, that stand at +-127.
    """

    scores_P: Array
    changed: Array
    saturated: Array


def specs_of(config: Config, vocab_size: int) -> Tree:
    """The parameter tree of a configuration."""
    return models.get(config.model.architecture).specs(config.model, vocab_size)


def initial(config: Config, vocab_size: int) -> State:
    """The state before the first step: a pure function of the configuration."""
    architecture = models.get(config.model.architecture)
    weights = params.initialise(specs_of(config, vocab_size), config.run.seed)
    return State(
        weights=jax.tree.map(jnp.asarray, weights),
        members=architecture.initial_state(config.model, config.es.population),
    )


def learn(
    es: EsConfig, specs: Tree, weights: Tree, scores_P: Array, seed: Array, number: Array, z: Array
) -> Tree:
    """The weights after one update: fitness, votes over regenerated noise, threshold.

    Args:
      weights: int8 tree.
      scores_P: int32, every member's score under the perturbations of step `number`.
      seed, number: uint32 scalars. z: int32 scalar, the vote threshold (`tables`).
    """
    fitness_I = fitness.fitness(es, scores_P)

    def chunk_votes(chunk: Array, fitness_I: Array) -> Tree:
        noises = population.chunk_noise(es, specs, seed, number, chunk)
        return params.map_leaves(
            lambda _, noise: votes.eggroll(es, noise, fitness_I), specs, noises
        )

    ballots = population.sum_over_chunks(
        chunk_votes, es, fitness_I.reshape(population.chunks(es), -1)
    )
    return params.map_leaves(
        lambda spec, weight, ballot: update.threshold(
            spec.role, es.rank, weight, ballot, fitness_I, z
        ),
        specs,
        weights,
        ballots,
    )


def step(
    config: Config,
    vocab_size: int,
    state: State,
    tokens_ST: Array,
    seed: Array,
    number: Array,
    z: Array,
) -> tuple[State, Metrics]:
    """One step.

    Args:
      tokens_ST: [S, T+1], any integer dtype; column t+1 holds the targets of column t.
      seed, number: uint32 scalars, the run's seed and the step's number.
      z: int32 scalar, the vote threshold of this step (`tables.vote_threshold`).
    """
    specs = specs_of(config, vocab_size)
    scores_P, members = population.scores(
        config.model, config.es, specs, state.weights, state.members, tokens_ST, seed, number
    )
    weights = learn(config.es, specs, state.weights, scores_P, seed, number, z)
    changed = jax.tree.map(
        lambda new, old: jnp.sum(new != old, dtype=jnp.int32), weights, state.weights
    )
    metrics = Metrics(
        scores_P=scores_P,
        changed=jax.tree.reduce(jnp.add, changed),
        saturated=params.saturated(weights),
    )
    return State(weights=weights, members=members), metrics


StepFunction = Callable[[State, np.ndarray, int], tuple[State, Metrics]]


def compiled_step(config: Config, vocab_size: int) -> StepFunction:
    """`(state, tokens_ST, number) -> (state, metrics)`, compiled at its first call and only then.

    The step number and the schedule's threshold enter as arguments, so that no step recompiles.
    """

    @jax.jit
    def jitted(state: State, tokens_ST: Array, seed: Array, number: Array, z: Array):
        return step(config, vocab_size, state, tokens_ST, seed, number, z)

    def run(state: State, tokens_ST: np.ndarray, number: int) -> tuple[State, Metrics]:
        z = tables.vote_threshold(config.es, number)
        return jitted(state, tokens_ST, np.uint32(config.run.seed), np.uint32(number), np.int32(z))

    return run
