"""Countdown: reach a target from given numbers with + - * / and parentheses.

    prompt        3 5 7>26:        numbers in rising order, then the target
    completion    3*7+5            every number once, in any order

Numbers are from 1 to 12, targets from 1 to 99. Every target can be reached by an expression whose
intermediate results are whole numbers. The judge computes with fractions: 8/(3-8/3) is exactly 24.
As in the judge of TinyZero (https://github.com/Jiayi-Pan/TinyZero), every number must be used
exactly once.

A model can write any text as a completion. The judge parses it and never runs it. It checks length
and characters before it calls Python's parser, and the numbers before it computes the value.
"""

import ast
import functools
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from int_lm.tasks.task import STOP, Example, Task, before_stop, between, choice

LARGEST = 12  # largest number of a prompt
TARGETS = range(1, 100)
KEPT = 4  # number of the shortest solutions of a target that are kept
LONGEST = 64  # characters of an expression, at most
WELL_FORMED, RIGHT_NUMBERS = 0.1, 0.2  # graded rewards of expressions with another value
_CHARACTERS = re.compile(r"[0-9+\-*/() ]+")
_LONG_NUMBER = re.compile(r"[0-9]{4}")
_OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def parse(text: str) -> ast.expr | None:
    """The tree of an expression of numbers, + - * / and parentheses; None for any other text.

    None is also returned for signs (-3), powers, floor divisions and numbers of more than three
    digits.
    """
    text = text.strip(" ")
    if len(text) > LONGEST or not _CHARACTERS.fullmatch(text) or _LONG_NUMBER.search(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            if type(node.op) not in _OPERATIONS:
                return None
        elif not isinstance(node, ast.Constant | ast.operator):
            return None
    return tree


def numbers_of(tree: ast.expr) -> list[int]:
    """The numbers in an expression, in rising order."""
    return sorted(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))  # type: ignore[type-var]


def value_of(tree: ast.expr) -> Fraction | None:
    """The exact value of a parsed expression; None if it divides by zero."""
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)  # type: ignore[arg-type]
    assert isinstance(tree, ast.BinOp)
    left, right = value_of(tree.left), value_of(tree.right)
    if left is None or right is None:
        return None
    match _OPERATIONS[type(tree.op)]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right if right else None


def reward(prompt: str, completion: str, facts: dict[str, Any]) -> float:
    """1.0 for an expression that uses every number once and has the value of the target, else 0."""
    return float(graded(prompt, completion, facts) == 1.0)


def graded(prompt: str, completion: str, facts: dict[str, Any]) -> float:
    """1.0 as `reward`; 0.2 for an expression with the right numbers, 0.1 for any other, else 0."""
    tree = parse(before_stop(completion))
    if tree is None:
        return 0.0
    if numbers_of(tree) != sorted(facts["numbers"]):
        return WELL_FORMED
    return 1.0 if value_of(tree) == facts["target"] else RIGHT_NUMBERS


# -- Problems, and solutions of them ---------------------------------------------------------------

# value, text, and how tightly the text binds: 0 for a sum or a difference, 1 for a product or a
# quotient, 2 for a number
_Term = tuple[int, str, int]


def _binary(left: _Term, operation: str, right: _Term, value: int) -> _Term:
    """The term that joins two others, with the parentheses that it needs."""
    binds = 0 if operation in "+-" else 1
    a = left[1] if left[2] >= binds else f"({left[1]})"
    b = right[1] if right[2] >= binds + (operation in "-/") else f"({right[1]})"
    return value, f"{a}{operation}{b}", binds


def _joined(a: _Term, b: _Term) -> list[_Term]:
    """All terms that join two others and whose values are whole numbers."""
    found = [_binary(a, "+", b, a[0] + b[0]), _binary(a, "*", b, a[0] * b[0])]
    for left, right in ((a, b), (b, a)):
        found.append(_binary(left, "-", right, left[0] - right[0]))
        if right[0] and left[0] % right[0] == 0:
            found.append(_binary(left, "/", right, left[0] // right[0]))
    return found


@functools.cache  # at most 364 entries of three numbers and 1365 of four
def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """By target that the numbers can reach, its shortest expressions; both in a fixed order."""
    found: dict[int, set[str]] = {}

    def search(terms: Sequence[_Term]) -> None:
        if len(terms) == 1:
            value, text, _ = terms[0]
            if value in TARGETS:
                found.setdefault(value, set()).add(text)
            return
        for j in range(1, len(terms)):
            for i in range(j):
                others = [term for k, term in enumerate(terms) if k not in (i, j)]
                for joined in _joined(terms[i], terms[j]):
                    search([*others, joined])

    search([(number, str(number), 2) for number in numbers])
    return {
        target: sorted(found[target], key=lambda text: (len(text), text))[:KEPT]
        for target in sorted(found)
    }


def _example(counts: Sequence[int], rng: random.Random) -> Example:
    while True:
        numbers = sorted(between(rng, 1, LARGEST) for _ in range(choice(rng, counts)))
        reached = solutions(tuple(numbers))
        if reached:
            target = choice(rng, list(reached))
            prompt = f"{' '.join(map(str, numbers))}>{target}:"
            return Example(prompt, {"numbers": numbers, "target": target})


def _solution(example: Example, rng: random.Random) -> str:
    return choice(rng, solutions(tuple(example.facts["numbers"]))[example.facts["target"]])


def _task(name: str, counts: Sequence[int], *, is_graded: bool = False) -> Task:
    among = " or ".join(map(str, counts))
    about = f"an expression of {among} numbers with a given value"
    return Task(
        name=name,
        example=functools.partial(_example, counts),
        reward=graded if is_graded else reward,
        solution=_solution,
        stop=STOP,
        about=about + (", with rewards for its form" if is_graded else ""),
    )


COUNTDOWN3 = _task("countdown3", (3,))
COUNTDOWN4 = _task("countdown4", (4,))
COUNTDOWN = _task("countdown", (3, 4))
COUNTDOWN3_GRADED = _task("countdown3_graded", (3,), is_graded=True)
COUNTDOWN4_GRADED = _task("countdown4_graded", (4,), is_graded=True)
COUNTDOWN_GRADED = _task("countdown_graded", (3, 4), is_graded=True)
