"""The type of tasks, and the functions with which tasks draw random numbers.

Python guarantees for all its versions that `random.Random` with the same integer seed gives the
same sequence of `random()`. It does not guarantee this for `randrange`, `choice`, `sample` and
`shuffle`. So tasks draw with the functions here, which use `random()` alone. The examples are then
the same on every machine and in every Python.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

STOP = "\n"  # ends the completions of int_lm's own tasks


class Example(NamedTuple):
    """A prompt, and the facts that its judge needs.

    Attributes:
      prompt: text without a zero character, which separates documents.
      facts: a JSON value: None, bool, int, float, str, or lists and dicts of these.
    """

    prompt: str
    facts: Any


class Task(NamedTuple):
    """A generator of prompts without end, and a judge of completions.

    Attributes:
      name: name on the command line.
      example: (random generator) -> an example that depends on the generator alone.
      reward: (prompt, completion, facts) -> a finite number that depends on these alone; higher is
        better. It accepts every text as a completion. Text after the first `stop` has no effect.
      solution: (example, random generator) -> a right completion without `stop`; if there are
        several, one of them.
      stop: text that ends a completion.
      solved: the least reward that counts as solved.
      about: one line for the list of tasks.
    """

    name: str
    example: Callable[[random.Random], Example]
    reward: Callable[[str, str, Any], float]
    solution: Callable[[Example, random.Random], str]
    stop: str
    solved: float = 1.0
    about: str = ""


def below(rng: random.Random, count: int) -> int:
    """A number in [0, count), for count up to 2^32."""
    return int(rng.random() * count)


def between(rng: random.Random, least: int, most: int) -> int:
    """A number in [least, most]."""
    return least + below(rng, most - least + 1)


def choice(rng: random.Random, values: Sequence[T]) -> T:
    """One of the values."""
    return values[below(rng, len(values))]


def letters(rng: random.Random, alphabet: str, least: int, most: int) -> str:
    """A text of `least` to `most` characters of an alphabet."""
    return "".join(choice(rng, alphabet) for _ in range(between(rng, least, most)))


def before_stop(completion: str, stop: str = STOP) -> str:
    """The text that is judged: `completion` up to the first `stop`, or all of it."""
    return completion.partition(stop)[0]


def exact(completion: str, facts: dict[str, str]) -> float:
    """1.0 if the completion is the answer, else 0.0."""
    return float(before_stop(completion) == facts["answer"])


def agreement(completion: str, facts: dict[str, str]) -> float:
    """Share of characters that agree with the answer, in [0, 1]; 1.0 only if all of them do.

    Characters at the same position are compared. Their number is divided by the length of the
    longer text.
    """
    answer, written = facts["answer"], before_stop(completion)
    same = sum(a == b for a, b in zip(answer, written, strict=False))
    return same / max(len(answer), len(written), 1)


def answer(example: Example, rng: random.Random) -> str:
    """The `solution` of tasks that have exactly one right completion."""
    return example.facts["answer"]
