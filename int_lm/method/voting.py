"""Voting: members read, are scored and vote, each device its own; what comes of it is whole.

Axes: P members, I = P/2 pairs, S streams, C chunks, T segment length.
"""

import dataclasses

import jax
from jax import Array
from jax.sharding import PartitionSpec

from int_lm.config import Config, EsConfig
from int_lm.method import fitness, placement, population
from int_lm.method.estimator import votes
from int_lm.method.placement import AXIS, Placement
from int_lm.model import context_tables, params
from int_lm.model.params import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a population's reading comes to.

    Attributes:
      scores_P: of all members, int32. fitness_I: of all pairs, int8.
      members: states after the segment. ballots: votes of the network's tensors by path, int32.
      tables, counts: of direct connections, moved; empty where there are none.
    """

    scores_P: Array
    fitness_I: Array
    members: Tree
    ballots: dict[str, Array]
    tables: dict[str, Array]
    counts: dict[str, Array]


def vote(
    config: Config,
    specs: Tree,
    weights: Tree,
    members: Tree,
    counts: dict[str, Array],
    tokens_ST: Array,
    seed: Array,
    number: Array,
    place: Placement | None = None,
) -> Verdict:
    """The verdict of the whole population.

    Args:
      weights: int8 tree. members: their states, leaves [L, P, ...]. counts: of direct connections.
      tokens_ST: [S, T+1].
      seed, number: uint32 scalars, the run's seed and the step's number.
      place: the devices, whose number must divide that of the chunks; None for one.
    """
    chunks_C = population.all_chunks(config.es)
    arguments = chunks_C, weights, members, counts, tokens_ST, seed, number
    if place is None:
        return _own(config, specs, *arguments)
    everywhere, by_member, first = PartitionSpec(), PartitionSpec(None, AXIS), PartitionSpec(AXIS)
    network = params.flatten(params.without_direct(specs))
    split = {path: place.split(spec.full_shape) for path, spec in network}
    divided = jax.shard_map(
        lambda *arguments: _own(config, specs, *arguments, axis=AXIS, split=split),
        mesh=place.mesh,
        in_specs=(first, everywhere, by_member, everywhere, first, everywhere, everywhere),
        out_specs=Verdict(everywhere, everywhere, by_member, split, everywhere, everywhere),  # type: ignore[arg-type]
        check_vma=False,  # what was gathered is the same everywhere, which it cannot see
    )
    return divided(*arguments)


def _own(
    config: Config,
    specs: Tree,
    chunks_C: Array,
    weights: Tree,
    members: Tree,
    counts: dict[str, Array],
    tokens_ST: Array,
    seed: Array,
    number: Array,
    *,
    axis: str | None = None,
    split: dict[str, PartitionSpec] | None = None,
) -> Verdict:
    """What the members of some chunks come to, and, with those of the other devices, all of them.

    Args:
      chunks_C: numbers of the chunks; `members` and `tokens_ST` are theirs.
      axis: of the devices that have the others, None if these are all.
      split: how votes are left split among the devices, by path.
    """
    es = config.es
    own_P, members, ballots, readings = population.scores(
        config, specs, weights, members, tokens_ST, seed, number, chunks_C
    )
    scores_P = placement.gathered(own_P, axis)
    fitness_I = fitness.fitness(es, scores_P)
    own_I = fitness_I.reshape(population.chunks(es), -1)[chunks_C]
    ballots |= plain_votes(es, specs, own_I, seed, number, chunks_C)
    ballots = {
        path: placement.summed(ballot, axis, split[path] if split else None)
        for path, ballot in ballots.items()
    }
    moved, moved_counts = {}, {}
    if readings is not None:
        errors_JV = placement.gathered(readings.errors_JV, axis)
        for name, table in weights["direct"].items():
            rows_J = placement.gathered(readings.rows[f"direct/{name}"], axis)
            moved[name], moved_counts[name] = context_tables.update(
                es, table, counts[name], rows_J, errors_JV, number
            )
    return Verdict(scores_P, fitness_I, members, ballots, moved, moved_counts)


def plain_votes(
    es: EsConfig, specs: Tree, fitness_I: Array, seed: Array, number: Array, chunks_C: Array
) -> dict[str, Array]:
    """Votes by path of the tensors that the plain estimator votes on, over regenerated noise.

    Args:
      fitness_I: of the pairs of these chunks, int8, of any shape.
      chunks_C: numbers of the chunks whose members vote, int32.
    """
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
    fitness_CI = fitness_I.reshape(len(chunks_C), -1)
    return population.over_chunks(chunk_votes, chunks_C, fitness_CI)[1]
