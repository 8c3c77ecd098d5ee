"""One training step, from tokens to weights: of any architecture, estimator and update."""

from typing import Any, NamedTuple

import numpy as np

from int_lm.config import Config, EsConfig
from oracle import contexts, deep, pool, population, update, votes
from oracle.arithmetic import Vector, numbers, spare_bits
from oracle.noise import rounding
from oracle.population import Reading
from oracle.update import entries, like


class State(NamedTuple):
    """What a run carries from step to step, as nested lists.

    Attributes:
      weights: by path. counts: of tables, by path.
      memory: what the update keeps, by name and path: "remainders", "means", "squares".
      members: of every member, leaves [L][D] by name, and "context" [K].
      trust: of a pool.
    """

    weights: dict[str, Any]
    memory: dict[str, dict[str, Any]]
    counts: dict[str, Vector]
    members: list[population.State]
    trust: Vector


class Result(NamedTuple):
    """Scores of all members and votes by path; there are none on tables."""

    scores: Vector
    votes: dict[str, Any]


def factors_of(voters: list[dict[str, Any]], listed: population.Tensors) -> votes.Factors:
    """(value, A, B) of every matrix by path, from those whose tokens vote."""
    found = {}
    for path, (kind, _, layers) in listed.items():
        if kind != "matrix":
            continue
        stacked = [[member[path]] if not layers else member[path] for member in voters]
        parts = []
        for part in range(3):
            if stacked[0][0][part] is None:
                parts.append(None)
                continue
            of_layers = np.array([[leaf[part] for leaf in member] for member in stacked])
            of_layers = of_layers[0] if part == 0 else np.moveaxis(of_layers, 0, 1)
            parts.append(of_layers if layers else of_layers[0])
        found[path] = tuple(parts)
    return found


def records_of(
    readings: list[list[Reading]], alone: bool, listed: population.Tensors, lowest: int
) -> votes.Records:
    """What the readings of all members, [P][T], leave for the votes: of pairs, or of members that
    read alone, between which nothing is compared."""
    pluses, minuses = (readings, readings) if alone else (readings[0::2], readings[1::2])

    def gathered(rows: list[list[Reading]], what: Any) -> np.ndarray:
        """[T, I, ...]."""
        return np.array([[what(member[t]) for member in rows] for t in range(len(rows[0]))])

    def used(rows: list[list[Reading]], path: str, part: int) -> np.ndarray:
        """Inputs, effects or answers of a tensor: [T, I, ...], in layers [T, L, I, ...]."""
        if not listed[path][2]:
            return gathered(rows, lambda reading: reading.uses[path][part])
        of_layers = gathered(rows, lambda reading: [use[part] for use in reading.uses[path]])
        return np.moveaxis(of_layers, 2, 1)

    inputs, effects, answers, streams, of_state, outputs = {}, {}, {}, {}, {}, {}
    for path, (kind, _, layers) in listed.items():
        if kind != "matrix":
            continue
        inputs[path] = used(pluses, path, 0)
        parts = len(pluses[0][0].uses[path][0]) if layers else 0
        if parts >= 3:
            both = used(pluses, path, 1) - used(minuses, path, 1)
            effects[path] = np.clip(both, -127, 127)
            answers[path] = used(pluses, path, 2)
        if parts >= 4:
            streams[path] = used(pluses, path, 3)
        if parts >= 5:
            of_state[path] = used(pluses, path, 4)
            outputs[path] = used(pluses, path, 5)
    return votes.Records(
        inputs,
        effects,
        answers,
        difference=gathered(pluses, lambda reading: reading.log_likelihood)
        - gathered(minuses, lambda reading: reading.log_likelihood),
        logits=gathered(pluses, lambda reading: reading.logits),
        targets=gathered(pluses, lambda reading: reading.target),
        residual=gathered(pluses, lambda reading: reading.residual),
        gain=gathered(pluses, lambda reading: reading.gain),
        lowest=lowest,
        streams=streams,
        of_state=of_state,
        outputs=outputs,
    )


def updated(
    config: Config,
    vocab_size: int,
    state: State,
    sums: dict[str, Any],
    fitnesses: Vector,
    step: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of the network and the update's memory after votes of these sums."""
    es, seed = config.es, config.run.seed
    z, rate = update.vote_threshold(config, step), update.learning_rate(config, step)
    weights: dict[str, Any] = {}
    kept: dict[str, dict[str, Any]] = {name: {} for name in state.memory}
    first: dict[str, int] = {}
    for path, _, tensor, kind, _ in population.numbered(config.model, vocab_size):
        if kind == "table" or path in first:
            continue
        first[path] = tensor
        vote, old = sums[path], entries(state.weights[path])
        if es.update == "threshold":
            if population.estimator(es, path, kind) == "plain":
                rough, limit = vote, update.vote_limit(kind, es, fitnesses, z)
            else:
                rough, limit = update.magnitude_limit(vote, z)
            pairs = zip(old, entries(rough), strict=True)
            new = [update.moved(w, v, limit) for w, v in pairs]
        elif es.update == "carry":
            rest = entries(state.memory["remainders"][path]), entries(vote)
            both = [update.carried(*three, rate) for three in zip(old, *rest, strict=True)]
            new = [weight for weight, _ in both]
            kept["remainders"][path] = like(vote, iter([remainder for _, remainder in both]))
        elif es.update == "adaptive":
            rate = update.adaptive_rate(config, step)
            remainders, means, squares = (
                entries(state.memory[name][path]) for name in ("remainders", "means", "squares")
            )
            units, words = update.normalised(vote), update.dither_words(np.shape(vote), step)
            rows = zip(old, remainders, zip(means, squares, strict=True), units, words, strict=True)
            after = [update.adapted(*row, rate, update.betas(config)) for row in rows]
            new = [weight for weight, _, _ in after]
            kept["remainders"][path] = like(vote, iter([remainder for _, remainder, _ in after]))
            kept["means"][path] = like(vote, iter([moments[0] for _, _, moments in after]))
            kept["squares"][path] = like(vote, iter([moments[1] for _, _, moments in after]))
        else:
            assert es.update.endswith("STOCHASTIC")
            rest = entries(vote), rounding(seed, step, tensor, len(old), 12)
            new = [update.randomly_moved(w, v, rate, r) for w, v, r in zip(old, *rest, strict=True)]
        if es.decay and kind != "vector":
            assert es.schedule == "constant"
            new = update.pulled(es.decay, seed ^ 0x5A5A5A5A, new, [0] * len(new), tensor, step)
        weights[path] = like(vote, iter(new))
    return weights, kept


def without_held(reading: Reading) -> Reading:
    """A reading whose target teaches nothing if it is held back."""
    held = reading.uses.get("held", False)
    return reading._replace(target=population.NO_TARGET) if held else reading


def rows_read(reading: Reading) -> dict[str, int]:
    """The row of every table that a token read, by path, in the order of the configuration."""
    return {path: row for path, row in reading.uses.items() if path.startswith("direct/")}


def held_of(
    state: State, es: EsConfig, readings: list[list[Reading]], step: int
) -> list[tuple[int, int, list[tuple[int, Vector]]]]:
    """What `pool.learnt` needs of the voters' tokens that are held back."""
    found = []
    for number, read in zip(numbers(es), readings, strict=True):
        for pick, place in enumerate(pool.places(es.segment_length, step)):
            reading = read[place]
            if reading.uses["held"] and reading.target != population.NO_TARGET:
                experts = [(0, reading.logits)] + [
                    (pool.of_table(n, state.counts[path][row]), state.weights[path][row])
                    for n, (path, row) in enumerate(rows_read(reading).items())
                ]
                found.append((number * pool.PICKS + pick, reading.target, experts))
    return found


def step(
    config: Config, vocab_size: int, state: State, tokens: list[Vector], step: int
) -> tuple[State, Result]:
    """One training step on tokens [S][T+1]: the next state, scores and votes."""
    es, model = config.es, config.model
    listed = population.tensors(model, vocab_size)
    members, following, readings = [], [], []
    for p in range(es.population):
        member = population.member_weights(
            config, vocab_size, state.weights, config.run.seed, step, p
        )
        stream = tokens[p // es.members_per_stream]
        after, read = population.read(
            model, member, state.members[p], stream, padded=True, apart=es.pooled
        )
        members.append(member)
        following.append(after)
        readings.append(read)
    scores = [sum(reading.log_likelihood for reading in read) for read in readings]
    fitnesses = update.fitness(es, scores)
    sums = votes.plain_votes(config, vocab_size, fitnesses, step)
    errors, apart = None, es.population // len(numbers(es))  # from one voter to the next
    if es.votes != "eggroll" or es.readout == "exact":
        own = population.architecture(model).LOWEST
        lowest = -32767 if model.direct and not es.pooled else own
        place = votes.Place(numbers(es), step, spare_bits(es))
        factors = factors_of(members[::apart], listed)
        learning = [[without_held(reading) for reading in read] for read in readings]
        records = records_of(learning, apart == 1, listed, lowest)
        found, errors = votes.token_votes(config, vocab_size, factors, records, place)
        sums |= found
        if es.votes == "deep":
            assert errors is not None
            sums |= deep.token_votes(place, records, factors, errors)
    plain = {path: vote.tolist() for path, vote in sums.items()}
    weights, kept = updated(config, vocab_size, state, plain, fitnesses, step)
    counts, trust = {}, state.trust
    if es.pooled:
        trust = pool.learnt(trust, held_of(state, es, readings[::apart], step), step)
        none = [0] * vocab_size
        alone = [
            [r._replace(logits=contexts.added(state.weights, rows_read(r), none)) for r in read]
            for read in learning
        ]
        errors = votes.readout_errors(place, records_of(alone, apart == 1, listed, -32767))
        readings = learning
    for path, (kind, shape, _) in listed.items():
        if kind == "table":
            assert errors is not None
            rows = [
                shape[0] if read[t].target == population.NO_TARGET else read[t].uses[path]
                for t in range(es.segment_length)
                for read in readings[::apart]
            ]
            flat = errors.reshape(-1, vocab_size).tolist()
            table = state.weights[path], state.counts[path]
            weights[path], counts[path] = contexts.updated(es, *table, rows, flat, step)
    return State(weights, kept, counts, following, trust), Result(scores, plain)
