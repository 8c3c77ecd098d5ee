"""Computes rewards of completions, in this process or in others.

What the user names as "module:NAME", a function or a task, is called in another process. So its
output cannot mix with the output of this process, and a call that takes too long can be ended. A
task is imported in this process too, for its prompts. The same prompt, completion and facts must
always get the same reward.
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
from typing import Any, NamedTuple, Self

from int_lm import programs
from int_lm.errors import UserError
from int_lm.method.rewards import REWARD_MAX
from int_lm.tune import worker

SHOWN = 60  # characters of a prompt or completion in an error
BATCH = 64  # largest number of completions that a process gets at once
STARTING_SECONDS = 600.0  # longest time that a process may take to import the function


class RewardError(UserError):
    """A reward could not be computed; the message has prompt and completion."""


class Question(NamedTuple):
    """A completion to judge.

    Attributes:
      prompt: the prompt.
      completion: the text that was written after it.
      facts: the facts of the prompt as JSON text, so that questions can be compared and hashed.
    """

    prompt: str
    completion: str
    facts: str


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


class Judge:
    """Computes rewards; a context manager that ends its processes.

    Args:
      name: a shipped task, or "module:function".
      processes: number of processes; 0 to call a shipped task in this process, without `seconds`.
      seconds: longest time of one call in another process; 0 for no limit.

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

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for one in self._workers:
            one.end()
        self._workers = []

    def rewards(self, questions: Sequence[Question]) -> list[float]:
        """The reward of every question. Equal questions are computed each time.

        Raises:
          RewardError: a call raised an exception, returned no number within +-2^14, or took too
            long. The message is about the first such question among those answered so far.
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
        """`rewards` with processes; each has one batch of questions at a time."""
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
        """Wait for answers of any process, at most until a call has taken too long.

        Args:
          selector: of the outputs of the processes.
          answers: by index of the question; new answers are added.

        Raises:
          RewardError: a process has ended, or a call took too long.
        """
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
      asked: (index, question) of the questions that are not answered yet.
      since: time (`time.monotonic`) of the last answer, or of the last batch if that is later.
      output: file descriptor from which answers are read.
    """

    def __init__(self, name: str):
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=programs.environment(),
            start_new_session=True,  # Ctrl-C in a terminal must not reach this process
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._stdout = self._process.stdin, self._process.stdout
        self.output = self._stdout.fileno()
        self._rest = b""
        self.asked: collections.deque[tuple[int, Question]] = collections.deque()
        self.since = 0.0
        self._send(name)

    def begin(self) -> None:
        """Wait until the process has imported the function.

        Raises:
          UserError: the function cannot be imported.
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
        """Send (index, question) pairs to the process, which must have no questions."""
        self.asked.extend(questions)
        self.since = time.monotonic()
        self._send([[one.prompt, one.completion, json.loads(one.facts)] for _, one in questions])

    def received(self) -> list[bytes] | None:
        """Read the answers that have arrived, as lines; None if the process has ended."""
        data = os.read(self.output, 1 << 16)
        if not data:
            return None
        self.since = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._input.close()
        self._process.wait()
        self._stdout.close()

    def _send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # `received` finds that the process has ended
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
