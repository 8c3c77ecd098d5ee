"""Votes: plain ones pair by pair, the others in NumPy's int64 over tokens and voters.

Axes: T tokens of a segment, I voters, M outputs, N inputs, R rank, V vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np

from int_lm.config import Config
from oracle import population
from oracle.arithmetic import (
    Matrix,
    Vector,
    dither,
    norm_credit,
    rounded_log2_root as root_bits,
)
from oracle.likelihood import errors as row_errors
from oracle.noise import matrix_noise, vector_noise

# -- Plain -----------------------------------------------------------------------------------------


def matrix_votes(noises: list[tuple[Matrix, Matrix]], fitnesses: Vector) -> Matrix:
    """sum_i f_i A_i B_i^T, one outer product after another."""
    outputs, inputs = len(noises[0][0]), len(noises[0][1])
    votes = [[0] * inputs for _ in range(outputs)]
    for (left, right), f in zip(noises, fitnesses, strict=True):
        for r in range(len(left[0])):
            for m in range(outputs):
                for n in range(inputs):
                    votes[m][n] += f * left[m][r] * right[n][r]
    return votes


def vector_votes(noises: list[Vector], fitnesses: Vector) -> Vector:
    """sum_i f_i n_i."""
    votes = [0] * len(noises[0])
    for noise, f in zip(noises, fitnesses, strict=True):
        for n, entry in enumerate(noise):
            votes[n] += f * entry
    return votes


def plain_votes(
    config: Config, vocab_size: int, fitnesses: Vector, step: int
) -> dict[str, np.ndarray]:
    """Votes by path of the tensors whose estimator is the plain one."""
    es, seed, found = config.es, config.run.seed, {}
    pairs = range(es.population // 2)
    for path, _, tensor, kind, shape in population.numbered(config.model, vocab_size):
        if population.estimator(es, path, kind) != "plain":
            continue
        if kind == "vector":
            noises = [vector_noise(es, shape[0], seed, step, tensor, i) for i in pairs]
            votes: Any = vector_votes(noises, fitnesses)
        else:
            size = shape[0], shape[1]
            votes = matrix_votes(
                [matrix_noise(es, size, seed, step, tensor, i) for i in pairs], fitnesses
            )
        found.setdefault(path, []).append(votes)
    listed = population.tensors(config.model, vocab_size)
    return {path: np.array(v if listed[path][2] else v[0]) for path, v in found.items()}


# -- Token by token --------------------------------------------------------------------------------


class Place(NamedTuple):
    """What dithers are made of: numbers of the voters, the step, and bits to spare."""

    voters: list[int]
    step: int
    spare: int


class Records(NamedTuple):
    """What a segment's reading leaves, int64: of first members, or differences of the two; of every
    member if each reads alone.

    Attributes:
      inputs: by path [T, I, N], in layers [T, L, I, N]; tokens [T, I] for the embedding.
      effects, answers: by path, likewise.
      streams, of_state: by path, likewise: what a norm was made of, how the next state answers.
      outputs: by path, likewise: what the matrix gave.
      logits: [T, I, V]. targets: [T, I]. residual, gain: [T, I, D].
      difference: of log-likelihoods [T, I], units of 2^-16 bit.
      lowest: of logits, at which nothing can go down.
    """

    inputs: dict[str, np.ndarray]
    effects: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    difference: np.ndarray
    logits: np.ndarray
    targets: np.ndarray
    residual: np.ndarray
    gain: np.ndarray
    lowest: int = -32767
    streams: dict[str, np.ndarray] = {}
    of_state: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}


def dithers(place: Place, length: int, columns: int, bits: int) -> np.ndarray:
    """[T, I, columns]: over the voter, the column and the token's place in the run."""
    voters = np.array(place.voters, np.int64)[None, :, None]
    tokens = (np.arange(length) + place.step * length)[:, None, None]
    return dither(voters, np.arange(columns)[None, None], tokens, bits)  # type: ignore[arg-type]


def narrowed(place: Place, x: np.ndarray, bits: int, most: int = 127) -> np.ndarray:
    """x / 2^bits, rounded by the dither and clipped: [T, I, N]."""
    if bits:
        x = (x + dithers(place, len(x), x.shape[-1], bits)) // 2**bits
    return np.clip(x, -most, most)


def operand(place: Place, x: np.ndarray, bits: int) -> np.ndarray:
    """`narrowed`, coarser by the spare bits."""
    return narrowed(place, x, bits + place.spare, 127 // 2**place.spare)


def level(value: np.ndarray) -> int:
    """floor(log2 of the mean magnitude) from sixteenths, -5 where there is none."""
    rows = 16 * np.abs(value).sum(axis=1) // value.shape[1]
    return int(rows.sum() // len(value)).bit_length() - 5


def shifted(x: np.ndarray, bits: int) -> np.ndarray:
    """x / 2^bits, rounded half up."""
    return (2 * x + 2**bits) // 2 ** (bits + 1) if bits > 0 else x * 2**-bits


def readout_errors(place: Place, records: Records) -> np.ndarray:
    """onehot(target) - p in units of 1 / (127 >> spare bits): [T, I, V]; 0 without a target."""
    length, voters, columns = records.logits.shape
    noise, scale = dithers(place, length, columns, 16), 127 // 2**place.spare
    rows = np.zeros(records.logits.shape, np.int64)
    for t in range(length):
        for i in range(voters):
            target = int(records.targets[t, i])
            if target != population.NO_TARGET:
                row = records.logits[t, i].tolist(), target, scale, noise[t, i].tolist()
                rows[t, i] = row_errors(*row, records.lowest)
    return rows


def stream_credit(
    place: Place, records: Records, head: np.ndarray, errors: np.ndarray
) -> np.ndarray:
    """Credit of the stream at its end: errors through the head and the norm, int8 [T, I, D]."""
    width = head.shape[1]
    bits = 7 - place.spare + level(head) - 9  # a large error's is near 2^9 / mean|x|
    credit = np.clip(shifted(errors @ head, bits), 1 - 2**13, 2**13 - 1)
    rows = (a.reshape(-1, width).tolist() for a in (records.gain, records.residual, credit))
    taken = [norm_credit(*row) for row in zip(*rows, strict=True)]
    return narrowed(place, np.array(taken).reshape(credit.shape), 2)


def through(place: Place, value: np.ndarray, credit: np.ndarray, low: int = 4) -> np.ndarray:
    """Credit of a projection's inputs, of which the dither rounds off `low` bits."""
    bits = level(value) + root_bits(len(value)) - 2
    return narrowed(place, shifted(credit @ value, bits), low)


def score(right: np.ndarray, x: np.ndarray) -> np.ndarray:
    """B x: [T, I, R]."""
    product = np.einsum("tin,inr->tir", x, right)
    return np.clip(product // 2 ** (3 + root_bits(x.shape[-1])), -127, 127)


def outer(left: np.ndarray, x: np.ndarray) -> np.ndarray:
    """sum of left x^T over tokens and voters: [M, N]."""
    return np.einsum("tim,tin->mn", left, x)


def node_operand(
    place: Place,
    factors: tuple[np.ndarray, np.ndarray],
    x: np.ndarray,
    effect: np.ndarray,
    credit: np.ndarray,
) -> np.ndarray:
    """r a: credit times effect times B x, rounded, and then A's entries: [T, I, M]."""
    left, right = factors
    B, groups = score(right, x), left.shape[1] // effect.shape[-1]
    total = np.zeros((*x.shape[:2], left.shape[1]), np.int64)
    for r in range(left.shape[-1]):
        scaled = operand(place, credit * effect * B[..., r : r + 1], 10)
        total += np.tile(scaled, groups) * left[None, ..., r]
    most = 127 // 2**place.spare
    return np.clip(shifted(total, 4 + root_bits(left.shape[-1])), -most, most)


def local_operand(place: Place, answers: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """Credit times answer, rounded: [T, I, M]; output m has the credit of effect m mod E."""
    outputs = answers.shape[-1]
    of_outputs = credit[..., np.arange(outputs) % credit.shape[-1]]
    return operand(place, of_outputs * answers, 5)


def trace(
    place: Place, factors: tuple[np.ndarray, np.ndarray], x: np.ndarray, difference: np.ndarray
) -> np.ndarray:
    """sum of A u^T over pairs, u = sum of d (B x) x over tokens: [M, N]."""
    left, right = factors
    coefficient = narrowed(place, difference * score(right, x), 5)
    u = np.einsum("tir,tin->irn", coefficient, x)
    flat = narrowed(place, u.reshape(1, len(u), -1), 3 + root_bits(len(x)))
    return np.einsum("imr,irn->mn", left, flat.reshape(u.shape))


def trace_rows(
    place: Place, factors: tuple[np.ndarray, np.ndarray], tokens: np.ndarray, difference: np.ndarray
) -> np.ndarray:
    """What every token adds to its row of an embedding: d A[token] B^T, [T, I, N]."""
    left, right = factors
    rows = np.einsum("tir,inr->tin", left[np.arange(len(left)), tokens], right)
    rows = np.clip(rows // 2 ** (3 + root_bits(left.shape[-1])), -127, 127)
    return operand(place, difference * rows, 5)


def scattered(tokens: np.ndarray, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Sum of rows by token: [V, N]."""
    total = np.zeros((vocab_size, rows.shape[-1]), np.int64)
    np.add.at(total, tokens, rows)
    return total


Factors = dict[str, Any]  # by path (value, A, B): [M, N], [I, M, R], [I, N, R], layers in front


def token_votes(
    config: Config, vocab_size: int, members: Factors, records: Records, place: Place
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Votes by path of all but plain and deep tensors and tables, and the readout's errors."""
    es, found = config.es, {}
    paths = population.architecture(config.model).THROUGH
    errors = credit = None
    if es.readout == "exact":
        errors = readout_errors(place, records)
    if es.votes in ("unit", "local"):
        assert errors is not None
        credit = stream_credit(place, records, members["head"][0], errors)
    difference = narrowed(place, records.difference[..., None], 10)

    def votes_of(path: str, kind: str, leaf: Any, x: Any, effect: Any, value: Any) -> np.ndarray:
        """Of a tensor, or of one layer of a stacked one; `effect` is its answer for local votes."""
        _, *factors = leaf
        if kind == "trace" and path == "embedding":
            return scattered(x, trace_rows(place, factors, x, difference), vocab_size)
        if kind == "trace":
            return trace(place, factors, x, difference)
        if path == "head":
            return outer(errors, x)
        if path == "embedding":
            return scattered(x, operand(place, credit, 0), vocab_size)
        if kind == "exact":
            return outer(operand(place, credit, 0), x)
        taken = credit if value is None else through(place, value, credit)
        if kind == "local":
            return outer(local_operand(place, effect, taken), x)
        return outer(node_operand(place, factors, x, effect, taken), x)

    for path, (kind, _, layers) in population.tensors(config.model, vocab_size).items():
        estimator = population.estimator(es, path, kind)
        if kind == "table" or estimator in ("plain", "deep"):
            continue
        moved = records.answers if es.votes == "local" else records.effects
        x, effect = records.inputs[path], moved.get(path)
        value = members[paths[path]][0] if path in paths else None
        if not layers:
            found[path] = votes_of(path, estimator, members[path], x, effect, value)
            continue
        found[path] = np.stack(
            [
                votes_of(
                    path,
                    estimator,
                    [leaf if leaf is None else leaf[n] for leaf in members[path]],
                    x[:, n],
                    None if effect is None else effect[:, n],
                    None if value is None else value[n],
                )
                for n in range(layers)
            ]
        )
    return found, errors
