"""The reports of a run: rows for `metrics.jsonl`, and lines, tables and samples on the console.

Lines go to stdout. The progress bar goes to stderr if stderr is a terminal. Numbers arrive here
ready to be shown, so floats are allowed here.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tqdm import tqdm

from int_lm import errors, progress

Cells = list[tuple[str, int, str]]  # of one line: (title, width, text) of every column

_HEADER_EVERY = 20  # lines below each header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """The figures that every line of the log has.

    Attributes:
      step: number of updates done.
      changed: fraction of the weights that the last step moved.
      saturated: fraction of the weights whose value is -127 or 127.
      tokens_per_second: of all members, over the time of steps alone, after the previous report.
      seconds: of training so far, earlier processes and all work between the steps included.
      weights_hash: hex digest of the weights.
    """

    SPEED: ClassVar[str] = "tokens/s"  # title of `tokens_per_second`

    step: int
    changed: float
    saturated: float
    tokens_per_second: float
    seconds: float
    weights_hash: str

    def measured(self) -> Cells:
        """The cells after the step: figures that depend on the kind of training."""
        return []

    def cells(self, left: str) -> Cells:
        """(title, width, text) of every column; `left` is the time left, as text."""
        return [
            ("step", 8, str(self.step)),
            *self.measured(),
            ("changed", 8, f"{self.changed:.3%}"),
            ("saturated", 9, f"{self.saturated:.3%}"),
            (self.SPEED, 11, f"{self.tokens_per_second:,.0f}"),
            ("elapsed", 8, clock(self.seconds)),
            ("left", 8, left),
            ("weights", 16, self.weights_hash[:16]),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Standing):
    """One line of the log of training on text.

    Attributes:
      train_bits_per_byte: of the population, on the tokens of this step; None if the objective is
        not a log-likelihood.
      train_score: mean score of a member in this step; None if the objective is a log-likelihood.
      valid_bits_per_byte: of the bare model on held-out text; None if it was not evaluated.
    """

    train_bits_per_byte: float | None
    train_score: float | None
    valid_bits_per_byte: float | None

    def measured(self) -> Cells:
        train, score = self.train_bits_per_byte, self.train_score
        return [
            ("score", 9, f"{score:.6g}") if train is None else ("train bpb", 9, f"{train:.4f}"),
            ("valid bpb", 9, _four_digits(self.valid_bits_per_byte)),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardReport(Standing):
    """One line of the log of tuning.

    Attributes:
      reward_mean: mean reward of the completions that the population wrote in this step.
      reward_best: the largest of these rewards.
      solved: share of these completions that count as solved.
      heldout_reward: mean reward of the bare model on held-out prompts; None if not evaluated.
      heldout_solved: share of these answers that count as solved; None likewise.
    """

    reward_mean: float
    reward_best: float
    solved: float
    heldout_reward: float | None
    heldout_solved: float | None

    def measured(self) -> Cells:
        held_out = self.heldout_solved
        return [
            ("reward", 9, f"{self.reward_mean:.4f}"),
            ("best", 9, f"{self.reward_best:.4g}"),
            ("solved", 8, f"{self.solved:.2%}"),
            ("held out", 9, _four_digits(self.heldout_reward)),
            ("solved", 8, "" if held_out is None else f"{held_out:.2%}"),
        ]


def row(report: Standing) -> dict[str, Any]:
    """A report as a row of metrics; values that are None are left out."""
    found = dataclasses.asdict(report)
    return {name: value for name, value in found.items() if value is not None}


class Console:
    """Lines on stdout and, on a terminal, a progress bar on stderr; a context manager.

    Args:
      steps: the run stops after this many steps.
      seconds: the run stops after this many seconds of training if that is earlier; 0: no limit.
      quiet: print nothing, because another process of the run reports it.
    """

    def __init__(self, *, steps: int, seconds: float, quiet: bool = False):
        self._quiet = quiet
        self._steps = steps
        self._seconds = seconds
        self._start: tuple[int, float] | None = None  # where the measurement of speed begins
        self._lines_until_header = 0
        self._bar = tqdm(
            total=1.0,
            file=sys.stderr,
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {desc}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the progress bar, and what was printed if it cannot be written (a full disk)."""
        self._bar.close()
        errors.drop_output()

    def advance(self, step: int, seconds: float) -> None:
        """Move the progress bar; call it at every step, with the values of `Standing`."""
        if self._start is None:  # after the first step, which compiles
            self._start = (step, seconds)
        if self._bar.disable:
            return
        of_time = seconds / self._seconds if self._seconds else 0.0
        self._bar.n = min(1.0, max(step / max(1, self._steps), of_time))
        left = self._left(step, seconds)
        self._bar.set_description_str(f"step {step}/{self._steps}, {left or '?'} left", False)
        self._bar.update(0)

    def report(self, report: Standing) -> None:
        """Print one line, and the header above it where it is due."""
        self.advance(report.step, report.seconds)
        cells = report.cells(self._left(report.step, report.seconds))
        if self._lines_until_header == 0:
            self._write(" ".join(title.rjust(width) for title, width, _ in cells))
            self._lines_until_header = _HEADER_EVERY
        self._lines_until_header -= 1
        self._write(" ".join(text.rjust(width) for _, width, text in cells))

    def table(self, title: str, bits_per_byte: Mapping[str, float]) -> None:
        """Print a title and, below it, one line of bits per byte for every name."""
        width = max(map(len, bits_per_byte), default=0)
        self.note(title)
        for name, value in bits_per_byte.items():
            self.note(f"  {name:<{width}}  {value:7.4f}")

    def sample(self, step: int, prompt: bytes, text: bytes) -> None:
        """Print what the model writes after `prompt`, safely (see `progress.shown`)."""
        self.note(f"--- sample at step {step} " + "-" * 40)
        self.note(progress.shown(prompt + text))
        self.note("-" * 60)

    def note(self, text: str) -> None:
        """Print text between the lines; the header is repeated below it."""
        self._write(text)
        self._lines_until_header = 0

    def warn(self, text: str) -> None:
        """Print a sentence on stderr about an error that does not end the run."""
        with contextlib.suppress(OSError):
            tqdm.write(text, file=sys.stderr)

    def _write(self, text: str) -> None:
        if self._quiet:
            return
        encoding = sys.stdout.encoding or "utf-8"
        try:
            tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the pipe has ended; training goes on
            self._quiet = True
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except OSError:  # stdout is a file on a full disk, for example; training goes on
            pass

    def _left(self, step: int, seconds: float) -> str:
        """Time until the first limit is reached, as text; empty while it cannot be known."""
        remaining = [max(0.0, self._seconds - seconds)] if self._seconds else []
        if self._start is not None and step > self._start[0]:
            per_step = (seconds - self._start[1]) / (step - self._start[0])
            remaining.append(max(0, self._steps - step) * per_step)
        return clock(min(remaining)) if remaining else ""


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from one hour up."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
