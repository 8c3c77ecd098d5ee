"""Make the table of docs/determinism.md: the final hashes of one run computed in many ways.

    python benchmarks/determinism.py [--out table.md] [--only NAME ...] [--rows NAME ...]
        [--kills N] [--python PATH] [--gpu] [--jobs N]

Every architecture with every estimator trains on the Apache licence, a text that stays as it is,
so that hashes can be compared between machines and versions: on 1, 2, 4 and 8 devices of this
machine's CPU, in 2 and 4 processes, in chunks of other sizes, killed at random moments and told to
stop, begun on 4 devices and gone on with on 1 and 2; with --python, by another Python and the jax
that it has. `runtime.c` of the export computes the hash and a score, which is compared with that of
JAX. Each cell is a run of `train.py`; it is right if it ends with the hash of the first
one, and that one if it is the hash in docs/determinism.md. On a machine with a GPU, --gpu adds a
run on it. Ends with code 1 where anything differs.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 60
ARCHITECTURES = ("egg", "rwkv")
RECIPES = {  # name: (readout, votes, update)
    "eggroll": ("perturbed", "eggroll", "threshold"),
    "eggroll, exact": ("exact", "eggroll", "plugins.stochastic:STOCHASTIC"),
    "trace": ("perturbed", "trace", "threshold"),
    "trace, exact": ("exact", "trace", "carry"),
    "unit, exact, direct": ("exact", "unit", "carry"),
    "unit, exact, adaptive": ("exact", "unit", "adaptive"),
    "unit, exact, direct, cache": ("exact", "unit", "adaptive"),
    "local, exact, direct": ("exact", "local", "carry"),
    "deep, exact, direct, cache": ("exact", "deep", "adaptive"),
    "deep, exact, direct, cache, pooled": ("exact", "deep", "adaptive"),
}
# no credit through its block
IMPOSSIBLE = {("egg", name) for name, (_, votes, _) in RECIPES.items() if votes == "deep"}
KILLS, STOPS = 10, 2  # unless --kills says otherwise
LIMIT = 1200  # seconds for a run
HASH_OF_MODEL = slice(16, 32)  # of an archive, which its program has computed: docs/archive.md
# Whatever has a part in the bits is named, so that no default can change them.
FIXED = {
    "model.width": 32,
    "model.layers": 2,
    "model.ffn_multiple": 4,
    "es.population": 64,
    "es.segment_length": 16,
    "es.members_per_stream": 2,
    "es.rank": 1,
    "es.sigma_shift": 4,
    "es.noise": "rademacher",
    "es.objective": "log_likelihood",
    "es.fitness": "sign",
    "es.alpha": 1.0,
    "es.alpha_halflife": 67,
    "es.learning_rate": 0.5,
    "es.learning_rate_halflife": 200,
    "es.beta1": 0.8,
    "es.beta2": 0.9,
    "es.direct_rate": 12,
    "es.warmup": 0,
    "es.decay": 0,
    "es.schedule": "inverse",
    "data.path": "text",
    "data.tokenizer": "bytes",
    "data.holdout": 0.1,
    "data.heldout_bytes": 2048,
    "data.document_bytes": 1024,
    "data.shards": "shards",
    "run.seed": 0,
    "run.steps": STEPS,
    "run.log_every": 5,
    "run.eval_every": 30,
    "run.eval_bytes": 2048,
    "run.checkpoint_every": 9,
    "run.sample_tokens": 0,
}


@dataclasses.dataclass
class Bench:
    """Starts runs, and holds the directories that they use."""

    place: Path
    python: str
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def environment(self, devices: int = 1, platform: str = "cpu") -> dict[str, str]:
        """Environment of a run. Runs share a compilation cache: they mostly compile."""
        return {
            **os.environ,
            "JAX_PLATFORMS": platform,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(self.place / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several runs share a GPU
            # tests/ holds the plug-in that a recipe names
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
            ),
        }

    def new_run(self) -> Path:
        return self.place / f"run-{next(self.numbers)}"

    def start(
        self, flags: list[str], run: Path, *more: str, python: str = "", **environment: Any
    ) -> subprocess.Popen[str]:
        """One process of a run."""
        return subprocess.Popen(
            [python or self.python, ROOT / "train.py", *flags, "--run.dir", run, *more],
            env=self.environment(**environment),
            cwd=self.place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def flags_of(architecture: str, recipe: str) -> list[str]:
    """A small model of an architecture with an estimator."""
    readout, votes, update = RECIPES[recipe]
    flags = FIXED | {
        "model.architecture": architecture,
        "es.readout": readout,
        "es.votes": votes,
        "es.update": update,
    }
    if architecture == "rwkv" and votes in ("local", "deep"):  # nothing is perturbed
        flags |= {"es.population": 32, "es.members_per_stream": 1, "es.decay": 0.001}
    if "direct" in recipe:
        flags |= {"model.direct": "1 3", "model.direct_bits": 10}
    if "cache" in recipe:
        flags |= {"model.cache": "2 4 8", "model.cache_bits": 8}
    if "pooled" in recipe:
        flags |= {"es.pooled": "true"}
    return [part for key in flags for part in (f"--{key}", *str(flags[key]).split())]


def published() -> dict[str, str]:
    """The hashes in the table of docs/determinism.md, by the first cell of their lines."""
    text = (ROOT / "docs" / "determinism.md").read_text()
    return dict(re.findall(r"^\| (`\w+`, [^|]+) \| `([0-9a-f]{16})` \|", text, re.MULTILINE))


def last_row(run: Path) -> tuple[int, str]:
    """(step, hash) of the last logged step; (0, "") before there is one."""
    try:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        row = json.loads(rows[-1])
    except (OSError, IndexError, ValueError):
        return 0, ""
    return row["step"], row["weights_hash"]


def hash_of(run: Path, *processes: subprocess.Popen[str]) -> str:
    """The hash that a run ends with, or its error message."""
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.communicate()
        return f"failed: not at its end after {LIMIT} seconds"
    step, found = last_row(run)
    ends = {0, 4}  # 4: the kill came when all was done
    if any(process.returncode not in ends for process in processes) or step != STEPS:
        return f"failed: {' '.join(said)[-200:]}"
    return found


def on_devices(count: int, **environment: Any) -> Callable[[Bench, list[str]], str]:
    """A whole run of one process."""

    def measure(bench: Bench, flags: list[str]) -> str:
        run = bench.new_run()
        return hash_of(run, bench.start(flags, run, devices=count, **environment))

    return measure


def in_processes(count: int) -> Callable[[Bench, list[str]], str]:
    """A whole run of several processes of one device each, over gloo."""

    def measure(bench: Bench, flags: list[str]) -> str:
        run = bench.new_run()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        meeting = ("--distributed.coordinator", f"127.0.0.1:{port}")
        meeting += ("--distributed.processes", str(count), "--distributed.process_id")
        return hash_of(run, *[bench.start(flags, run, *meeting, str(i)) for i in range(count)])

    return measure


def in_chunks(size: int) -> Callable[[Bench, list[str]], str]:
    def measure(bench: Bench, flags: list[str]) -> str:
        run = bench.new_run()
        return hash_of(run, bench.start(flags, run, "--es.chunk", str(size)))

    return measure


def interrupted(kills: int, stops: int) -> Callable[[Bench, list[str]], str]:
    """SIGKILL at random moments of start, compilation, steps, evaluation and saving; SIGTERM."""

    def measure(bench: Bench, flags: list[str]) -> str:
        run, generator = bench.new_run(), random.Random(str(flags))
        signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * stops
        generator.shuffle(signals)
        for index, number in enumerate(signals):
            process = bench.start(flags, run)
            goal = STEPS * index // len(signals)  # so that they fall on all of the run
            while process.poll() is None and last_row(run)[0] < goal:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 3 if generator.random() < 0.3 else 0.3))
            process.send_signal(number)
            process.communicate()
        return hash_of(run, bench.start(flags, run))

    return measure


def moved(bench: Bench, flags: list[str]) -> str:
    """A run that is started on 4 devices, resumed on 1 and finished on 2."""
    run = bench.new_run()
    for devices, goal in ((4, 20), (1, 40)):
        process = bench.start(flags, run, devices=devices)
        while process.poll() is None and last_row(run)[0] < goal:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    return hash_of(run, bench.start(flags, run, devices=2))


SCORED = """
import pathlib, sys
import int_lm

run, text, *plugins = sys.argv[1:]
model = int_lm.load(run, trusted=plugins)
print(model.evaluate([pathlib.Path(text).read_text()])["log2_likelihood_units"])
"""


def in_c(bench: Bench, flags: list[str]) -> str:
    """The hash that `runtime.c` finds of the run's export, if its score is that of JAX, too."""
    run, text, out = bench.new_run(), bench.place / "text" / "licence.txt", bench.new_run()
    trained = hash_of(run, bench.start(flags, run))
    plugins = [part for part in flags if ":" in part]
    trusted = [word for name in plugins for word in ("--plugin", name)]
    program, archive = out / "model", out / "archive"

    def said(*command: str | Path) -> bytes:
        done = subprocess.run(
            command, env=bench.environment(), capture_output=True, check=False, timeout=LIMIT
        )
        if done.returncode:
            raise ValueError(f"failed: {done.stderr.decode()[-200:]}")
        return done.stdout

    try:
        said(bench.python, "-m", "int_lm.export", "--run", run, "--out", out, *trusted)
        said("cc", "-O2", "-o", program, out / "runtime.c")
        score = json.loads(said(program, "score", text))["log2_likelihood"]
        expected = int(said(bench.python, "-c", SCORED, run, text, *plugins))
        said(program, "compress", text, archive)
    except ValueError as error:
        return str(error)
    if score != expected or not trained:
        return f"failed: {score} units, where JAX has {expected}"
    return archive.read_bytes()[HASH_OF_MODEL].decode()


def ways(
    kills: int, python: str | None, gpu: bool
) -> Iterator[tuple[str, Callable[[Bench, list[str]], str]]]:
    """(name, how to run it) of every column."""
    for count in (1, 2, 4, 8):
        yield f"{count} device{'s' * (count > 1)}", on_devices(count)
    for count in (2, 4):
        yield f"{count} processes", in_processes(count)
    for size in (2, 16):
        yield f"chunks of {size}", in_chunks(size)
    yield f"killed {kills}, stopped {STOPS} times", interrupted(kills, STOPS)
    yield "4, then 1, then 2 devices", moved
    yield "runtime.c", in_c
    if python:
        command = "import jax, sys; print(sys.version.split()[0], 'jax', jax.__version__)"
        version = subprocess.run([python, "-c", command], capture_output=True, text=True).stdout
        yield f"Python {version.strip()}", on_devices(1, python=python)
    if gpu:
        yield "GPU", on_devices(1, platform="cuda")


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="file for the table (default: standard output only)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts of names of columns")
    parser.add_argument("--python", help="another Python with int_lm's dependencies")
    parser.add_argument("--gpu", action="store_true", help="a run on a GPU as well")
    parser.add_argument(
        "--kills", type=int, default=KILLS, help="SIGKILLs of a run (default: %(default)s)"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="names of rows, as in the table")
    parser.add_argument("--jobs", type=int, default=1, help="rows of the table at a time")
    arguments = parser.parse_args()
    columns = [
        (name, measure)
        for index, (name, measure) in enumerate(
            ways(arguments.kills, arguments.python, arguments.gpu)
        )
        if index == 0 or not arguments.only or any(part in name for part in arguments.only)
    ]
    titles = ["architecture, votes, readout", "hash", *(name for name, _ in columns[1:])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(arguments.jobs) as pool:
        bench, known = Bench(Path(place), sys.executable), published()
        (bench.place / "text").mkdir()
        shutil.copy(ROOT / "LICENSE", bench.place / "text" / "licence.txt")
        # shards are written once, before several runs read them
        prepare = bench.start([*flags_of("egg", "eggroll"), "--run.steps", "1"], bench.new_run())
        said = prepare.communicate()[1]
        if prepare.returncode:
            sys.exit(said)

        def row(names: tuple[str, str]) -> tuple[str, int]:
            """A line of the table, and how many of its cells differ."""
            title, flags = f"`{names[0]}`, {names[1]}", flags_of(*names)
            expected = columns[0][1](bench, flags)
            found = [measure(bench, flags) for _, measure in columns[1:]]
            cells = ["same" if value == expected else f"**{value}**" for value in found]
            first = f"`{expected}`"
            if changed := known.get(title) != expected:
                first = f"**{expected}**, in the table {known.get(title, 'none')}"
            line = f"| {title} | " + " | ".join([first, *cells]) + " |"
            return line, changed + sum(value != expected for value in found)

        chosen = [
            names
            for names in itertools.product(ARCHITECTURES, RECIPES)
            if names not in IMPOSSIBLE
            if not arguments.rows or ", ".join(names) in arguments.rows
        ]
        differ = 0
        for line, wrong in pool.map(row, chosen):
            lines.append(line)
            differ += wrong
            print(line, flush=True)
    if arguments.out:
        Path(arguments.out).write_text("\n".join(lines) + "\n")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
