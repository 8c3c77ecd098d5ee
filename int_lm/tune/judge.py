"""Rewards of completions: every distinct one judged once, here or in processes of their own.

What the user names as "module:NAME", a function or a task, is called in other processes: what it
prints then cannot reach this one's output, and a call that does not come back can be ended. A task
is imported here, too, for its prompts. The reward is taken to be a function: the same prompt,
completion and facts always get the same number.
"""

import collections
import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from int_lm import programs
from int_lm.errors import UserError
from int_lm.method.rewards import REWARD_MAX
from int_lm.tune import worker

SHOWN = 60  # characters of a prompt or completion in an error
BATCH = 64  # completions that a process is given at once, at most
STARTING_SECONDS = 600.0  # that a process may take to import the function


class RewardError(UserError):
    """The reward did not come to a number; names prompt and completion."""


class Question(NamedTuple):
    """What is judged. `facts` is JSON text, so that equal questions are equal."""

    prompt: str
    completion: str
    facts: str


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


class Judge:
    """Computes rewards; a context manager, which ends its processes.

    Args:
      name: a shipped task, or "module:function".
      processes: 0 to call the function in this process, without `seconds`; for a shipped task.
      seconds: that one call may take; 0 for no limit.

    Raises:
      UserError: the function cannot be imported.
    """

    def __init__(self, name: str, *, processes: int, seconds: float):
        self._name, self._seconds = name, seconds
        self._function = worker.function_of(name) if processes == 0 else None
        self._workers: list[_Worker] = []
        try:
            for _ in range(processes):
                self._workers.append(_Worker(name))
            for one in self._workers:
                one.begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for one in self._workers:
            one.end()
        self._workers = []

    def rewards(self, questions: Sequence[Question]) -> list[float]:
        """The reward of every question; each is asked as often as it stands here.

        Raises:
          RewardError: a call raised, gave no number within +-2^14 or took too long; the first such
            question, in their order, among those that were answered.
        """
        if self._function is not None:
            answers = (
                worker.judged(self._function, one.prompt, one.completion, json.loads(one.facts))
                for one in questions
            )
            return [self._number(*pair) for pair in zip(questions, answers, strict=True)]
        return self._asked(questions)

    def _number(self, question: Question, answer: dict[str, Any]) -> float:
        reward = answer.get("reward")
        if reward is not None and abs(reward) <= REWARD_MAX:
            return reward
        what = answer.get("error", f"returned {reward}, beyond {REWARD_MAX} in magnitude")
        raise RewardError(
            f"the reward {self._name} {what}, for the prompt {_shown(question.prompt)} and the "
            f"completion {_shown(question.completion)}; mend it and run the same command again"
        )

    def _asked(self, questions: Sequence[Question]) -> list[float]:
        """`rewards` by the processes, each of which has one batch at a time."""
        size = max(1, min(BATCH, -(-len(questions) // (4 * len(self._workers)))))
        waiting = collections.deque(range(0, len(questions), size))
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for one in self._workers:
                selector.register(one.output, selectors.EVENT_READ, one)
            while len(answers) < len(questions):
                for one in self._workers:
                    if not one.asked and waiting:
                        first = waiting.popleft()
                        indices = range(first, min(first + size, len(questions)))
                        one.ask([(index, questions[index]) for index in indices])
                self._receive(selector, answers)
                failed = [index for index in answers if "error" in answers[index]]
                if failed:
                    self._number(questions[min(failed)], answers[min(failed)])
        return [self._number(one, answers[index]) for index, one in enumerate(questions)]

    def _receive(
        self, selector: selectors.BaseSelector, answers: dict[int, dict[str, Any]]
    ) -> None:
        """Wait for answers of any process, but no longer than a call may take."""
        busy = [one for one in self._workers if one.asked]
        limit = self._seconds or None
        if limit is not None:
            limit = max(0.0, min(one.since for one in busy) + limit - time.monotonic())
        for key, _ in selector.select(limit):
            one: _Worker = key.data
            lines = one.received()
            if lines is None:
                if not one.asked:
                    raise RewardError(
                        f"a process for the reward {self._name} ended while it had nothing to do; "
                        "run the same command again"
                    )
                self._number(one.asked[0][1], {"error": "ended the process it ran in"})
            for line in lines or ():
                index, _ = one.asked.popleft()
                answers[index] = json.loads(line)
        now = time.monotonic()
        for one in busy:
            if one.asked and self._seconds and now - one.since >= self._seconds:
                self._number(
                    one.asked[0][1],
                    {"error": f"took more than {self._seconds:g} seconds (--reward.seconds)"},
                )


class _Worker:
    """A process that computes rewards (`worker`).

    Attributes:
      asked: questions that are not answered yet, with their indices.
      since: when the last answer, or the first question, of them came.
      output: its file descriptor to read answers from.
    """

    def __init__(self, name: str):
        path = [str(programs.PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            start_new_session=True,  # Ctrl-C in a terminal is for the program that asks
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._stdout = self._process.stdin, self._process.stdout
        self.output = self._stdout.fileno()
        self._rest = b""
        self.asked: collections.deque[tuple[int, Question]] = collections.deque()
        self.since = 0.0
        self._send(name)

    def begin(self) -> None:
        """Wait until it has imported the function.

        Raises:
          UserError: it could not.
        """
        what = "ended before it was ready"
        try:
            for line in self._lines_within(STARTING_SECONDS):
                if "error" in (answer := json.loads(line)):
                    raise UserError(f"{answer['error']}")
                return
        except TimeoutError:
            what = f"was not ready after {STARTING_SECONDS:g} seconds"
        raise UserError(
            f"the process for the reward {self._name} {what}; import the module in Python to see "
            "why"
        )

    def ask(self, questions: Sequence[tuple[int, Question]]) -> None:
        """Give it questions; it must have none."""
        self.asked.extend(questions)
        self.since = time.monotonic()
        self._send([[one.prompt, one.completion, json.loads(one.facts)] for _, one in questions])

    def received(self) -> list[bytes] | None:
        """The answers that have come; None if the process has ended."""
        data = os.read(self.output, 1 << 16)
        if not data:
            return None
        self.since = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._input.close()
        self._process.wait()
        self._stdout.close()

    def _send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # that it has ended is seen where it answers
            self._input.write(json.dumps(value).encode() + b"\n")
            self._input.flush()

    def _lines_within(self, seconds: float) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while True:
                if not selector.select(seconds):
                    raise TimeoutError
                if (lines := self.received()) is None:
                    return
                yield from lines
