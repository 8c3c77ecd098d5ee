"""Copying three to eight letters: the prompt "hqva;", the completion "hqva"."""

import random
import string

from int_lm.tasks.task import STOP, Example, Task, agreement, answer, letters


def _example(rng: random.Random) -> Example:
    text = letters(rng, string.ascii_lowercase, 3, 8)
    return Example(f"{text};", {"answer": text})


def reward(prompt: str, completion: str, facts: dict[str, str]) -> float:
    """Share of the places that have the right letter, in [0, 1]."""
    return agreement(completion, facts)


COPYING = Task("copying", _example, reward, answer, STOP, about="3 to 8 letters once more")
