"""Examine this machine: versions, devices, kernels, speed, memory, disk, caches, the hub.

    python -m int_lm.doctor
    python -m int_lm.doctor --run runs/quickstart --json

It ends with what to mend, in plain sentences. The exit code is 1 if there is something that needs
you, and 0 otherwise. Nothing is changed; a file of 64 MB is written and removed beside the runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from int_lm import doctor, errors
from int_lm.config import command_line

COMMAND = "python -m int_lm.doctor"
EXIT_NEEDS_YOU = 1


def parse(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The parsed command line.

    Raises:
      UserError: a mistake in the arguments.
    """
    parser = command_line.OneLineParser(
        prog=program,
        description=command_line.started_as(__doc__, COMMAND, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs are, or are to be: its disk is examined (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_strict(argv)


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Examine, print, and end with the exit code.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parse(argv, program)
    answers = doctor.examined(arguments.run, command_line.command("build-kernels"))
    found = doctor.findings(answers)
    if arguments.json:
        print(json.dumps(answers | {"findings": [finding._asdict() for finding in found]}))
    else:
        print(*doctor.lines(answers), sep="\n")
        print()
        for finding in found:
            print(f"{'to do' if finding.needs_you else 'note'}: {finding.sentence}")
        if not any(finding.needs_you for finding in found):
            print("nothing needs you")
    if any(finding.needs_you for finding in found):
        sys.exit(EXIT_NEEDS_YOU)


if __name__ == "__main__":
    with errors.reported("int_lm.doctor"):
        main()
