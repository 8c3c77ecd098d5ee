"""A tiny run of `train.py`, as a user starts it, for tests of commands."""

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from int_lm import config
from int_lm.files import checkpoint
from int_lm.method import evolve, recipe

TINY = {
    "--model.width": 16,
    "--model.layers": 1,
    "--es.population": 16,
    "--es.segment_length": 8,
    "--run.steps": 60,
    "--run.log_every": 5,
    "--run.eval_every": 20,
    "--run.eval_bytes": 2048,
    "--run.checkpoint_every": 7,
    "--run.sample_tokens": 8,
    "--data.document_bytes": 1024,
}
TIMES = {"seconds", "tokens_per_second"}


def train_arguments(text: Path, run: Path, **changes: object) -> list[str]:
    """Arguments of a tiny run with `changes`, named section_dot_field. Shards lie by the text."""
    flags = TINY | {"--data.path": text, "--data.shards": text.parent / "shards", "--run.dir": run}
    flags |= {f"--{name.replace('_dot_', '.')}": value for name, value in changes.items()}
    return [str(item) for flag in flags.items() for item in flag]


def write_text(path: Path, seed: int = 0) -> Path:
    """40 kB of words, in lines."""
    generator = random.Random(seed)
    words = [
        "".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 7))) for _ in range(99)
    ]
    lines = (" ".join(generator.choices(words, k=8)) for _ in range(1000))
    path.write_text("\n".join(lines))
    return path


def rows(run: Path) -> list[dict[str, object]]:
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def final_state(run: Path) -> list[np.ndarray]:
    """Every array of a run's newest checkpoint, which must be that of the last step."""
    settings = config.load(run / "config.yaml")
    vocab_size = checkpoint.read_host(run / "checkpoints")["tokenizer"]["vocab_size"]
    abstract = evolve.abstract(recipe.of(settings, vocab_size)).stored()
    restored = checkpoint.restore(run / "checkpoints", abstract)
    assert restored is not None
    assert restored.step == settings.run.steps
    return list(checkpoint.leaves(restored.state).values())


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return when `metrics.jsonl` has at least `count` rows, or the process has ended."""
    path = run / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.01)


def run_in_three_ways(place: Path, run_command: Any, **changes: object) -> Path:
    """A tiny run of 20 steps at once, in two parts, and on two devices: they end in the same state.

    Args:
      place: an empty directory, for the text and the runs.
      changes: as of `train_arguments`.

    Returns:
      The run directory of the first one.
    """
    text, runs = write_text(place / "words.txt"), [place / n for n in ("whole", "parts", "devices")]
    for run, steps, devices in ((0, 20, 1), (1, 9, 1), (1, 20, 1), (2, 20, 2)):
        arguments = train_arguments(text, runs[run], run_dot_steps=steps, **changes)
        done = run_command("train.py", *arguments, env={"JAX_NUM_CPU_DEVICES": str(devices)})
        assert done.returncode == 0, done.stderr
    for other in runs[1:]:
        for leaf, same in zip(final_state(other), final_state(runs[0]), strict=True):
            np.testing.assert_array_equal(leaf, same)
    return runs[0]


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, member states and metrics are equal."""
    for ours, theirs in zip(final_state(run), final_state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rows(run) == rows(whole)
