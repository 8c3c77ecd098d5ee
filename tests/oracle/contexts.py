"""Context tables: rows by hash, sums of logits, and their update, row after row."""

import math
from typing import Any

from int_lm.config import EsConfig, ModelConfig
from oracle.arithmetic import Matrix, Vector, dither, saturate, shift_down, spare_bits


def hashed(tokens: Vector, length: int) -> int:
    """The hash of the last `length` tokens, the newest first: 32 bits."""
    word = length
    for token in tokens[:length]:
        word = (word ^ token) * 0x9E3779B1 % 2**32
        word ^= word >> 15
    return word


def row_of(tokens: Vector, length: int, bits: int) -> int:
    """The row that the last `length` tokens pick, the newest first."""
    return (hashed(tokens, length) * 0x85EBCA77 % 2**32) >> (32 - bits)


def following(context: Vector, token: int) -> Vector:
    """The last tokens after one more, the newest first; a separator forgets all before it."""
    return [token, *context[:-1]] if token else [0] * len(context)


def rows_of(model: ModelConfig, context: Vector) -> dict[str, int]:
    """The row of every table by path."""
    return {f"direct/context_{k}": row_of(context, k, model.direct_bits) for k in model.direct}


def added(member: dict[str, Any], rows: dict[str, int], logits: Vector) -> Vector:
    """Logits and the rows, in 16 bits."""
    total = list(logits)
    for path, row in rows.items():
        for v in range(len(total)):
            total[v] += member[path][row][v]
    return [max(-32767, min(32767, y)) for y in total]


def row_step(rate: float, count: int) -> int:
    """rate / sqrt(count) in units of 2^-8, with the root of at most 12 bits of the count."""
    halves = (max(count.bit_length() - 12, 0) + 1) // 2
    index = count >> (2 * halves)
    root = math.floor(2**15 / math.sqrt(index) + 0.5)
    return shift_down(round(rate * 256) * root, 15) >> halves


def updated(
    es: EsConfig, table: Matrix, counts: Vector, rows: Vector, errors: Matrix, step: int
) -> tuple[Matrix, Vector]:
    """The table and counts after a step, one row after another; padding has the row after all."""
    table, counts = [list(row) for row in table], list(counts)
    hits: dict[int, Matrix] = {}
    for row, error in zip(rows, errors, strict=True):
        hits.setdefault(row, []).append(error)
    for row in set(hits) - {len(table)}:
        counts[row] = min(counts[row] + 1, 2**31 - 1)
        readings = len(hits[row])
        factor = row_step(es.direct_rate, max(1, counts[row] // readings)) * 2**8 // readings
        for v in range(len(table[row])):
            error = sum(hit[v] for hit in hits[row]) << spare_bits(es)
            move = (error * factor + dither(row, v, step, 23)) >> 23
            table[row][v] = saturate(table[row][v] + move)
    return table, counts


def words_of(text: Vector) -> list[int]:
    """Hashes of the words of a document, the newest first: that being written, then those before.

    The document is cut at its last separator; 0 stands for no word.
    """
    capitals = dict(zip(range(ord("A"), ord("Z") + 1), range(ord("a"), ord("z") + 1), strict=True))
    letters = {*capitals.values(), *range(128, 256)}
    document, hashes = text, []
    while 0 in document:
        document = document[document.index(0) + 1 :]
    small = [capitals.get(c, c) for c in document]
    for word in "".join(chr(c) if c in letters else " " for c in small).split(" "):
        found = 0
        for letter in word:
            found = (found ^ ord(letter)) * 0x9E3779B1 % 2**32
            found ^= found >> 15
        hashes.append(found)
    *before, last = hashes
    return [last, *reversed([word for word in before if word])]


def row_of_words(text: Vector, n: int, bits: int) -> int:
    """The row that the last n words of a text pick."""
    return row_of(words_of(text) + [0] * n, n, bits)


def left_out(es: EsConfig, member: int, table: str) -> bool:
    """Whether a member reads its stream without a table, named context_k or words_n."""
    stream, share = member // es.members_per_stream % 1024, round(1024 * es.direct_dropout)
    chosen = (stream + 1) * share // 1024 > stream * share // 1024
    kind, _, number = table.partition("_")
    return chosen and (kind == "words" or int(number) > es.direct_dropout_above)
