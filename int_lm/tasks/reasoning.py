"""Tasks of the package `reasoning-gym` (the extra `reasoning`): `reasoning_gym/leg_counting`.

    prompt        the question, and "Answer:" on a line of its own
    completion    the answer; an empty line ends it

The package judges the answers: most of its judges give 1.0 for a right answer and less for others.
The package draws with `randrange`, `choice` and `shuffle`, so another version of Python may give
another example for the same seed.
"""

import functools
import importlib
import importlib.util
import inspect
import math
import random
import re
from collections.abc import Iterator
from typing import Any

from int_lm.errors import UserError, nearest
from int_lm.tasks.task import Example, Task, before_stop, below

PREFIX = "reasoning_gym/"
STOP = "\n\n"
SEEDS = 2**31
KEPT = 4096  # cached entries, so that judging does not make an example again each time
_RUNS_TEXT = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")


def installed() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("reasoning_gym") is not None


def names() -> Iterator[str]:
    """The names of all tasks that can be used; none if the package is not installed."""
    if installed():
        for name, (kind, _) in sorted(_known().items()):
            if name != "composite" and not _runs_answers(kind):
                yield PREFIX + name


def task(name: str, **settings: Any) -> Task:
    """A task of the package.

    Args:
      name: of the data set, without the prefix.
      settings: of the data set, such as `max_animals=5`.

    Raises:
      UserError: the package is not installed or has no such data set or setting; or the judge of
        the data set runs answers as code, which text of a model must not be.
    """
    if not installed():
        raise UserError(
            f"the task {PREFIX}{name} needs the package reasoning-gym; install it with "
            "pip install 'int-lm[reasoning]'"
        )
    known = _known()
    if name not in known:
        suggestion = nearest(name, sorted(known), otherwise="")
        raise UserError(f"reasoning-gym has no data set {name}{suggestion}")
    if _runs_answers(known[name][0]):
        raise UserError(
            f"the judge of {PREFIX}{name} runs answers as Python code, which text of a model must "
            "not be; choose another data set"
        )
    try:
        _dataset(name, 0, settings)
    except Exception as error:
        raise UserError(f"reasoning-gym cannot make {name} with {settings}: {error}") from error

    @functools.lru_cache(maxsize=KEPT)
    def entry(seed: int) -> tuple[Any, dict[str, Any]]:
        dataset = _dataset(name, seed, settings)
        return dataset, dataset[0]

    def example(rng: random.Random) -> Example:
        seed = below(rng, SEEDS)
        question = entry(seed)[1]["question"].replace("\0", " ").rstrip()
        return Example(f"{question}\nAnswer:\n", {"seed": seed})

    def reward(prompt: str, completion: str, facts: dict[str, int]) -> float:
        dataset, found = entry(facts["seed"])
        try:
            reward = float(dataset.score_answer(before_stop(completion, STOP).strip(), found))
        except Exception:  # the judge cannot handle the answer
            return 0.0
        return reward if math.isfinite(reward) else 0.0

    def solution(example: Example, rng: random.Random) -> str:
        answer = entry(example.facts["seed"])[1]["answer"]
        if not isinstance(answer, str):
            raise UserError(f"{PREFIX}{name} judges answers but knows none: no text to pretrain on")
        return answer

    return Task(PREFIX + name, example, reward, solution, STOP, about="of reasoning-gym")


def _known() -> dict[str, Any]:
    """The package's data sets, (class, class of the configuration) by name."""
    return _package().factory.DATASETS


def _dataset(name: str, seed: int, settings: dict[str, Any]) -> Any:
    """A data set of one entry."""
    return _package().create_dataset(name, size=1, seed=seed, **settings)


def _package() -> Any:
    """The package, imported when first needed: it registers a hundred data sets."""
    return importlib.import_module("reasoning_gym")


def _runs_answers(kind: type) -> bool:
    """Whether the method `score_answer` of a data set calls what evaluates text as code.

    Its own source alone is looked at. In version 0.1.25, no function that one of them calls
    evaluates an answer.
    """
    return _RUNS_TEXT.search(inspect.getsource(kind.score_answer)) is not None  # type: ignore[attr-defined]
