"""A task of its own: whether a binary number has an odd number of ones."""

import random
from typing import Any

from int_lm.tasks import Example, Task


def _example(rng: random.Random) -> Example:
    bits = "".join("01"[rng.random() < 0.5] for _ in range(8))
    return Example(f"{bits}?", {"odd": bits.count("1") % 2 == 1})


def _solution(example: Example, rng: random.Random) -> str:
    return "odd" if example.facts["odd"] else "even"


def reward(prompt: str, completion: str, facts: Any) -> float:
    """1.0 for the right word, else 0.0."""
    return float(completion.split("\n")[0] == ("odd" if facts["odd"] else "even"))


PARITY = Task("parity", _example, reward, _solution, stop="\n")
