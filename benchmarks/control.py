"""Reinforcement learning from nothing: our int8 policies beside OpenES with floats, and chance.

    pip install -e '.[bench,rl]'
    python benchmarks/control.py --env CartPole Acrobot Pendulum gymnax:Catch-bsuite --seed 0 1 2

For every environment and seed: ours at some ranks of the perturbation (`full`: the width, at which
A B^T of the square matrices has full rank), and OpenES of evosax with a float policy of the same
shape (benchmarks/open_es.py). All have the same population, number of steps, episodes, initial
weights and encoding of observations. The figure is the mean return of the unperturbed policy in
held-out episodes after the last step; `random` is that of random actions in the same episodes.
Seconds are of processor time, of the steps alone, without the first, which compiles.

Prints a row for each environment, method and seed, and a table of medians, which says of the first
method whether it is better, equal or worse than OpenES (`verdict`), and the same after each quarter
of the steps (`curve`); --json prints one JSON object
{"rows": [{env, method, seed, steps, population, return, curve, random, seconds}]}.
--ours "--es.population 512" changes fields of ours (and of OpenES, where it has them), --openes
std=0.1 a setting of OpenES. --table FILE prints only the table of rows that --out has written.
"""

import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common
from int_lm import plugins
from int_lm.config import Config, command_line
from int_lm.control import border, environment as environments, episodes, observations
from int_lm.control.__main__ import recipe_of
from int_lm.control.environment import Environment
from int_lm.control.episodes import Held
from int_lm.errors import UserError, reported, require
from int_lm.method import evolve, rewards, tuning

PROGRAM = "benchmarks/control.py"
PARTS = 4  # of a run: the policy is evaluated at the end of each
EQUAL = 0.01  # of the distance from the floor to the better one: a smaller difference is none


class Ours:
    """An int8 policy: the steps of `int_lm.control` without a run directory."""

    def __init__(self, settings: Config, environment: Environment, max_steps: int, floor: Held):
        self.recipe = recipe_of(settings, environment)
        self.settings, self.environment, self.statistics = settings, environment, floor.seen
        count, held = settings.control.episodes, settings.control.heldout_episodes
        self._play = episodes.compiled_members(self.recipe, environment, count, max_steps)
        self._learn = tuning.compiled_learner(self.recipe)
        model: Any = self.recipe.model
        self._answer = episodes.compiled_answers(model, environment, held, max_steps)
        self.state = evolve.initial(self.recipe)

    def step(self, number: int) -> None:
        """One step."""
        es, encoding = self.settings.es, self.statistics.encoding()
        returns_PE, _, sums_CK = self._play(self.state.weights, encoding, number)
        scores_P = returns_PE.astype(np.int64).sum(axis=1)
        fitness_I = rewards.fitness(es.fitness, scores_P.tolist(), es.population)
        self.state, _ = self._learn(self.state, scores_P, fitness_I, number)
        seen = observations.of_sums(sums_CK, self.environment.observations)
        self.statistics = self.statistics.added(seen)

    def answer(self) -> np.ndarray:
        """Returns of the unperturbed policy in the held-out episodes."""
        encoding = self.statistics.encoding()
        return self._answer(self.state.weights, encoding, self.settings.run.seed).returns


def trained(learner: Any, steps: int) -> tuple[float, list[float]]:
    """Seconds of the steps, and the mean held-out returns at the end of every part of the run."""
    seconds, found = 0.0, []
    ends = {round(steps * part / PARTS) for part in range(1, PARTS + 1)}
    for number in range(steps):
        began = time.process_time()
        learner.step(number)
        if number:
            seconds += time.process_time() - began
        if number + 1 in ends:
            returns = learner.answer()
            found.append(border.real(int(returns.sum(dtype=np.int64)), len(returns)))
    return seconds, found


def row_of(
    settings: Config,
    method: str,
    environment: Environment,
    floor: Held,
    openes: dict[str, Any],
) -> dict[str, Any]:
    """One run."""
    control, es = settings.control, settings.es
    max_steps = control.max_steps or environment.max_steps
    if method == "openes":
        from benchmarks.open_es import OpenEs, Settings

        learner: Any = OpenEs(
            recipe_of(settings, environment),
            environment,
            control.episodes,
            control.heldout_episodes,
            max_steps,
            dataclasses.replace(Settings(), **openes),
            floor.seen,
        )
    else:
        rank = settings.model.width if method == "full" else int(method.removeprefix("rank"))
        ranked = common.with_fields(settings, "es", rank=rank)
        learner = Ours(ranked, environment, max_steps, floor)
    seconds, found = trained(learner, settings.run.steps)
    return {
        "env": control.env,
        "method": method,
        "seed": settings.run.seed,
        "steps": settings.run.steps,
        "population": es.population,
        "return": found[-1],
        "curve": found,
        "random": border.real(int(floor.returns.sum(dtype=np.int64)), len(floor.returns)),
        "seconds": seconds,
    }


def verdict(ours: Sequence[float], theirs: Sequence[float], floor: float) -> str:
    """Whether ours are better, equal or worse than theirs.

    They are equal where a median lies within the range of the other's returns, or where the medians
    differ by at most `EQUAL` of the distance from the floor to the better one.

    Args:
      ours: returns, one for each seed.
      theirs: likewise.
      floor: median return of random actions.
    """
    own, other = statistics.median(ours), statistics.median(theirs)
    within = min(theirs) <= own <= max(theirs) or min(ours) <= other <= max(ours)
    if within or abs(own - other) <= EQUAL * abs(max(own, other) - floor):
        return "equal"
    return "better" if own > other else "worse"


def table(rows: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """Medians over seeds, one line for each environment, and the verdicts on the first method."""
    lines = ["  ".join([f"{'env':<26}", *(f"{name:>16}" for name in ["random", *methods])])]
    verdicts = []
    for name in dict.fromkeys(row["env"] for row in rows):
        own = [row for row in rows if row["env"] == name]
        cells = [f"{statistics.median(row['random'] for row in own):16.5g}"]
        for method in methods:
            of = [row for row in own if row["method"] == method]
            if not of:
                cells.append(f"{'':>16}")
                continue
            value = statistics.median(row["return"] for row in of)
            seconds = statistics.median(row["seconds"] for row in of)
            cells.append(f"{value:9.5g} {seconds:4.0f} s")
        first, openes = (
            [row["return"] for row in own if row["method"] == method]
            for method in (methods[0], "openes")
        )
        if first and openes and methods[0] != "openes":
            floor = statistics.median(row["random"] for row in own)
            verdicts.append(verdict(first, openes, floor))
            cells.append(verdicts[-1])
        lines.append("  ".join([f"{name:<26}", *cells]))
    if verdicts:
        counts = (f"{verdicts.count(word)} {word}" for word in ("better", "equal", "worse"))
        lines.append(f"{methods[0]} beside OpenES: {', '.join(counts)}")
    return lines


def on_the_way(rows: list[dict[str, Any]], first: str) -> list[str]:
    """Medians of `first` and of OpenES after each part of the run, with the verdict on `first`.

    Where both end at the largest return that there is, only the way there can differ.
    """
    lines = []
    for name in dict.fromkeys(row["env"] for row in rows):
        own, other = (
            [row for row in rows if (row["env"], row["method"]) == (name, method)]
            for method in (first, "openes")
        )
        if first == "openes" or not own or not other:
            continue
        floor = statistics.median(row["random"] for row in own)
        cells = []
        for part in range(PARTS):
            ours, theirs = ([row["curve"][part] for row in of] for of in (own, other))
            medians = " / ".join(f"{statistics.median(of):.4g}" for of in (ours, theirs))
            cells.append(f"{medians} {verdict(ours, theirs, floor)}")
        lines.append("  ".join([f"{name:<26}", *(f"{cell:>24}" for cell in cells)]))
    if lines:
        shares = (f"after {100 * part // PARTS} %" for part in range(1, PARTS + 1))
        head = f"{f'{first} / openes':<26}"
        lines.insert(0, "  ".join([head, *(f"{share:>24}" for share in shares)]))
    return lines


def parsed(text: str) -> tuple[str, Any]:
    """A setting of OpenES, `name=value`, with the type of its default."""
    from benchmarks.open_es import Settings

    name, _, value = text.partition("=")
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    require(name in kinds, f"OpenES has no setting {name!r}, expected one of {', '.join(kinds)}")
    try:
        return name, kinds[name](value)
    except ValueError:
        raise UserError(f"--openes {text}: {value!r} is no number") from None


def main() -> None:
    """Parse, run every combination, print."""
    parser = common.parser(__doc__)
    parser.add_argument("--env", nargs="+", default=["CartPole", "Acrobot", "Pendulum"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--method", nargs="+", default=["rank1", "openes"], help="rank1, rank4, full, openes, ..."
    )
    parser.add_argument("--ours", default="", metavar="FLAGS", help="fields, as --run.steps 50")
    parser.add_argument("--openes", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--table", metavar="FILE", help="print the table of these rows, of --out")
    parser.add_argument("--out", metavar="FILE", help="append every row to this file as it is made")
    arguments = parser.parse_args()
    if arguments.table:
        rows = list(common.rows_of(Path(arguments.table)))
        methods = list(dict.fromkeys(row["method"] for row in rows))
        print("\n".join([*table(rows, methods), *on_the_way(rows, methods[0])]))
        return
    flags = command_line.OneLineParser(prog=PROGRAM)
    command_line.add_config_arguments(flags)
    given = flags.parse_strict(shlex.split(arguments.ours))
    fields = {name: value for name, value in vars(given).items() if "." in name}
    base = command_line.overridden(common.shipped("control"), fields, "--ours")
    openes = dict(parsed(text) for text in arguments.openes)
    rows = []
    for name in arguments.env:
        plugins.trust(name)
        environment = environments.of(name)
        for seed in arguments.seed:
            settings = common.with_fields(base, "control", env=name)
            settings = common.with_fields(settings, "run", seed=seed)
            control = settings.control
            max_steps = control.max_steps or environment.max_steps
            floor = episodes.at_random(environment, control.heldout_episodes, max_steps, seed)
            for method in arguments.method:
                row = row_of(settings, method, environment, floor, openes)
                rows.append(row)
                common.append(arguments.out, row)
                if not arguments.json:
                    print(
                        f"{name} {method} seed {seed}: return {row['return']:.5g} (on the way "
                        f"{' '.join(f'{x:.5g}' for x in row['curve'][:-1])}, random "
                        f"{row['random']:.5g}) in "
                        f"{row['seconds']:.1f} s",
                        flush=True,
                    )
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))
    else:
        lines = table(rows, arguments.method), on_the_way(rows, arguments.method[0])
        print("\n".join([common.machine(), *lines[0], *lines[1]]))


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
