"""The pool: which tokens are held back, how trust learns from them, and the weights it makes."""

import math
from typing import Any

from int_lm.config import ModelConfig
from oracle import contexts
from oracle.arithmetic import Vector, dither, saturate, shift_down
from oracle.likelihood import errors

PICKS, BUCKETS = 4, 16


def held_back(held: bool, context: Vector) -> bool:
    """Whether a document is held back after these tokens, the newest first, and whether it was
    before the last one: one of 16 is, by its first 16 tokens."""
    if context[0] == 0:
        return False
    if context[16] != 0 or context[15] == 0:
        return held
    return contexts.hashed(context, 16) < 2**28


def places(length: int, step: int) -> Vector:
    """The tokens of a segment that trust learns from, if their document is held back."""
    picks = min(PICKS, length)
    return [(pick * length // picks + step) % length for pick in range(picks)]


def of_table(number: int, count: int) -> int:
    """Which trust the rows of a table with this count have."""
    return 2 + number * BUCKETS + min(count.bit_length(), BUCKETS - 1)


def learnt(
    values: Vector, held: list[tuple[int, int, list[tuple[int, Vector]]]], step: int
) -> Vector:
    """Trusts after a step.

    Args:
      held: (number, target, (trust, logits) of all experts) of tokens that are held back.
    """
    found: dict[int, Vector] = {}
    for number, target, experts in held:
        pooled = []
        for column in zip(
            *[[x * (values[k] // 512) for x in row] for k, row in experts], strict=True
        ):
            pooled.append(max(-32767, min(32767, math.floor(sum(column) / 128))))
        noise = [dither(number, v, step, 16) for v in range(len(pooled))]
        error = errors(pooled, target, 127, noise, -32767)
        for k, row in experts:
            total = sum(e * max(-8191, min(8191, x)) for e, x in zip(error, row, strict=True))
            found.setdefault(k, []).append(max(-16383, min(16383, total)))
    after = list(values)
    for k, gradients in found.items():
        move = sum(gradients) // (2 * len(gradients))
        after[k] = max(0, min(4 * 2**16 - 1, values[k] + move))
    return after


def settled(
    model: ModelConfig, weights: dict[str, Any], counts: dict[str, Vector], values: Vector
) -> dict[str, Any]:
    """Weights by path, times their trust."""

    def times(row: Vector, k: int) -> Vector:
        return [saturate(shift_down(w * (values[k] // 512), 7)) for w in row]

    found = dict(weights)
    paths = [f"direct/context_{k}" for k in model.direct]
    for number, path in enumerate(paths + [f"direct/words_{n}" for n in model.words]):
        rows = zip(weights[path], counts[path], strict=True)
        found[path] = [times(row, of_table(number, count)) for row, count in rows]
    for path, k in (("head", 0), ("direct/cache", 1)):
        if path in weights:
            found[path] = [times(row, k) for row in weights[path]]
    return found
