"""Verification: steps of a run computed again, and their hashes compared with those it logged.

A run is a function of its configuration and its text. From any checkpoint, `recompute` walks the
steps after it once more and compares the hash of the weights at every step that `metrics.jsonl`
has: who distrusts a log, a disk or a processor need not trust them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from int_lm.errors import UserError
from int_lm.method import evolve
from int_lm.method.evolve import State
from int_lm.method.recipe import Recipe
from int_lm.model import hashing


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
      confirmed: logged steps whose hash was found again.
      differs: the first logged step whose hash is another one, with the hash logged and the hash
        found; None if there is none.
    """

    confirmed: list[int]
    differs: tuple[int, str, str] | None


def logged_hashes(metrics: Path) -> dict[int, str]:
    """The hash of the weights by step, from a run's `metrics.jsonl`.

    Raises:
      UserError: it cannot be read, or a line of it is none of ours.
    """
    found: dict[int, str] = {}
    try:
        lines = metrics.read_bytes().split(b"\n")[:-1]  # the last piece is empty, or was torn
    except OSError as error:
        raise UserError(f"cannot read {metrics}: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found[int(row["step"])] = str(row["weights_hash"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{metrics} line {number} is no row of a run's metrics") from error
    return found


def recompute(
    recipe: Recipe,
    state: State,
    tokens_at: Callable[[int], np.ndarray],
    first: int,
    expected: Mapping[int, str],
    *,
    progress: Callable[[int], None] = lambda step: None,
) -> Comparison:
    """Compute the steps after `first` until the last of `expected`, or until one differs.

    Args:
      state: after step `first`; its context tables are given up.
      tokens_at: tokens [S, T+1] of a step.
      expected: hashes by step, those of `first` and before are passed over.
      progress: called after every step with 1.
    """
    take_step = evolve.compiled_step(recipe)
    confirmed = []
    for step in range(first, max(expected, default=first)):
        state, _ = take_step(state, tokens_at(step), step)
        progress(1)
        logged = expected.get(step + 1)
        if logged is None:
            continue
        found = hashing.weights_hash(state.weights)
        if found != logged:
            return Comparison(confirmed, (step + 1, logged, found))
        confirmed.append(step + 1)
    return Comparison(confirmed, None)
