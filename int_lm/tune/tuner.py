"""The training loop with rewards in place of text: `training.trainer.Trainer` with other steps.

Axes: S prompts of a step, N tokens of a prompt, P members, K completions of a member, C tokens of a
completion.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from int_lm import progress
from int_lm.errors import UserError, counted
from int_lm.files.digest import canonical_json
from int_lm.method import rewards, tuning
from int_lm.method.evolve import StepFunction
from int_lm.method.state import Metrics, State
from int_lm.tasks import Example
from int_lm.training import distributed, memory, runlog
from int_lm.training.trainer import COMPILING_SECONDS, Trainer
from int_lm.training.warmup import WarmUp
from int_lm.tune.judge import Judge, Question, RewardError
from int_lm.tune.prompts import Batch, Coder, Prompts

EXAMPLES = 3  # answers that are shown at every evaluation
PROMPTS_AT_ONCE = 256  # held-out prompts that are answered together
NO_PREFERENCE = (
    "warning: nothing was learned in the last {since}: the two members of every pair had equal "
    "rewards; let the reward tell better answers from worse ones, also among wrong ones, begin "
    "with easier prompts, or let members differ more (a lower --es.sigma_shift)"
)


class Batches(NamedTuple):
    """The prompts of every step as tokens, in place of `Text.streams`.

    Attributes:
      prompts: of the run.
      coder: converts them to tokens.
    """

    prompts: Prompts
    coder: Coder

    def at(self, step: int) -> Batch:
        """The prompts of a step."""
        return self.coder.batch(self.prompts.at(step))


class Written(NamedTuple):
    """The completions of the population in one step.

    Attributes:
      rewards: of all completions, in units of 2^-16.
      distinct: number of distinct pairs of prompt and completion.
      written: number of tokens that all members wrote.
      tokens: number of tokens that all members wrote, and read in prompts.
    """

    rewards: list[int]
    distinct: int
    written: int
    tokens: int


class Answers(NamedTuple):
    """The answers of the unperturbed model to the held-out prompts, always the likeliest token.

    Attributes:
      reward: mean reward.
      solved: share of answers that count as solved.
      examples: (prompt, completion, reward) of the first few.
    """

    reward: float
    solved: float
    examples: list[tuple[str, str, float]]


@dataclasses.dataclass
class Tuner(Trainer):
    """A tuning that is being trained.

    Attributes:
      judge: computes rewards.
      prompts: the prompts for training and the held-out ones.
      coder: converts prompts to tokens, and tokens to completions.
      tokens: number of tokens that all members have read and written in this run.
      before: (mean reward, share solved) of the weights that the run started from, on the held-out
        prompts; None before they are evaluated.
      text_sha256: digest of the text that these weights were trained on; None if not known.
    """

    judge: Judge = None  # type: ignore[assignment]
    prompts: Prompts = None  # type: ignore[assignment]
    coder: Coder = None  # type: ignore[assignment]
    tokens: int = 0
    before: tuple[float, float] | None = None
    text_sha256: str | None = None

    program = "int_lm.tune"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._written: Written | None = None  # in the last step
        self._since = 0  # tokens after the last row of metrics
        self._equal = 0  # steps after it in which no reward preferred one member of a pair
        self.answered: tuple[int, Answers] | None = None  # the last evaluation, and its step

    def loop(self) -> bool:
        """As `Trainer.loop`. If a reward fails, the steps before are saved first.

        Raises:
          RewardError: the reward of a completion could not be computed.
        """
        try:
            if self.before is None:
                self._begin()
            return self._steps(self.text.streams.at(self.step), WarmUp())
        except RewardError:
            if self.step and self.saved < self.step:
                self.save(None)
            self.kept()
            raise

    def _begin(self) -> None:
        """Evaluate the weights that the run starts from: row 0 of the metrics."""
        answers = self.answer()
        self.before = answers.reward, answers.solved
        self.append(
            {
                "step": 0,
                "heldout_reward": answers.reward,
                "heldout_solved": answers.solved,
                "weights_hash": self.hash_weights(),
            }
        )
        self.console.note(
            f"before: reward {answers.reward:.4f}, {answers.solved:.2%} solved of "
            + counted(len(self.prompts.held_out), "held-out prompt")
        )
        self.show(answers)

    def patience(self, first: bool) -> float:
        """See `Trainer.patience`."""
        return COMPILING_SECONDS  # the time of rewards can differ much between processes

    def step_function(self) -> StepFunction:
        """The step: (state, batch of prompts, step) -> (next state, metrics)."""
        write = tuning.compiled_writer(self.recipe, self.place)
        learn = tuning.compiled_learner(self.recipe, self.place)
        es = self.settings.es

        def take_step(state: State, batch: Any, step: int) -> tuple[State, Metrics]:
            written_PKC = np.asarray(write(state.weights, batch.tokens_SN, self.coder.ends_V, step))
            owners = [batch.examples[p // es.members_per_stream] for p in range(es.population)]
            found, distinct = self._judged(owners, written_PKC)
            count = written_PKC.shape[1]
            scores_P = rewards.of_members(
                [found[first : first + count] for first in range(0, len(found), count)]
            )
            fitness_I = rewards.fitness(es.fitness, scores_P, es.members_per_stream)
            written = self.coder.written(written_PKC)
            # without the padding, whose length depends on the steps since the last start
            read = batch.count * len(found) // len(batch.examples)
            self._written = Written(found, distinct, written, written + read)
            self.tokens += self._written.tokens
            self._since += self._written.tokens
            self._equal += not fitness_I.any()
            return learn(state, np.array(scores_P, np.int64), fitness_I, step)

        return take_step

    def _judged(
        self, examples: Sequence[Example], written_PKC: np.ndarray
    ) -> tuple[list[int], int]:
        """Rewards of completions in units of 2^-16, in the order of members and completions.

        Args:
          examples: the example of every member.
          written_PKC: ids of the completions.

        Returns:
          The rewards, and the number of distinct pairs of prompt and completion.
        """
        texts: dict[bytes, str] = {}
        questions: list[Question] = []
        facts = {id(example): canonical_json(example.facts) for example in examples}
        for example, written_KC in zip(examples, written_PKC, strict=True):
            for ids_C in written_KC:
                key = ids_C.tobytes()
                if key not in texts:
                    texts[key] = self.coder.completion(ids_C)
                questions.append(Question(example.prompt, texts[key], facts[id(example)]))
        distinct = list(dict.fromkeys(questions))
        number = {question: index for index, question in enumerate(distinct)}
        found = self._shared(distinct)
        return [found[number[question]] for question in questions], len(distinct)

    def _shared(self, questions: list[Question]) -> list[int]:
        """Rewards in units of 2^-16; every process of the run computes a part of them.

        Raises:
          RewardError: a reward failed in one of the processes. It is raised in all of them.
        """
        own, count = distributed.shares()
        mine = questions[own::count]
        failure: UserError | None = None
        values = np.zeros(len(questions), np.int32)
        try:
            values[own::count] = [rewards.fixed_point(x) for x in self.judge.rewards(mine)]
        except UserError as error:
            failure = error
        if distributed.most(failure is not None):
            if isinstance(failure, RewardError):
                raise failure
            raise RewardError(str(failure or "the reward failed in another process of the run"))
        return distributed.everyones(values).sum(axis=0).tolist()

    def answer(self) -> Answers:
        """Let the unperturbed model answer the held-out prompts.

        Raises:
          RewardError: the reward of an answer could not be computed.
        """
        held_out, found, shown = self.prompts.held_out, [], []
        length = self.settings.reward.tokens
        with progress.bar("held-out prompts", len(held_out)) as update:
            for first in range(0, len(held_out), PROMPTS_AT_ONCE):
                examples = held_out[first : first + PROMPTS_AT_ONCE]
                batch = self.coder.batch(examples)
                with self._watchdog(COMPILING_SECONDS):
                    written_PC = np.asarray(
                        tuning.answers(
                            self.recipe.model,
                            self.weights,
                            batch.tokens_SN,
                            self.coder.ends_V,
                            length,
                        )
                    )
                    values, _ = self._judged(examples, written_PC[:, None])
                found += values
                for number, example in enumerate(examples[: EXAMPLES - len(shown)]):
                    shown.append((example.prompt, self.coder.completion(written_PC[number])))
                update(len(examples))
        solved = sum(self._is_solved(value) for value in found)
        answers = Answers(
            reward=_mean(found),
            solved=solved / len(found),
            examples=[(*pair, _number(value)) for pair, value in zip(shown, found, strict=False)],
        )
        self.answered = self.step, answers
        return answers

    def _is_solved(self, value: int) -> bool:
        return value >= rewards.fixed_point(self.prompts.solved)

    def log(self, measured: Metrics, evaluate: bool, last: bool) -> None:
        """Report the step just done; the arguments are those of `Trainer.log`."""
        written, steps = self._written, max(1, self._stepped)
        assert written is not None
        standing = self.standing(measured, self._since // steps)
        equal, self._since, self._equal = self._equal >= steps, 0, 0
        answers = self.answer() if evaluate else None
        report = runlog.RewardReport(
            reward_mean=_mean(written.rewards),
            reward_best=_number(max(written.rewards)),
            solved=sum(map(self._is_solved, written.rewards)) / len(written.rewards),
            heldout_reward=answers.reward if answers else None,
            heldout_solved=answers.solved if answers else None,
            **standing,
        )
        more = {
            "distinct": written.distinct / len(written.rewards),
            "completion_tokens": written.written / len(written.rewards),
            "tokens": self.tokens,
        }
        self.append(runlog.row(report) | more)
        self.console.report(report)
        if equal and distributed.is_first():
            since = "step" if steps == 1 else counted(steps, "step")
            self.console.warn(NO_PREFERENCE.format(since=since))
        if answers and not last:
            self.show(answers)
        if evaluate:
            memory.trim()

    def show(self, answers: Answers) -> None:
        """Print some held-out prompts with the model's answers."""
        if self.settings.run.sample_tokens == 0:
            return
        self.console.note(f"--- answers at step {self.step} " + "-" * 39)
        for prompt, completion, reward in answers.examples:
            text = f"{prompt}{completion}".encode()
            self.console.note(f"{progress.shown(text)}   [reward {reward:.4g}]")
        self.console.note("-" * 60)

    def host(self) -> dict[str, Any]:
        """As `Trainer.host`, with `tokens`, `before` and `text_sha256`."""
        kept = {"tokens": self.tokens, "before": self.before, "text_sha256": self.text_sha256}
        return super().host() | {"tuning": kept}


def of_host(host: Mapping[str, Any]) -> tuple[int, tuple[float, float] | None]:
    """The attributes `tokens` and `before` of a `Tuner`, from a checkpoint's host data."""
    tuning = host.get("tuning")
    found = tuning if isinstance(tuning, dict) else {}
    tokens, before = found.get("tokens"), found.get("before")
    pair = before if isinstance(before, list) else []
    sound = len(pair) == 2 and all(type(x) in (int, float) for x in pair)
    return (tokens if type(tokens) is int else 0), ((pair[0], pair[1]) if sound else None)


def _number(value: int) -> float:
    return value / (1 << rewards.FRACTION_BITS)


def _mean(values: Sequence[int]) -> float:
    return _number(sum(values)) / max(1, len(values))
