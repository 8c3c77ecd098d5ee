"""How a run ends that prints figures: `int_lm.tune` and `int_lm.control`."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from int_lm import errors
from int_lm.config import command_line


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
      figures: those that --json prints; None if a signal asked the run to stop, and in all
        processes but the first.
      nothing: whether nothing had been left to train.
    """

    figures: dict[str, Any] | None
    nothing: bool


def report(run: Callable[[], Outcome], as_json: bool) -> None:
    """Call `run` and print its figures, if asked to.

    Exits with `errors.EXIT_NOTHING_TO_TRAIN` where that is so, after the figures.
    """
    with command_line.reporting_to_stderr() if as_json else contextlib.nullcontext():
        figures, nothing = run()
    if figures and as_json:
        sys.stdout.write(json.dumps(figures) + "\n")
    if nothing:
        sys.exit(errors.EXIT_NOTHING_TO_TRAIN)
