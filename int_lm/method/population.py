"""The population of a step: perturb the members, run the objective, sum their votes.

From the whole to its parts: `result` of all devices, `of_device`, the `outcome` of some chunks, one
chunk, the noise of its pairs. Member p reads stream p // members_per_stream. Its recurrent state
carries over from segment to segment.

Axes: P members, I pairs of a chunk, or all P/2 of them, S streams, T segment length, L layers, C
chunks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from int_lm.method import chunks, fitness, placement, pool, token_votes
from int_lm.method.clock import Clock
from int_lm.method.placement import AXIS, InOrder, Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import Tables
from int_lm.method.token_votes import RowErrors, VotesByPath
from int_lm.model import context_tables, document_cache, params, perturb
from int_lm.model.params import Parameters, Tree
from int_lm.model.perturb import Noise


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


def result(
    recipe: Recipe,
    network: Tree,
    tables: Tables,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    place: Placement | None = None,
) -> PopulationResult:
    """Perturb, run the objective, sum the votes, of all members on all devices.

    Args:
      network: int8 weights.
      tables: context tables.
      members: recurrent states, leaves [L, P, ...].
      tokens_ST: [S, T+1], any integer dtype.
      clock: seed and step.
      place: the devices, among which chunks, members and streams are divided; None for one.
    """
    pairs_CI = chunks.pairs(recipe.es, place.devices if place else 1, recipe.model.settings)
    operands = pairs_CI, network, tables, members, tokens_ST, clock
    if place is None:
        return of_device(recipe, *operands)
    everywhere, by_member, first = PartitionSpec(), PartitionSpec(None, AXIS), PartitionSpec(AXIS)
    split = splits(recipe, place)
    divided = jax.shard_map(
        functools.partial(of_device, recipe, axis=AXIS, split=split),
        mesh=place.mesh,
        in_specs=(first, everywhere, everywhere, by_member, first, everywhere),
        out_specs=PopulationResult(everywhere, everywhere, by_member, split, everywhere),  # type: ignore[arg-type]
        check_vma=False,  # gathered arrays are equal on all devices; JAX's check cannot infer that
    )
    return divided(*operands)


def of_device(
    recipe: Recipe,
    pairs_CI: Array,
    network: Tree,
    tables: Tables,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    *,
    axis: str | None = None,
    split: dict[str, PartitionSpec] | None = None,
) -> PopulationResult:
    """`result`, as one device computes it: its own members first, then all devices together.

    The other arguments are those of `result`.

    Args:
      pairs_CI: indices of the pairs of this device's chunks, int32.
      members: recurrent states of this device's members, leaves [L, P, ...].
      tokens_ST: tokens of this device's streams.
      axis: name of the mesh axis of the devices; None for a single device.
      split: by path, how the summed votes are divided among the devices; None for a single device.
    """
    weights = Parameters(network, tables.values)
    own = outcome(recipe, weights, members, tokens_ST, clock, pairs_CI)
    order = placement.InOrder(axis)
    scores_P = order.gathered(own.scores_P)
    fitness_I = fitness.fitness(recipe.es, scores_P, recipe.objective.score_max(recipe.es))
    votes = own.votes | votes_of_fitness(recipe, fitness_I[pairs_CI], clock, pairs_CI)
    return PopulationResult(
        scores_P=scores_P,
        fitness_I=fitness_I,
        members=own.members,
        votes=summed(votes, order, split),
        tables=_learnt(recipe, tables, own.row_errors, clock, order),
    )


def splits(recipe: Recipe, place: Placement) -> dict[str, PartitionSpec]:
    """By path, how the summed votes on the network's tensors are divided among the devices."""
    network = params.flatten(recipe.model.specs.network)
    return {path: place.split(spec.full_shape) for path, spec in network}


def summed(
    votes: dict[str, Array], order: InOrder, split: dict[str, PartitionSpec] | None
) -> dict[str, Array]:
    """Votes by path, summed over all devices; `split` is that of `of_device`."""
    return {
        path: order.summed(sums, split[path] if split else None) for path, sums in votes.items()
    }


def _learnt(
    recipe: Recipe,
    tables: Tables,
    row_errors: RowErrors | None,
    clock: Clock,
    order: InOrder,
) -> Tables:
    """The context tables after a step, from the row errors of all devices."""
    if row_errors is None:
        return tables
    errors_JV, step = order.gathered(row_errors.errors_JV), clock.step
    learnt = Tables()
    if row_errors.held:
        held = jax.tree.map(order.gathered, row_errors.held)
        learnt = Tables(trust=pool.learnt(recipe.model.settings, tables, held, step))
        # Tables are changed in place. XLA copies them first if it might read them afterwards, so
        # the change waits for what reads them here: no trust is -1, but XLA cannot know.
        step = step + jnp.any(learnt.trust == -1).astype(step.dtype)
    for name, table in tables.values.items():
        if name == document_cache.NAME:
            continue
        rows_J = order.gathered(row_errors.rows[name])
        learnt.values[name], learnt.counts[name] = context_tables.update(
            recipe.es, table, tables.counts[name], rows_J, errors_JV, step
        )
    if row_errors.cache:
        name, of_weights = document_cache.NAME, row_errors.cache
        table = tables.values[name]
        weights, counts = context_tables.update(
            recipe.es,
            table.reshape(-1, 1),
            tables.counts[name],
            order.gathered(of_weights.weights),
            order.gathered(of_weights.errors),
            step,
        )
        learnt.values[name], learnt.counts[name] = weights.reshape(table.shape), counts
    return learnt


# -- Some chunks -----------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of some members in one step, before their fitness is known.

    Attributes:
      scores_P: scores of the members, int32, in the units of the objective.
      members: recurrent states of the members after the segment, leaves [L, P, ...].
      votes: int32 sums by path, for the tensors whose votes are made token by token.
      row_errors: row errors, from which the context tables learn; None for a model without them.
    """

    scores_P: Array
    members: Tree
    votes: VotesByPath
    row_errors: RowErrors | None


def outcome(
    recipe: Recipe,
    weights: Parameters,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    pairs_CI: Array,
) -> Outcome:
    """Evaluate some chunks of the population, one after another.

    Args:
      weights: int8.
      members: recurrent states of the members of these chunks, leaves [L, P, ...].
      tokens_ST: tokens [S, T+1] of the streams that these members read.
      pairs_CI: indices of the pairs of these chunks, int32.
    """

    def one_chunk(pairs_I: Array, arguments: tuple[Tree, Array]):
        of_chunk = _of_chunk(recipe, weights, *arguments, clock, pairs_I)
        return dataclasses.replace(of_chunk, votes={}), of_chunk.votes

    count = len(pairs_CI)
    tokens_CST = tokens_ST.reshape(count, -1, tokens_ST.shape[1])
    arguments = chunks.split_members(count, members), tokens_CST
    stacked, votes = chunks.over(one_chunk, pairs_CI, arguments)
    flat = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (stacked.scores_P, stacked.row_errors)
    )
    return Outcome(flat[0], chunks.join_members(stacked.members), votes, flat[1])


def _of_chunk(
    recipe: Recipe,
    weights: Parameters,
    members: Tree,
    tokens_ST: Array,
    clock: Clock,
    pairs_I: Array,
) -> Outcome:
    """One chunk: perturb, run the objective, sum the votes that are made token by token."""
    seen = perturbed(recipe, weights, noise_of(recipe, clock, pairs_I))
    tokens_PT = jnp.repeat(tokens_ST, recipe.es.members_per_stream, axis=0)
    limits = context_tables.limits(recipe.es, pairs_I) if context_tables.CONTEXT in members else {}
    members, scores_P, records = recipe.objective.run(
        recipe.learner, seen, members | limits, tokens_PT, token_votes.keep(recipe)
    )
    members = {name: leaf for name, leaf in members.items() if name not in limits}
    votes, row_errors = {}, None
    if records is not None:
        votes, row_errors = token_votes.votes(recipe, seen, records, pairs_I, clock)
    return Outcome(scores_P, members, votes, row_errors)


def noise_of(recipe: Recipe, clock: Clock, pairs_I: Array) -> dict[str, Noise]:
    """The noise of some pairs, by path, for every tensor that members perturb."""
    specs = recipe.model.specs
    numbers = params.tensor_ids(specs)
    return {
        path: perturb.tensor_noise(recipe.es, spec, numbers[path], clock.seed, clock.step, pairs_I)
        for path, spec in params.flatten(specs.network)
        if recipe.perturbs(spec)
    }


def perturbed(recipe: Recipe, weights: Parameters, noises: dict[str, Noise]) -> Parameters:
    """The parameters with the perturbations `noises`: a `perturb.Weight` for every tensor.

    Args:
      weights: int8.
      noises: of `noise_of`, for the pairs of one chunk.
    """
    network = {
        path: perturb.perturbed(recipe.es, value, noises.get(path))
        for path, value in params.flatten(weights.network)
    }
    return Parameters(params.unflatten(network), weights.tables)


def votes_of_fitness(
    recipe: Recipe, fitness_CI: Array, clock: Clock, pairs_CI: Array
) -> VotesByPath:
    """Votes by path, int32, on the tensors whose estimator uses the fitness of a pair.

    The noise is drawn again; drawing the same noise twice costs less than storing it.

    Args:
      fitness_CI: fitness of these pairs, int8.
      pairs_CI: indices of the pairs that vote, by chunk, int32.
    """
    voting = {
        path: estimator.of_fitness
        for estimator, specs in recipe.voting.items()
        if estimator.of_fitness
        for path in specs
    }

    def chunk_votes(pairs_I: Array, fitness_I: Array) -> tuple[None, VotesByPath]:
        noises = noise_of(recipe, clock, pairs_I)
        return None, {
            path: of_fitness(recipe.es, noises[path], fitness_I)
            for path, of_fitness in voting.items()
        }

    if not voting:
        return {}
    return chunks.over(chunk_votes, pairs_CI, fitness_CI)[1]
