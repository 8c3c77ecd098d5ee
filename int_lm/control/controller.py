"""The training loop with episodes in place of text: `training.trainer.Trainer` with other steps.

Axes: P members, E episodes of a member.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from int_lm.control import border, episodes, observations
from int_lm.control.environment import Environment
from int_lm.control.episodes import Held
from int_lm.control.observations import Statistics
from int_lm.method import rewards, tuning
from int_lm.method.evolve import StepFunction
from int_lm.method.state import Metrics, State
from int_lm.run import POLICY
from int_lm.training import memory, runlog
from int_lm.training.trainer import COMPILING_SECONDS, Trainer
from int_lm.training.warmup import WarmUp


class Nothing(NamedTuple):
    """In place of `Text.streams`: a policy reads no text."""

    def at(self, step: int) -> np.ndarray:
        """Nothing."""
        return np.zeros(0, np.uint8)


class Kept(NamedTuple):
    """What a run carries beside its arrays, and stores in the host data of its checkpoints.

    Attributes:
      statistics: of all observations so far.
      steps: of the environment, by all members so far.
      at_random: mean return of random actions in the held-out episodes.
      before: mean return of the policy before its first step, likewise.
    """

    statistics: Statistics
    steps: int
    at_random: float
    before: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeReport(runlog.Standing):
    """One line of the log of a policy; `tokens_per_second` are steps of environments.

    Attributes:
      return_mean: mean return of the members' episodes in this step.
      return_best: mean return of the best member.
      heldout_return: mean return of the bare policy in held-out episodes; None if not evaluated.
    """

    SPEED: ClassVar[str] = "steps/s"

    return_mean: float
    return_best: float
    heldout_return: float | None

    def measured(self) -> runlog.Cells:
        held_out = self.heldout_return
        return [
            ("return", 9, f"{self.return_mean:.5g}"),
            ("best", 9, f"{self.return_best:.5g}"),
            ("held out", 9, "" if held_out is None else f"{held_out:.5g}"),
        ]


@dataclasses.dataclass
class Controller(Trainer):
    """A policy that is being trained.

    Attributes:
      environment: where it acts.
      kept: see `Kept`; None before the first step of a new run.
    """

    environment: Environment = None  # type: ignore[assignment]
    kept_beside: Kept | None = None

    program = "int_lm.control"

    def __post_init__(self) -> None:
        super().__post_init__()
        control = self.settings.control
        self.max_steps = control.max_steps or self.environment.max_steps
        self._answers = episodes.compiled_answers(
            self.recipe.model,  # type: ignore[arg-type]
            self.environment,
            control.heldout_episodes,
            self.max_steps,
        )
        self._returns_PE = self._lengths_PE = np.zeros((1, 1), np.int32)  # of the last step
        self._since = 0  # steps of the environment after the last row of metrics
        self.evaluated: tuple[int, float] | None = None  # the last evaluation, and its step

    def loop(self) -> bool:
        """As `Trainer.loop`."""
        if self.kept_beside is None:
            self._begin()
        return self._steps(np.zeros(0, np.uint8), WarmUp())

    def _begin(self) -> None:
        """Play at random, and with the policy that training starts from: row 0 of the metrics."""
        count, seed = self.settings.control.heldout_episodes, self.settings.run.seed
        with self._watchdog(COMPILING_SECONDS):
            floor = episodes.at_random(self.environment, count, self.max_steps, seed)
        at_random = _mean(floor.returns)
        self.kept_beside = Kept(floor.seen, 0, at_random, 0.0)
        before = self.answer()
        self.kept_beside = self.kept_beside._replace(before=before)
        row = {"step": 0, "heldout_return": before, "random_return": at_random}
        self.append(row | {"weights_hash": self.hash_weights()})
        self.console.note(
            f"before: return {before:.5g} in {count} held-out episodes; of random actions "
            f"{at_random:.5g}"
        )

    @property
    def beside(self) -> Kept:
        """`kept_beside`, which is there after `_begin`."""
        assert self.kept_beside is not None
        return self.kept_beside

    def patience(self, first: bool) -> float:
        """See `Trainer.patience`."""
        return COMPILING_SECONDS  # episodes of one process can last longer than those of others

    def step_function(self) -> StepFunction:
        """The step: (state, nothing, step) -> (next state, metrics)."""
        es, count = self.settings.es, self.settings.control.episodes
        play = episodes.compiled_members(
            self.recipe, self.environment, count, self.max_steps, self.place
        )
        learn = tuning.compiled_learner(self.recipe, self.place)

        def take_step(state: State, nothing: Any, step: int) -> tuple[State, Metrics]:
            before = self.beside
            encoding = before.statistics.encoding()
            returns_PE, lengths_PE, sums_CK = play(state.weights, encoding, step)
            seen = observations.of_sums(sums_CK, self.environment.observations)
            scores_P = returns_PE.astype(np.int64).sum(axis=1)
            fitness_I = rewards.fitness(es.fitness, scores_P.tolist(), es.population)
            self._returns_PE, self._lengths_PE = returns_PE, lengths_PE
            steps = int(lengths_PE.sum(dtype=np.int64))
            self._since += steps
            self.kept_beside = before._replace(
                statistics=before.statistics.added(seen), steps=before.steps + steps
            )
            return learn(state, scores_P, fitness_I, step)

        return take_step

    def answer(self) -> float:
        """The mean return of the unperturbed policy in the held-out episodes."""
        encoding = self.beside.statistics.encoding()
        with self._watchdog(COMPILING_SECONDS):
            held: Held = self._answers(self.weights, encoding, self.settings.run.seed)
        found = _mean(held.returns)
        self.evaluated = self.step, found
        return found

    def log(self, measured: Metrics, evaluate: bool, last: bool) -> None:
        """Report the step just done; the arguments are those of `Trainer.log`."""
        steps = max(1, self._stepped)
        standing = self.standing(measured, self._since // steps)
        self._since = 0
        held_out = self.answer() if evaluate else None
        scores_P = self._returns_PE.astype(np.int64).sum(axis=1)
        count = self._returns_PE.shape[1]
        report = EpisodeReport(
            return_mean=_mean(self._returns_PE),
            return_best=border.real(int(scores_P.max()), count),
            heldout_return=held_out,
            **standing,
        )
        row = runlog.row(report)
        row["environment_steps_per_second"] = row.pop("tokens_per_second")
        row["episode_steps"] = float(self._lengths_PE.sum(dtype=np.int64)) / self._lengths_PE.size
        row["environment_steps"] = self.beside.steps
        self.append(row)
        self.console.report(report)
        if evaluate:
            memory.trim()

    def host(self) -> dict[str, Any]:
        """As `Trainer.host`, with what `of_host` reads."""
        beside = self.beside
        kept = beside._asdict() | {"statistics": beside.statistics.to_json()}
        return super().host() | {POLICY: kept}


def of_host(host: Mapping[str, Any], size: int) -> Kept | None:
    """`Kept` of a checkpoint's host data; None if they do not hold it.

    Args:
      host: the host data.
      size: of an observation.
    """
    found = host.get(POLICY)
    if not isinstance(found, dict):
        return None
    statistics = Statistics.of_json(found.get("statistics"))
    steps, figures = found.get("steps"), [found.get("at_random"), found.get("before")]
    if statistics is None or len(statistics.totals) != size or len(statistics.distances) != size:
        return None
    if type(steps) is not int or not all(type(x) in (int, float) for x in figures):
        return None
    return Kept(statistics, steps, *figures)  # type: ignore[arg-type]


def _mean(returns: np.ndarray) -> float:
    return border.real(int(returns.sum(dtype=np.int64)), returns.size)
