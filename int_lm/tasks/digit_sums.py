"""Sums of two to six digits: the prompt "3+8+5=", the completion "16"."""

import random

from int_lm.tasks.task import STOP, Example, Task, answer, exact, letters


def _example(rng: random.Random) -> Example:
    digits = letters(rng, "0123456789", 2, 6)
    return Example(f"{'+'.join(digits)}=", {"answer": str(sum(map(int, digits)))})


def reward(prompt: str, completion: str, facts: dict[str, str]) -> float:
    """1.0 for the sum, else 0.0."""
    return exact(completion, facts)


DIGIT_SUMS = Task("digit_sums", _example, reward, answer, STOP, about="the sum of 2 to 6 digits")
