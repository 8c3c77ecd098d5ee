"""Draw the curves of one or several runs, out of their metrics.jsonl.

    python -m int_lm.plot runs/quickstart --out curves.png
    python -m int_lm.plot runs/a runs/b --x seconds --log x --smooth 10 --out curves.svg
    python -m int_lm.plot runs/a --metric vote_agreement/head changed --out curves.png

Without --metric there is a panel for all that the runs have: bits per byte of the training text
and the held-out text, rewards, agreement of votes, entropy of activations, share of weights moved.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from int_lm import errors, plot
from int_lm.config import command_line
from int_lm.errors import require
from int_lm.files import atomic
from int_lm.plot import picture

COMMAND = "python -m int_lm.plot"


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
    parser.add_argument("run", nargs="+", type=Path, metavar="DIR", help="run directories")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture: .png, .svg or .pdf"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the picture, if it is there"
    )
    parser.add_argument(
        "--x", choices=plot.ABSCISSAS, default="step", help="the horizontal axis (default: step)"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=[],
        metavar="NAME",
        help="draw these metrics only, each in a panel; NAME/PART is one tensor's or layer's",
    )
    parser.add_argument(
        "--log", nargs="+", choices=("x", "y"), default=[], help="axes that are logarithmic"
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="draw means of the last N values of what every row has; the values stay, pale",
    )
    parser.add_argument(
        "--label", nargs="+", metavar="NAME", help="names of the runs (default: their directories)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: a summary of what is drawn"
    )
    arguments = parser.parse_strict(argv)
    require(arguments.smooth >= 1, f"--smooth is {arguments.smooth}, must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Draw.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parse(argv, program)
    picture.check(arguments.out)
    atomic.check_free(arguments.out, overwrite=arguments.overwrite)
    picture.pyplot()
    runs = plot.read(arguments.run, arguments.label)
    panels = plot.panels(runs, arguments.metric)
    drawn = plot.curves(runs, panels, arguments.x, arguments.smooth)
    require(
        any(drawn),
        f"no row has both {arguments.x} and one of the metrics; choose another --x",
    )
    figure = picture.draw(panels, drawn, arguments.x, arguments.log)
    picture.save(figure, arguments.out)
    if arguments.json:
        found = {"out": str(arguments.out), "x": arguments.x, "runs": plot.summary(runs, drawn)}
        print(json.dumps(found))
        return
    print(f"wrote {arguments.out}: {', '.join(panel.title for panel in panels)}")


if __name__ == "__main__":
    with errors.reported("int_lm.plot"):
        main()
