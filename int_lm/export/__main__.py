"""Export a run: `python -m int_lm.export --run DIR --out DIR2`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from int_lm import export, plugins
from int_lm.config import command_line
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, reported

PROGRAM = "int_lm.export"
COMMAND = f"python -m {PROGRAM}"


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, then load the run: a mistake is answered at once.

    Args:
      program: what the help calls this command.
    """
    parser = OneLineParser(
        prog=program,
        description="Write a run's int8 weights, configuration, tokenizer and model card, with a "
        "runtime that needs only NumPy.",
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="run that train.py wrote")
    parser.add_argument("--out", metavar="DIR", required=True, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace an export at --out")
    parser.add_plugin_argument()
    arguments = parser.parse_strict(argv)
    plugins.trust(*arguments.plugin)
    if not Path(arguments.run).is_dir():
        raise UserError(f"no run at {arguments.run}; name the directory that train.py printed")
    export.check_free(arguments.out, arguments.overwrite)

    from int_lm import run  # with JAX, hence after the arguments are known to be sound

    def say(sentence: str) -> None:
        print(sentence, file=sys.stderr)

    opened = run.open_run(arguments.run, arguments.step, say=say)
    export.export_run(opened, arguments.run, arguments.out, overwrite=arguments.overwrite)
    trusted = plugins.flags(plugins.full_names(opened.config, ["architecture"]))
    print(
        f"exported step {opened.step} to {arguments.out}\n"
        f"next: {command_line.command('sample')} --export {arguments.out}{trusted} --prompt 'def '"
    )


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
