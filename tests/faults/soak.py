"""Kill a run at random, again and again, and compare it with one that nothing disturbed.

    python -m tests.faults.soak --seconds 3600

A run trains undisturbed for that long. A second one is started and killed (SIGKILL, now and then
SIGTERM) at random moments, and restarted by the same command until it has done as many steps. It
must come to the same weights and leave neither files nor processes behind, and no restart may need
more memory than the undisturbed process did. Exit code 1 if anything is amiss.
"""

import argparse
import dataclasses
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .bench import Bench, Training

FLAGS = {
    "--model.architecture": "rwkv",
    "--model.width": 32,
    "--es.population": 128,
    "--es.segment_length": 16,
    "--es.votes": "unit",
    "--es.readout": "exact",
    "--es.update": "carry",
    "--run.log_every": 100,
    "--run.eval_every": 1000,
    "--run.checkpoint_every": 250,
    "--run.sample_tokens": 8,
}
MARK = "INT_LM_SOAK"  # a variable in the environment of every process of a soak
MOST_FRUITLESS = 10  # restarts without a new checkpoint
MORE = 1.1  # peak memory of a restart, in that of the undisturbed run


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that ended: after which signal, how, when, and the most memory that it held."""

    signal: signal.Signals | None
    code: int
    seconds: float
    peak_mb: float
    mb: list[float]  # of memory, every second


def watch(training: Training, seconds: float, number: signal.Signals | None = None) -> Ended:
    """Wait for the end of a process; after `seconds` it gets the signal."""
    began, due, sizes = time.monotonic(), 0.0, []
    sent = None
    while True:
        pid, status, usage = os.wait4(training.process.pid, os.WNOHANG)
        after = time.monotonic() - began
        if pid:
            code = training.process.returncode = os.waitstatus_to_exitcode(status)
            return Ended(sent, code, after, usage.ru_maxrss / 1024, sizes)
        if after >= due:
            pages = int(Path(f"/proc/{training.process.pid}/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            due += 1
        if number and not sent and after >= seconds:
            training.process.send_signal(number)
            sent = number
        time.sleep(0.05)


def marked_processes(mark: str) -> list[int]:
    """Processes with the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def leaked_files(run: Path, whole: Path, temporary: Path, shards: Path) -> list[str]:
    """What lies in a run directory and about it that an undisturbed run does not leave."""
    leaked = [path.name for path in temporary.iterdir()]
    known = {path.name for path in whole.iterdir()}
    leaked += sorted(path.name for path in run.iterdir() if path.name not in known)
    for root in (run, shards):
        leaked += [
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if "tmp" in path.name or path.name == "lock" or path.name.endswith(".position.json")
        ]
    counts = [len(list((root / "checkpoints").iterdir())) for root in (run, whole)]
    return leaked + ([f"{counts[0]} checkpoints in place of {counts[1]}"] * (counts[0] > 3))


def disturbed(
    bench: Bench, flags: list[Any], steps: int, chance: random.Random, between: tuple[float, float]
) -> tuple[Training, list[Ended], list[int]]:
    """Train to the last step through kills; the last process, all processes, and stray ones."""
    ended: list[Ended] = []
    stray: list[int] = []
    newest = fruitless = 0
    while True:
        number = signal.SIGTERM if chance.random() < 0.2 else signal.SIGKILL
        training = bench.training("disturbed", [*flags, "--run.steps", str(steps)])
        with training:
            ended.append(watch(training, chance.uniform(*between), number))
        stray += marked_processes(bench.environment[MARK])
        kept, code, sent = training.newest(), ended[-1].code, ended[-1].signal
        print(
            f"{len(ended)}: {sent.name if sent else 'end'}, exit code {code} after "
            f"{ended[-1].seconds:.0f} s, step {kept} of {steps}, {ended[-1].peak_mb:.0f} MB",
            flush=True,
        )
        assert "Traceback" not in training.stderr(), training.stderr()
        assert code in (0, -number), (code, training.stderr())
        if kept == steps and (training.directory / "evaluation.json").exists():
            return training, ended, stray
        fruitless = 0 if kept > newest else fruitless + 1
        newest = kept
        assert fruitless < MOST_FRUITLESS, "no new checkpoint: kill less often"


def main() -> None:
    """Run a soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="of undisturbed training")
    parser.add_argument("--least", type=float, default=20, help="seconds from start to kill")
    parser.add_argument("--most", type=float, default=120, help="seconds from start to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    options = parser.parse_args()
    flags = [str(item) for flag in FLAGS.items() for item in flag]
    with tempfile.TemporaryDirectory() as directory:
        temporary = Path(directory) / "temporary"
        temporary.mkdir()
        mark = f"{os.getpid()}"
        bench = Bench(Path(directory), TMPDIR=str(temporary), **{MARK: mark})
        with bench.training("warm", [*flags, "--run.steps", "1"]) as warm:  # compiles
            assert watch(warm, 0).code == 0, warm.stderr()
        limits = ["--run.steps", str(10**9), "--run.seconds", str(options.seconds)]
        with bench.training("whole", [*flags, *limits]) as whole:
            alone = watch(whole, 0)
        assert alone.code == 0, whole.stderr()
        steps = whole.newest()
        print(
            f"undisturbed: {steps} steps in {alone.seconds:.0f} s, "
            f"{alone.mb[len(alone.mb) // 5]:.0f} MB of memory after a fifth, {alone.mb[-1]:.0f} at "
            f"the end, {alone.peak_mb:.0f} at most",
            flush=True,
        )
        began = time.monotonic()
        chance = random.Random(options.seed)
        last, ended, stray = disturbed(bench, flags, steps, chance, (options.least, options.most))
        peaks = [process.peak_mb for process in ended]
        some = max(1, len(peaks) // 3)
        early, late = (statistics.median(part) for part in (peaks[:some], peaks[-some:]))
        rows = [training.rows() for training in (whole, last)]
        leaked = leaked_files(
            last.directory, whole.directory, temporary, bench.directory / "shards"
        )
        sent = [process.signal for process in ended]
        kills, terms = sent.count(signal.SIGKILL), sent.count(signal.SIGTERM)
    hashes = [log[-1]["weights_hash"] for log in rows]
    faults = {
        "other weights": hashes[0] != hashes[1],
        "another log": rows[0] != rows[1],
        "leaked files": leaked != [],
        "leftover processes": stray != [],
        "more memory than undisturbed": max(peaks) > MORE * alone.peak_mb,
        "no kill": kills == 0,
    }
    print(
        f"disturbed: {kills} SIGKILL, {terms} SIGTERM in {time.monotonic() - began:.0f} s\n"
        f"weights {hashes[0][:16]} undisturbed, {hashes[1][:16]} disturbed\n"
        f"leaked files: {leaked or 'none'}; leftover processes: {stray or 'none'}\n"
        f"peak memory: {early:.0f} MB in the first third of the restarts, {late:.0f} in the last, "
        f"{max(peaks):.0f} at most"
    )
    amiss = [name for name, found in faults.items() if found]
    print("amiss: " + ", ".join(amiss) if amiss else "all as it should be")
    sys.exit(bool(amiss))


if __name__ == "__main__":
    main()
