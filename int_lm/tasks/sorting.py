"""Sorting three to eight digits: the prompt "71394<", the completion "13479"."""

import random

from int_lm.tasks.task import STOP, Example, Task, agreement, answer, letters


def _example(rng: random.Random) -> Example:
    digits = letters(rng, "0123456789", 3, 8)
    return Example(f"{digits}<", {"answer": "".join(sorted(digits))})


def reward(prompt: str, completion: str, facts: dict[str, str]) -> float:
    """Share of the places that have the right digit, in [0, 1]."""
    return agreement(completion, facts)


SORTING = Task("sorting", _example, reward, answer, STOP, about="3 to 8 digits in rising order")
