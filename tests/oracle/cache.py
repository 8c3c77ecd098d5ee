"""The document cache: a dict of what followed each context, and the rows it would stand in."""

from oracle.arithmetic import Vector
from oracle.contexts import hashed

SLOTS, RUN_MAX = 3, 15


def place_of(tokens: Vector, length: int, bits: int) -> tuple[int, int]:
    """Row and check of the last `length` tokens, the newest first."""
    word = hashed(tokens, length)
    return (word * 0x85EBCA6B % 2**32) >> (32 - bits), (word * 0xC2B2AE35 % 2**32) >> 21


class Cache:
    """The rows of one document after another: {row: (check, run, tokens)} of every length."""

    def __init__(self, lengths: Vector, bits: int):
        self.lengths, self.bits = sorted(lengths, reverse=True), bits
        self.read(0)

    def read(self, token: int) -> None:
        """Read a token; a separator empties everything."""
        if token == 0:
            self.document: Vector = []
            self.rows: list[dict[int, tuple[int, int, Vector]]] = [{} for _ in self.lengths]
            return
        newest_first = self.document[::-1]
        for rows, length in zip(self.rows, self.lengths, strict=True):
            if len(newest_first) < length:
                continue
            row, check = place_of(newest_first, length, self.bits)
            found, run, tokens = rows.get(row, (check, 0, []))
            if found != check:
                run, tokens = 0, []
            run = min(run + 1, RUN_MAX) if tokens[:1] == [token] else 1
            tokens = [token, *(old for old in tokens if old != token)][:SLOTS]
            rows[row] = check, run, tokens
        self.document.append(token)

    def slots(self) -> list[tuple[int, int]]:
        """(index of the weight, token) of every slot that is not empty."""
        newest_first, full = self.document[::-1], []
        for k, length in enumerate(self.lengths):
            if len(newest_first) >= length:
                row, check = place_of(newest_first, length, self.bits)
                found, run, tokens = self.rows[k].get(row, (-1, 0, []))
                if found == check:
                    full.append((k, run, tokens))
        picked, above = [], 0
        for k, run, tokens in full:
            for slot, token in enumerate(tokens):
                index = (full[0][0] * len(self.lengths) + k) * SLOTS + slot
                picked.append(((index * 2 + (token == above)) * (RUN_MAX + 1) + run, token))
            above = tokens[0]
        return picked
