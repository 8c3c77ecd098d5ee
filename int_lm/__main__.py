"""The command `int-lm`, also `python -m int_lm`: one verb for every program.

    int-lm train --config quickstart
    int-lm eval --run runs/quickstart

Every verb is the program of that name, which can also be started by itself in a clone.
"""

import sys
from collections.abc import Sequence

from int_lm import programs
from int_lm.errors import UserError, reported

PROGRAM = "int-lm"
# verb: the module whose `main` it is, the arguments that it begins with, and what it does
VERBS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": ("train", (), "pretrain a model, or go on where a run stopped"),
    "plan": ("train", ("--plan",), "what a training would cost: weights, memory, time"),
    "tune": ("int_lm.tune.__main__", (), "go on from weights with a reward as objective"),
    "control": ("int_lm.control.__main__", (), "train a policy in an environment from nothing"),
    "eval": ("eval", (), "bits per byte of held-out or any other text, beside baselines"),
    "harness": ("int_lm.harness.__main__", (), "measure on tasks of lm-evaluation-harness"),
    "sample": ("int_lm.sample.__main__", (), "continue a prompt"),
    "serve": ("int_lm.serve.__main__", (), "answer completions over HTTP, with a page to try it"),
    "compress": ("int_lm.compress.__main__", (), "compress a file with an export, or undo it"),
    "doctor": ("int_lm.doctor.__main__", (), "examine this machine, and say what to mend"),
    "plot": ("int_lm.plot.__main__", (), "draw the curves of one or several runs"),
    "export": (
        "int_lm.export.__main__",
        (),
        "write a run's model for the NumPy runtime, or to the hub",
    ),
    "verify": ("int_lm.verify.__main__", (), "compute steps of a run again and compare hashes"),
    "prepare": ("data.prepare", (), "write the token shards that training reads"),
    "gather": ("data.gather", (), "text from this machine's own packages, to pretrain on"),
    "train-tokenizer": ("tokenization.train", (), "train a SentencePiece tokenizer"),
    "inspect-tokenizer": ("tokenization.inspect", (), "look at a tokenizer and check it on text"),
    "tasks": ("int_lm.tasks.__main__", (), "list tasks, show examples, write text to pretrain on"),
    "build-kernels": ("int_lm.native.__main__", (), "compile the kernels for this machine's CPU"),
}
# what people look for among the verbs, and how it is started in a clone
IN_A_CLONE = {
    "benchmark": "python benchmarks/throughput.py",
    "benchmarks": "python benchmarks/throughput.py",
    "make": "make train",
    "test": "make test",
    "tests": "make test",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Start the program that the first argument names, with the arguments after it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with reported(PROGRAM):
        verb = arguments.pop(0) if arguments else ""
        if verb in ("-h", "--help"):
            print(_help())
            return
        if verb == "--version":
            print(f"int_lm {programs.version()}")
            return
        _check(verb)
    module, first, _ = VERBS[verb]
    program = f"{PROGRAM} {verb}"
    with reported(program):
        if verb == "build-kernels":
            _parse_nothing(arguments, program)  # its own main takes no arguments
            programs.load(module).main()
        else:
            programs.load(module).main([*first, *arguments], program=program)


def _help() -> str:
    """What `--help` prints."""
    width = max(map(len, VERBS))
    lines = (f"  {verb:<{width}}  {does}" for verb, (_, _, does) in VERBS.items())
    return "\n".join(
        (
            f"usage: {PROGRAM} VERB [ARGUMENTS]",
            "",
            "Pretrain int8 recurrent language models in integers, and use them.",
            "",
            *lines,
            "",
            f"{PROGRAM} VERB --help shows a verb's arguments; --version shows the version.",
            "Benchmarks, tests and the Makefile are in the repository (a clone), not in a package.",
        )
    )


def _check(verb: str) -> None:
    """Refuse, with a `UserError`, what is not a verb."""
    if verb in VERBS:
        return
    if verb in IN_A_CLONE:
        raise UserError(f"{verb} needs a clone of the repository; run there: {IN_A_CLONE[verb]}")
    from int_lm.errors import nearest

    if not verb or verb.startswith("-"):
        found = f"{verb} stands before a verb" if verb else "no verb is given"
        raise UserError(f"{found}; {PROGRAM} --help lists the verbs")
    suggestion = nearest(verb, list(VERBS), otherwise="")
    raise UserError(f"unknown verb {verb}{suggestion} ({PROGRAM} --help lists them)")


def _parse_nothing(arguments: Sequence[str], program: str) -> None:
    """Show the help of `build-kernels`, or refuse arguments, of which it has none."""
    from int_lm.config.command_line import OneLineParser

    OneLineParser(
        prog=program,
        description="Compile the kernels for CPUs with the machine's C++ compiler, once. Without "
        "one nothing is lost but speed: JAX computes the same bits.",
    ).parse_strict(arguments)


if __name__ == "__main__":
    main()
