"""Verification: steps of a run are computed again and compared with the hashes in its log.

A run is a function of its configuration and its text. `recompute` begins at any checkpoint,
computes the steps after it, and compares the hash of the weights at every step that
`metrics.jsonl` has. So a log can be checked without trust in the disk or processor of the run.
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
    """The result of a verification.

    Attributes:
      confirmed: the logged steps whose hash was computed again.
      differs: (step, logged hash, computed hash) of the first logged step with another hash; None
        if all hashes are equal.
    """

    confirmed: list[int]
    differs: tuple[int, str, str] | None


def logged_hashes(metrics: Path) -> dict[int, str]:
    """The hash of the weights by step, from a run's `metrics.jsonl`.

    Raises:
      UserError: the file cannot be read, or a line is not a row of metrics.
    """
    found: dict[int, str] = {}
    try:
        lines = metrics.read_bytes().split(b"\n")[:-1]  # the last piece is empty or incomplete
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
    recipes: Mapping[int, Recipe],
    state: State,
    tokens_at: Callable[[int], np.ndarray],
    first: int,
    expected: Mapping[int, str],
    *,
    progress: Callable[[int], None] = lambda step: None,
) -> Comparison:
    """Compute the steps after `first` up to the last one of `expected`, or until a hash differs.

    Args:
      recipes: of the run, by the step from which each holds; only `run.steps` differs.
      state: the state after `first` steps. Do not use it afterwards: its context tables are
        changed in place.
      tokens_at: (step) -> tokens [S, T+1] of the step.
      first: number of updates that the state has had.
      expected: hashes by step; those of steps up to `first` are ignored.
      progress: called after every step with 1.
    """
    confirmed, held = [], None
    for step in range(first, max(expected, default=first)):
        recipe = recipes[max(start for start in recipes if start <= step)]
        if recipe is not held:
            held, take_step = recipe, evolve.compiled_step(recipe)
        state, _ = take_step(state, tokens_at(step), step)
        progress(1)
        logged = expected.get(step + 1)
        if logged is None:
            continue
        found = hashing.weights_hash(evolve.weights(recipe, state))
        if found != logged:
            return Comparison(confirmed, (step + 1, logged, found))
        confirmed.append(step + 1)
    return Comparison(confirmed, None)
