"""Tasks: `python -m int_lm.tasks` lists them, shows examples and writes text to pretrain on."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from int_lm import plugins, progress, tasks
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, counted, reported
from int_lm.files import atomic
from int_lm.tasks import Task, reasoning

PROGRAM = "int_lm.tasks"
COMMAND = f"python -m {PROGRAM}"
SHOWN = 10  # examples, if no number is given
AT_ONCE = 1000  # examples between two moves of the progress bar


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """List the tasks, or print or write examples of some tasks.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = _parser(program).parse_strict(argv)
    if not arguments.names:
        if arguments.out or arguments.held_out or arguments.examples is not None:
            raise UserError(f"name a task; {program} lists them")
        _list()
        return
    plugins.trust(*arguments.names)
    chosen = [tasks.of(name) for name in arguments.names]
    count = SHOWN if arguments.examples is None else arguments.examples
    if count < 1:
        raise UserError(f"--examples is {count}, must be at least 1")
    if arguments.held_out:
        rows = _held_out(chosen, count)
    else:
        rows = _training(chosen, count, arguments.seed)
    if not arguments.out:
        for row in rows:
            print(row["text"].rstrip("\n") if "text" in row else json.dumps(row))
        return
    out = Path(arguments.out)
    if out.suffix != ".jsonl":
        raise UserError(f"--out is {out}, expected the name of a file of JSON lines, *.jsonl")
    if arguments.examples is None:
        raise UserError(f"how many examples {out} is to hold is not said; add --examples N")
    atomic.check_free(out, overwrite=arguments.overwrite)
    size = _write(out, rows, count)
    print(f"{out}: {counted(count, 'example')} of {', '.join(arguments.names)}, {size:,} bytes")


def _parser(program: str) -> OneLineParser:
    """The parser of the command line."""
    result = OneLineParser(
        prog=program,
        description="Without NAME: list the tasks, each with an example. With NAME: print examples "
        "or write them to --out as JSON lines, which train.py --data.path FILE pretrains on: each "
        "has a field `text`, a prompt with a right completion. No text has a prompt that is held "
        "out. The same arguments write the same bytes on every machine.",
    )
    result.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a task; several take turns. Ours, installed ones, reasoning_gym/NAME with the extra "
        "`reasoning`, or module:name, code of yours",
    )
    result.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help=f"how many (default: {SHOWN} to print; --out needs it)",
    )
    result.add_argument("--out", metavar="FILE", help="write to this file, *.jsonl")
    result.add_argument(
        "--overwrite", action="store_true", help="replace the file, if there is one"
    )
    result.add_argument(
        "--seed", type=int, default=0, help="another seed draws others (default: %(default)s)"
    )
    result.add_argument(
        "--held_out",
        action="store_true",
        help="instead of text: the first N held-out prompts, with `prompt`, `facts` "
        "and `solution`; the seed has no effect on them",
    )
    return result


def _list() -> None:
    """Print a line for every task, and how to use others."""
    shown = []
    for name in tasks.names():
        task = tasks.of(name)
        shown.append((name, tasks.text(task, 0, 0).strip(), task.about))
    name_width, text_width = (max(len(row[column]) for row in shown) for column in (0, 1))
    for name, example, about in shown:
        print(f"{name:<{name_width}}  {example:<{text_width}}  {about}")
    more = list(reasoning.names())
    if more:
        print(f"\n{len(more)} of reasoning-gym:")
        print("\n".join(more))
    else:
        print("\nreasoning_gym/NAME: after pip install 'int-lm[reasoning]'")
    print("module:name: a task of your own (docs/rewards.md)")


def _training(chosen: Sequence[Task], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of pretraining text; the tasks take turns."""
    for index in range(count):
        yield {"text": tasks.text(chosen[index % len(chosen)], seed, index)}


def _held_out(chosen: Sequence[Task], count: int) -> Iterator[dict[str, Any]]:
    """Rows of held-out examples, `count` of all tasks together; the tasks take turns."""
    each = [tasks.held_out(task, -(-count // len(chosen))) for task in chosen]
    for index in range(count):
        task, number = chosen[index % len(chosen)], index // len(chosen)
        example = each[index % len(chosen)][number]
        solution = task.solution(example, tasks.generator("solution", "held out", number))
        yield {"prompt": example.prompt, "facts": example.facts, "solution": solution}


def _write(out: Path, rows: Iterator[dict[str, Any]], count: int) -> int:
    """Write JSON lines under a temporary name, then rename the file; returns its size in bytes."""
    try:
        with progress.bar("examples", count) as update, atomic.replacement(out) as file:
            for number, row in enumerate(rows, start=1):
                file.write(json.dumps(row).encode() + b"\n")
                if number % AT_ONCE == 0:
                    update(AT_ONCE)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose another --out, or make room there"
        ) from error
    return out.stat().st_size


if __name__ == "__main__":
    with reported(PROGRAM):
        main(sys.argv[1:])
