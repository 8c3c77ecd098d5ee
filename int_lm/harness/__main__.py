"""Tasks of lm-evaluation-harness: `python -m int_lm.harness --export DIR --tasks NAME`."""

import argparse
import os
import sys
from collections.abc import Sequence

from int_lm import cache, harness
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, reported

PROGRAM = "int_lm.harness"
COMMAND = f"python -m {PROGRAM}"
DEBUG = "LMEVAL_LOG_LEVEL"  # lm_eval's own variable: with DEBUG, its errors come with a traceback


def parser(program: str = COMMAND) -> OneLineParser:
    """The parser of the arguments that are not lm_eval's."""
    result = OneLineParser(
        prog=program,
        usage=f"{program} (--run DIR | --export DIR) --tasks NAME ... [arguments of lm_eval]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a run or an export on tasks of lm-evaluation-harness (the package\n"
        "lm_eval, which the extra `harness` installs).",
        epilog="All other arguments are those of `lm_eval run`, among them\n"
        "  --tasks NAME ...     tasks, groups or YAML files\n"
        "  --include_path DIR   a directory of your own tasks, as YAML files\n"
        "  --num_fewshot N, --limit N, --output_path DIR, --log_samples, --use_cache PATH\n"
        "`lm_eval run --help` has all of them, `lm_eval ls tasks` the tasks. Most tasks download\n"
        "their texts; HF_HUB_OFFLINE=1 uses only what is here.",
    )
    result.add_model_arguments()
    result.add_argument(
        "--no_end",
        action="store_true",
        help="do not count the end of documents, as most models of the harness do not",
    )
    result.add_plugin_argument()
    return result


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Start lm_eval's own command with this model.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    own, rest = parser(program).parse_some(argv)
    for name in ("--model", "--model_args", "-M", "-a", "--device"):
        if any(text.split("=")[0] == name for text in rest):
            raise UserError(f"{name} is not for this command; --run or --export says which model")
    if own.run:
        cache.keep()  # what JAX compiles
    harness.load_adapter()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    before, sys.argv = sys.argv, ["lm_eval", "run", *rest]  # lm_eval reads no other arguments
    try:
        command = HarnessCLI()
        arguments = command.parse_args()
    finally:
        sys.argv = before
    settings = {"export": own.export, "run": own.run, "step": own.step, "plugin": own.plugin}
    arguments.model = "int_lm"
    arguments.model_args = {name: value for name, value in settings.items() if value}
    arguments.model_args["end"] = not own.no_end
    try:
        command.execute(arguments)
    except (ValueError, LookupError, TypeError, OSError) as error:
        if os.environ.get(DEBUG, "").upper() == "DEBUG":
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"lm_eval stopped with {type(error).__name__}: {first[:300]}; check --tasks and "
            f"--include_path ({DEBUG}=DEBUG shows where)"
        ) from error


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
