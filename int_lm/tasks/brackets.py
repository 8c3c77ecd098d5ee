"""Closing brackets: the prompt "{[()(:", the completion ")]}".

A prompt has at least one open bracket at its end, and at most `DEEPEST` of them at any place.
"""

import random

from int_lm.tasks.task import STOP, Example, Task, agreement, answer, below, between, choice

PAIRS = {"(": ")", "[": "]", "{": "}"}
SHORTEST, LONGEST, DEEPEST = 3, 12, 6  # brackets of a prompt


def _example(rng: random.Random) -> Example:
    text, opened = "", []
    length = between(rng, SHORTEST, LONGEST)
    while len(text) < length or not opened:
        if not opened or (len(opened) < DEEPEST and below(rng, 3)):
            opened.append(choice(rng, list(PAIRS)))
            text += opened[-1]
        else:
            text += PAIRS[opened.pop()]
    return Example(f"{text}:", {"answer": "".join(PAIRS[bracket] for bracket in reversed(opened))})


def reward(prompt: str, completion: str, facts: dict[str, str]) -> float:
    """Share of the places that have the right bracket, in [0, 1]."""
    return agreement(completion, facts)


BRACKETS = Task(
    "brackets", _example, reward, answer, STOP, about="the brackets that close 3 to 13 others"
)
