"""How near plans come: speed and memory that `train.py --plan` predicts, and those of a run.

    python benchmarks/plan.py [--json] [--steps 60] [--every 20] [CONFIG ...]

Every configuration is planned, then trained for so many steps from its beginning, with an
evaluation and a checkpoint every so many; each in a process of its own. The speed of a run is the
median of its logged rows, four from one evaluation to the next, the first one left out, which
compiles; its memory is the most that was resident. CONFIG is a file; without one,
configs/quickstart.yaml and configs/recurrent_only.yaml. Anything else that the machine does shows
in the speed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from int_lm.training import memory

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [str(ROOT / "configs" / name) for name in ("quickstart.yaml", "recurrent_only.yaml")]

HELDOUT_BYTES = 150_000  # all of it is read at the end


def peak_of(process: subprocess.Popen[Any], name: str) -> int:
    """The peak bytes of a process, when it has ended.

    Raises:
      SystemExit: it failed.
    """
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{name} ended with {process.returncode}")
    return memory.peak(usage)


def train(*arguments: str) -> tuple[str, int]:
    """(standard output, peak bytes) of `train.py`.

    Raises:
      SystemExit: it failed.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], stdout=output
        )
        peak = peak_of(process, "train.py")
        output.seek(0)
        return output.read(), peak


def predicted(config: str) -> dict[str, float]:
    """Speed and memory by the plan; no memory where it is not that of the process alone."""
    text, _ = train("--config", config, "--plan")
    found = {"tokens_per_s": re.search(r"^speed +([\d,]+)", text, re.MULTILINE)}
    found["megabytes"] = re.search(r"([\d,]+) MB at the most", text)
    return {name: float(hit[1].replace(",", "")) for name, hit in found.items() if hit}


def measured(config: str, shards: Path, steps: int, every: int) -> dict[str, float]:
    """Speed and memory of a run."""
    with tempfile.TemporaryDirectory() as directory:
        flags = {"dir": directory, "steps": steps, "log_every": max(1, every // 4), "seconds": 0}
        flags |= {"eval_every": every, "checkpoint_every": every}
        run = [text for name, flag in flags.items() for text in (f"--run.{name}", str(flag))]
        data = ["--data.shards", str(shards), "--data.heldout_bytes", str(HELDOUT_BYTES)]
        _, peak = train("--config", config, *data, *run)
        lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["tokens_per_second"] for line in lines[1:]]
    return {"tokens_per_s": statistics.median(speeds), "megabytes": peak / 1e6}


def main() -> None:
    """Plan, train and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", default=CONFIGS)
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for config in arguments.configs:
            plan = predicted(config)
            run = measured(
                config, Path(directory) / Path(config).stem, arguments.steps, arguments.every
            )
            for name, value in plan.items():
                row = {"config": Path(config).stem, "of": name, "predicted": value}
                row |= {"measured": run[name], "ratio": value / run[name]}
                if arguments.json:
                    print(json.dumps(row), flush=True)
                else:
                    print(
                        f"{row['config']:<20} {name:<13} predicted {value:>12,.0f}   "
                        f"measured {run[name]:>12,.0f}   ratio {row['ratio']:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
