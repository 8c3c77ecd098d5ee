"""A process that computes rewards: JSON lines in, JSON lines out, until its input ends.

    in   "package.module:function"                        the first line
    out  {} or {"error": why the function cannot be used}
    in   [[prompt, completion, facts], ...]               any number of times
    out  {"reward": r} or {"error": what happened}        for each completion, in order

The output of the function goes to stderr, so that it cannot mix with the results.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from int_lm import plugins, tasks
from int_lm.errors import UserError
from int_lm.tasks import Task

SHOWN = 200  # characters of an error message
SECONDS_BEHIND = 1.0  # that this process lives longer than its parent, at most


def function_of(name: str) -> Callable[..., Any]:
    """The reward function of a task, or the function that "module:function" names.

    Raises:
      UserError: the function cannot be imported, or the name is not one of a function.
    """
    if plugins.is_full(name):
        found = plugins.attribute(name, f"the reward {name}")
        if isinstance(found, Task):
            return found.reward
        if not callable(found):
            kind = type(found).__name__
            raise UserError(f"the reward {name} is of type {kind}, expected a function")
        return found
    return tasks.of(name).reward


def judged(function: Callable[..., Any], prompt: str, completion: str, facts: Any) -> dict:
    """Call a reward function: {"reward": a finite number}, or {"error": what happened instead}."""
    try:
        value = function(prompt, completion, facts)
    except Exception as error:
        reason = " ".join(str(error).split())[:SHOWN]
        return {"error": f"raised {type(error).__name__}{f': {reason}' if reason else ''}"}
    if not hasattr(value, "__float__"):
        return {"error": f"returned {value!r:.{SHOWN}}, which is no number"}
    try:
        number = float(value)
    except Exception:
        return {"error": f"returned a value of type {type(value).__name__}, which is no number"}
    if not math.isfinite(number):
        return {"error": f"returned {number}, which is no finite number"}
    return {"reward": number}


def end_with(parent: int) -> None:
    """End this process soon after its parent, also during a call, and however that has ended."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BEHIND)
    os._exit(0)


def main() -> None:
    """Answer questions until the parent process closes the input."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # from here on, output of `print` and of C libraries goes to stderr
    questions = sys.stdin

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        function = function_of(json.loads(questions.readline()))
    except UserError as error:
        say({"error": str(error)})
        return
    except Exception as error:
        say({"error": f"the reward cannot be imported: {type(error).__name__}: {error}"})
        return
    say({})
    for line in questions:
        for prompt, completion, facts in json.loads(line):
            say(judged(function, prompt, completion, facts))


if __name__ == "__main__":
    main()
