"""Print the table of faults as Markdown: `python -m tests.faults [NAME ...]`."""

import sys
import tempfile
import time
from pathlib import Path

from . import FAULTS
from .bench import Bench, ImpossibleError


def main() -> None:
    """Bring about every fault, or those named."""
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or fault.name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        print("| fault | what the user sees | what survives |\n|---|---|---|")
        for fault in chosen:
            began = time.monotonic()
            try:
                outcome = fault.run(bench)
                print(f"| {fault.done} | {outcome.seen} | {outcome.survives} |", flush=True)
            except ImpossibleError as reason:
                print(f"| {fault.done} | not tried: {reason} | |", flush=True)
            print(f"{fault.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
