"""What a run takes as a whole, and how much of it is not steps: evaluating, logging, saving.

    python benchmarks/overhead.py [--json] [--config configs/quickstart.yaml] [--after 100] [FLAGS]

FLAGS are those of `train.py`, `--run.steps 500` for instance. The run and its prepared text go to
a directory of their own. By `metrics.jsonl`: steps took their tokens over `tokens_per_second`, and
what is left of `seconds` between the row of step `--after`, when all is compiled that every step
needs, and the last row is all but steps. The whole command, with preparing the text and evaluating
all that is held out, stands beside it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from plan import ROOT, train


def measured(config: str, after: int, flags: list[str]) -> dict[str, Any]:
    """The figures of one run.

    Raises:
      SystemExit: no row of metrics follows that of step `after`.
    """
    with tempfile.TemporaryDirectory() as directory:
        run, shards = Path(directory) / "run", Path(directory) / "shards"
        places = ["--run.dir", str(run), "--data.shards", str(shards)]
        began = time.perf_counter()
        _, peak = train("--config", config, *places, *flags)
        command = time.perf_counter() - began
        lines = (run / "metrics.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    rows = [row for row in every if row["step"] >= after]
    if len(rows) < 2:
        raise SystemExit(f"nothing is logged after step {after}: ask for more steps")
    span = rows[-1]["seconds"] - rows[0]["seconds"]
    steps = sum(
        (row["tokens"] - before["tokens"]) / row["tokens_per_second"]
        for before, row in zip(rows[:-1], rows[1:], strict=True)
    )
    return {
        "command_seconds": command,
        "seconds_to_last_step": rows[-1]["seconds"],
        "first_step_counted": rows[0]["step"],
        "last_step": rows[-1]["step"],
        "seconds_between": span,
        "of_steps": steps,
        "all_but_steps": 1 - steps / span,
        "milliseconds_a_step": 1000 * steps / (rows[-1]["step"] - rows[0]["step"]),
        "peak_megabytes": peak / 1e6,
        "valid_bits_per_byte": rows[-1]["valid_bits_per_byte"],
        "weights": rows[-1]["weights_hash"][:16],
    }


def main() -> None:
    """Train, reckon and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--after", type=int, default=100, help="the step to count from")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments, flags = parser.parse_known_args()
    figures = measured(arguments.config, arguments.after, flags)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<22}" + (f"{value:,.3f}" if isinstance(value, float) else f"{value}"))


if __name__ == "__main__":
    main()
