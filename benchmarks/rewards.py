"""Tuning with rewards: int_lm's integers beside GRPO, from the same weights in the same seconds.

    python -m int_lm.tasks countdown3 --examples 200000 --out tasks.jsonl
    python train.py --config tasks
    python benchmarks/rewards.py --run runs/tasks --task countdown3 --seconds 600 --seed 0 1 2

Ours is `python -m int_lm.tune`, GRPO the float twin of the same model, tuned by back-propagation
(benchmarks/grpo.py). Both get the training prompts of the task and are asked the same held-out
prompts before and after, greedily. The clock of GRPO runs during its steps alone; that of ours
includes the first evaluation and compilation, which is to our disadvantage. With
--processor-seconds in place of --seconds both clocks count the processor's time, so that other
programs on the machine change nothing (pin the benchmark to one core, for a second one is counted,
too). First the twin's bits per token on solutions are compared with the integer model's.

Prints a row for each method and seed, and medians; --json prints one JSON object {"rows": [{task,
method, seed, seconds, steps, reward_before, reward_after, solved_before, solved_after, prompts}]}.
--grpo learning_rate=0.1 changes a setting of GRPO, --ours="--es.population 1024" adds flags to
ours. GRPO needs `pip install -e '.[bench]'`.
"""

import dataclasses
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from int_lm import plugins, run as runs, tasks
from int_lm.errors import UserError, reported, say
from int_lm.run import Run
from int_lm.tasks import Example, Task

if TYPE_CHECKING:
    from benchmarks.grpo import Settings

PROGRAM = "benchmarks/rewards.py"
METHODS = ("ours", "grpo")
TEXTS = 256  # whose bits are compared before anything is tuned
LARGEST_DIFFERENCE = 0.001  # bits per token of the twin and of the integer model
NEVER = 10**9  # steps
# the command, with the processor's clock for `run.seconds`
BY_PROCESSOR = """
import time
time.monotonic = time.process_time
from int_lm import errors
from int_lm.tune.__main__ import PROGRAM, main
with errors.reported(PROGRAM):
    main()
"""
ANSWERED_AT_ONCE = 250


def grpo(
    opened: Run,
    tokenizer: Any,
    task: Task,
    held_out: list[Example],
    seconds: float,
    seed: int,
    settings: "Settings",
    clock: Callable[[], float],
    curve: bool,
) -> dict[str, Any]:
    """Tune the twin for `seconds` of this clock; a row."""
    from benchmarks.grpo import Grpo

    tuner = Grpo(opened.recipe.model, opened.weights, task, tokenizer, settings, seed)

    def answer() -> dict[str, float]:
        firsts = range(0, len(held_out), ANSWERED_AT_ONCE)
        parts = [tuner.answers(held_out[first : first + ANSWERED_AT_ONCE]) for first in firsts]
        found = [reward for part in parts for reward in part.tolist()]
        solved = sum(reward >= task.solved for reward in found) / len(found)
        return {"reward": statistics.fmean(found), "solved": solved}

    def examples(step: int) -> list[Example]:
        first = step * settings.prompts
        return [tasks.training(task, seed, first + number) for number in range(settings.prompts)]

    before, step, recent = answer(), 0, []
    tuner.compile(examples(0))
    began = clock()
    while clock() - began < seconds:
        recent.append(tuner.step(examples(step)))
        step += 1
        if curve and step % 20 == 0:
            say(f"  grpo seed {seed} step {step}: reward {statistics.fmean(recent[-20:]):.4f}")
    spent = clock() - began
    return _row(task, "grpo", seed, spent, step, before, answer(), len(held_out))


def ours(
    run: str,
    name: str,
    seconds: float,
    seed: int,
    prompts: int,
    flags: list[str],
    by_processor: bool,
) -> dict[str, Any]:
    """Run `python -m int_lm.tune` for `seconds` on the task of this name; a row.

    Args:
      by_processor: whether these are seconds of the processor: the clock of the command is that.
    """
    task = tasks.of(name)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        common.run(
            [
                *(("-c", BY_PROCESSOR) if by_processor else ("-m", "int_lm.tune")),
                *("--run", run, "--reward", name, "--json"),
                *("--run.dir", f"{folder}/tuned", "--run.seed", str(seed)),
                *("--run.seconds", str(seconds), "--run.steps", str(NEVER)),
                *("--run.eval_every", str(NEVER), "--run.checkpoint_every", str(NEVER)),
                *("--reward.heldout_prompts", str(prompts), *flags),
            ],
            output,
        )
        output.seek(0)
        found = json.loads(output.read().splitlines()[-1])
    before, after = (
        {name: found[f"{name}_{when}"] for name in ("reward", "solved")}
        for when in ("before", "after")
    )
    return _row(
        task, "ours", seed, found["seconds"], found["steps"], before, after, found["prompts"]
    )


def _row(
    task: Task,
    method: str,
    seed: int,
    seconds: float,
    steps: int,
    before: dict[str, float],
    after: dict[str, float],
    prompts: int,
) -> dict[str, Any]:
    return {
        "task": task.name,
        "method": method,
        "seed": seed,
        "seconds": round(seconds, 1),
        "steps": steps,
        "reward_before": before["reward"],
        "reward_after": after["reward"],
        "solved_before": before["solved"],
        "solved_after": after["solved"],
        "prompts": prompts,
    }


def compare(opened: Run, tokenizer: Any, task: Task) -> None:
    """Say what the integer model and its twin in floats need per token of solutions.

    Raises:
      UserError: they differ by more than `LARGEST_DIFFERENCE`.
    """
    from benchmarks import grpo as twin
    from int_lm.measure import evaluate

    texts = [tasks.text(task, 0, index).encode() for index in range(TEXTS)]
    documents = tokenizer.encode_all(texts)
    model, weights = opened.recipe.model, opened.weights
    read = evaluate.evaluate(model, weights, documents, [len(text) for text in texts])
    integer = read.bits / int(read.tokens.sum())
    floating = twin.bits_per_token(model, weights, documents)
    sentence = f"bits per token of {TEXTS} solutions: {integer:.5f}, by the twin {floating:.5f}"
    if abs(integer - floating) > LARGEST_DIFFERENCE:
        raise UserError(f"{sentence}: the twin is another model")
    say(sentence)


def _grpo_settings(changes: list[str]) -> "Settings":
    """GRPO's settings after changes of the form name=value."""
    from benchmarks.grpo import Settings

    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise UserError(f"--grpo {change}: no setting {name!r}; known: {', '.join(kinds)}")
        try:
            values[name] = int(value) if kinds[name] in (int, "int") else float(value)
        except ValueError:
            raise UserError(f"--grpo {change}: {value!r} is no number of its kind") from None
    return Settings(**values)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['task']:<18}{row['method']:<6} seed {row['seed']}  {row['seconds']:7.1f} s"
        f"{row['steps']:>7} steps  reward {row['reward_before']:.4f} -> {row['reward_after']:.4f}"
        f"  solved {row['solved_before']:.2%} -> {row['solved_after']:.2%}"
    )


def _medians(rows: list[dict[str, Any]]) -> None:
    """Print, for each method, the median over seeds of what was solved."""
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        before, after, gain = (
            statistics.median(function(row) for row in own)
            for function in (
                lambda row: row["solved_before"],
                lambda row: row["solved_after"],
                lambda row: row["solved_after"] - row["solved_before"],
            )
        )
        print(
            f"{method}: median of {len(own)} seeds, solved {before:.2%} -> {after:.2%}, "
            f"gain {100 * gain:.2f} points"
        )


def main() -> None:
    """Tune with each method and seed; print rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="run whose weights are tuned")
    parser.add_argument("--task", required=True, metavar="NAME", help="see python -m int_lm.tasks")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=600.0, help="(default: %(default)s)")
    length.add_argument("--processor-seconds", type=float, help="of the processor, in their place")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, help="(both)")
    parser.add_argument("--prompts", type=int, default=500, help="held out (default: %(default)s)")
    parser.add_argument("--grpo", nargs="+", default=[], metavar="NAME=VALUE", help="settings")
    parser.add_argument("--ours", default="", metavar="FLAGS", help="more flags of int_lm.tune")
    parser.add_argument("--curve", action="store_true", help="print GRPO's reward as it goes")
    parser.add_argument("--out", metavar="FILE", help="append every row to it, as JSON lines")
    arguments = parser.parse_args()
    by_processor = arguments.processor_seconds is not None
    seconds = arguments.processor_seconds if by_processor else arguments.seconds
    if seconds <= 0 or arguments.prompts < 1:
        raise UserError("--prompts must be at least 1, and seconds above 0")
    try:
        flags = shlex.split(arguments.ours)
    except ValueError as error:
        raise UserError(f"--ours {arguments.ours!r} is no command line: {error}") from None
    common.check_out(arguments.out)
    plugins.trust(arguments.task)
    task = tasks.of(arguments.task)
    held_out = tasks.held_out(task, arguments.prompts)
    opened = runs.open_run(arguments.run)
    if opened.config.model.architecture != "rwkv" or opened.recipe.model.specs.tables:
        raise UserError(
            f"{arguments.run} is no rwkv model without tables and cache: it has no twin"
        )
    import tokenization

    tokenizer = tokenization.load(runs.Paths(Path(arguments.run)).tokenizer)
    if "grpo" in arguments.method:
        common.require_optax("GRPO")
        settings = _grpo_settings(arguments.grpo)
        compare(opened, tokenizer, task)
    clock = time.process_time if by_processor else time.perf_counter
    rows = []
    for seed in arguments.seed:
        for method in arguments.method:  # taking turns, so that a slow hour is both's
            if method == "ours":
                named = arguments.run, arguments.task
                row = ours(*named, seconds, seed, arguments.prompts, flags, by_processor)
            else:
                row = grpo(
                    opened, tokenizer, task, held_out, seconds, seed, settings, clock,
                    arguments.curve,
                )  # fmt: skip
            rows.append(row)
            say(_line(row))
            common.append(arguments.out, row)
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))
    else:
        _medians(rows)


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
