"""Read mutated files of every format: `python -m tests.fuzz --count 10000`."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz import harness


def main() -> int:
    """Print a row for each format and kind of mutation; the exit code is 1 after a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="mutated files of each")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--only", nargs="+", choices=harness.LABELS, default=harness.LABELS)
    arguments = parser.parse_args()
    print(
        "| format: mutation | files | refused | same | other, valid | faults | excess | slowest |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        harness.make(sorted({label.split(":")[0] for label in arguments.only}), room)
        for label in arguments.only:
            found = harness.run([label], room, arguments.first, arguments.count)[label]
            counts = [found.counts.get(kind, 0) for kind in ("refused", "same", "valid", "fault")]
            cells = [label, arguments.count, *counts, found.excess, f"{found.seconds:.2f} s"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            for number, problem in found.faults[:5]:
                print(f"{label} {number}: {problem}", file=sys.stderr, flush=True)
            faults += len(found.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
