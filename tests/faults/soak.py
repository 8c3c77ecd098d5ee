"""Kill a run at random, again and again, and compare it with one that nothing disturbs.

    python -m tests.faults.soak --seconds 3600

Two runs of the same configuration train beside each other for that long. One is killed (SIGKILL,
now and then SIGTERM) at random moments and restarted by the same command. Its log must be, row by
row and hash by hash, the log of the other; it must leave neither files nor processes behind, and
no restart may need more memory than the undisturbed process did. Exit code 1 if anything is amiss.
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
from concurrent.futures import ThreadPoolExecutor
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
    bench: Bench, flags: list[str], seconds: float, chance: random.Random, options: Any
) -> tuple[Training, list[Ended], list[int]]:
    """Train through kills for some time; the last process, all of them, and stray processes."""
    ended: list[Ended] = []
    stray: list[int] = []
    end = time.monotonic() + seconds
    newest = fruitless = 0
    while True:
        wait, number = chance.uniform(options.least, options.most), signal.SIGKILL
        if time.monotonic() + wait + options.least > end:  # the last one stops in order
            wait, number = max(options.least, end - time.monotonic()), signal.SIGTERM
        elif chance.random() < 0.2:
            number = signal.SIGTERM
        with bench.training("disturbed", flags) as training:
            ended.append(watch(training, wait, number))
        stray += marked_processes(bench.environment[MARK])
        kept, code = training.newest(), ended[-1].code
        print(
            f"{len(ended)}: {number.name}, exit code {code} after {ended[-1].seconds:.0f} s, "
            f"step {kept}, {ended[-1].peak_mb:.0f} MB",
            flush=True,
        )
        assert "Traceback" not in training.stderr(), training.stderr()
        assert code in (0, -number), (code, training.stderr())
        fruitless = 0 if kept > newest else fruitless + 1
        newest = kept
        assert fruitless < MOST_FRUITLESS, "no new checkpoint: kill less often"
        if time.monotonic() >= end:
            return training, ended, stray


def reach(training: Training, step: int) -> None:
    """Wait until a run has logged a step, and stop it in order."""
    while training.process.poll() is None and (training.rows() or [{"step": 0}])[-1]["step"] < step:
        time.sleep(1)
    training.process.send_signal(signal.SIGTERM)


def main() -> None:
    """Run a soak."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=3600, help="of training and killing")
    parser.add_argument("--least", type=float, default=20, help="seconds from start to kill")
    parser.add_argument("--most", type=float, default=120, help="seconds from start to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    options = parser.parse_args()
    flags = [str(item) for flag in FLAGS.items() for item in flag]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as pool:
        temporary = Path(directory) / "temporary"
        temporary.mkdir()
        bench = Bench(Path(directory), TMPDIR=str(temporary), **{MARK: f"{os.getpid()}"})
        with bench.training("warm", [*flags, "--run.steps", "1"]) as warm:  # compiles
            assert watch(warm, 0).code == 0, warm.stderr()
        flags += ["--run.steps", str(10**9)]
        apart = {MARK: "whole", "TMPDIR": directory}
        with bench.training("whole", flags, **apart) as whole:
            watched = pool.submit(watch, whole, 0)
            began = time.monotonic()
            last, ended, stray = disturbed(
                bench, flags, options.seconds, random.Random(options.seed), options
            )
            seconds = time.monotonic() - began
            found = {row["step"]: row for row in last.rows()}
            reach(whole, max(found))
            alone = watched.result()
        assert alone.code == 0, whole.stderr()
        expected = {row["step"]: row for row in whole.rows()}
        print(
            f"undisturbed: {max(expected)} steps, {alone.mb[len(alone.mb) // 5]:.0f} MB of memory "
            f"after a fifth, {alone.mb[-1]:.0f} at the end, {alone.peak_mb:.0f} at most",
            flush=True,
        )
        peaks = [process.peak_mb for process in ended]
        some = max(1, len(peaks) // 3)
        early, late = (statistics.median(part) for part in (peaks[:some], peaks[-some:]))
        leaked = leaked_files(
            last.directory, whole.directory, temporary, bench.directory / "shards"
        )
        sent = [process.signal for process in ended]
        kills, terms = sent.count(signal.SIGKILL), sent.count(signal.SIGTERM)
    wrong = [step for step, row in found.items() if row != expected.get(step)]
    faults = {
        f"another log at steps {wrong[:3]}": wrong != [],
        "rows missing": set(expected) & set(range(max(found) + 1)) != set(found),
        "leaked files": leaked != [],
        "leftover processes": stray != [],
        "more memory than undisturbed": max(peaks) > MORE * alone.peak_mb,
        "no kill": kills == 0,
    }
    print(
        f"disturbed: {max(found)} steps, {kills} SIGKILL, {terms} SIGTERM in {seconds:.0f} s; "
        f"{len(found) - len(wrong)} of {len(found)} rows of the log, with their hashes of the "
        f"weights, as undisturbed\n"
        f"weights at step {max(found)}: {expected[max(found)]['weights_hash']} undisturbed, "
        f"{found[max(found)]['weights_hash']} disturbed\n"
        f"leaked files: {leaked or 'none'}; leftover processes: {stray or 'none'}\n"
        f"peak memory: {early:.0f} MB in the first third of the restarts, {late:.0f} in the last, "
        f"{max(peaks):.0f} at most"
    )
    amiss = [name for name, found_it in faults.items() if found_it]
    print("amiss: " + ", ".join(amiss) if amiss else "all as it should be")
    sys.exit(bool(amiss))


if __name__ == "__main__":
    main()
