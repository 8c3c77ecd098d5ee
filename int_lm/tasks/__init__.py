"""Tasks: prompts without end, a judge of completions, and text to pretrain on.

    task = tasks.of("countdown3")
    prompt, facts = tasks.training(task, seed=0, index=17)
    task.reward(prompt, "3*7+5\n", facts)

All results depend on names, seeds and indices alone and are the same on every machine. Nothing uses
a clock or Python's own hashes, and random numbers come from the functions of `int_lm.tasks.task`.

A prompt belongs to training or is held out. This depends on its own bytes alone (`is_held_out`). So
training and pretraining text never have a held-out prompt, for any seed. Tasks that draw examples
in the same way, such as countdown and countdown_graded, have the same examples under the same
numbers.

Nothing here imports JAX or NumPy.
"""

import hashlib
import random

from int_lm import plugins
from int_lm.errors import UserError
from int_lm.tasks import reasoning
from int_lm.tasks.task import Example as Example, Task as Task

HELD_OUT_SHARE = 5  # one of five prompts is held out
TRIES = 10_000  # draws without a new example after which the search stops


def names() -> list[str]:
    """The names of int_lm's tasks and of installed ones, without those of `reasoning.names`."""
    return plugins.names("task")


def of(name: str) -> Task:
    """The task of a name.

    Args:
      name: of a task of int_lm or an installed one, `reasoning_gym/NAME`, or `module:name`.

    Raises:
      UserError: there is no such task, or it is code outside int_lm that is not trusted
        (`plugins.trust`).
    """
    if name.startswith(reasoning.PREFIX):
        return reasoning.task(name.removeprefix(reasoning.PREFIX))
    return plugins.resolve("task", name, Task)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is held out; about one of five is."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def training(task: Task, seed: int, index: int) -> Example:
    """A training example; its prompt is never held out. Different numbers may have equal examples.

    Args:
      task: the task.
      seed: another seed gives other examples.
      index: number of the example.

    Raises:
      UserError: the task has no prompt for training.
    """
    rng = generator("training", seed, index)
    for _ in range(TRIES):
        example = task.example(rng)
        if not is_held_out(example.prompt):
            return example
    raise UserError(f"the task {task.name} has too few prompts: all that are drawn are held out")


def held_out(task: Task, count: int) -> list[Example]:
    """The first `count` held-out examples, all with different prompts.

    Raises:
      UserError: the task has fewer held-out prompts.
    """
    rng = generator("held out")
    found: dict[str, Example] = {}
    since = 0
    while len(found) < count:
        example, since = task.example(rng), since + 1
        if is_held_out(example.prompt) and example.prompt not in found:
            found[example.prompt], since = example, 0
        elif since == TRIES:
            raise UserError(
                f"{count} held-out prompts of {task.name} are asked for, {len(found)} were found"
            )
    return list(found.values())


def text(task: Task, seed: int, index: int) -> str:
    """A text to pretrain on: the prompt of `training`, a right completion, and the stop."""
    example = training(task, seed, index)
    solution = task.solution(example, generator("solution", seed, index))
    return example.prompt + solution + task.stop


def generator(*key: str | int) -> random.Random:
    """The random generator of a key. Generators of different keys are independent."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))
