"""Learning curves: seconds of training against held-out bits per byte, beside the entropies.

    python benchmarks/learning.py --text FILE ... --seconds 120 [--recipe NAME ...] [--seed N ...]
        [--set es.votes=trace default:run.steps=1500 ...] [--out ROWS.jsonl] [--json]
    python benchmarks/learning.py --text FILE ... --steps 300 1200 [as above]
    python benchmarks/learning.py --rows ROWS.jsonl ... [--run runs/quickstart ...]
        [--level gzip=2.927 ...] --picture docs/learning.svg

The last tenth of every file is held out. The clock runs during training steps only: compilation
and evaluation, over the whole held-out text, are not counted. Every row is printed, and written
to --out, as soon as it is measured. On a busy machine, --steps 300 600 1200 in place of --seconds
compares at equal steps; rows have the processor's seconds, too. Recipe `backprop` is the twin of
`recurrent` (benchmarks/backprop.py) and needs `pip install -e '.[bench]'`; otherwise it is left
out. Learning rates fall to 0 at run.steps of the configuration: --set it to the number of steps
that the machine does in --seconds.

With few steps, mind the warm-up of a recipe (--set es.warmup=0): until its end rates only rise.

--picture draws rows: those just measured, or those of --rows and the evaluations in the
`metrics.jsonl` of run directories: medians over seeds, with the range between the best and the
worst seed. It needs `pip install -e '.[bench]'`.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from int_lm import config, errors
from int_lm.config import Config, DataConfig, RunConfig
from int_lm.method.recipe import Recipe
from int_lm.model.params import Parameters
from int_lm.plot import picture
from int_lm.training import cautions


def _shipped(name: str, **model: Any) -> Config:
    """Model, estimator and steps of configs/`name`.yaml, with fields of the model changed."""
    settings = common.with_fields(common.shipped(name), "model", **model)
    run = RunConfig(steps=settings.run.steps)
    return Config(model=settings.model, es=settings.es, run=run)


RECIPES = {
    "paper": common.paper,
    "recurrent": lambda: _shipped("recurrent_only"),
    "default": lambda: _shipped("quickstart"),
    "prose": lambda: _shipped("prose"),
    # context tables alone: a network of one channel has almost no effect
    "direct": lambda: _shipped("quickstart", width=1, layers=1, ffn_multiple=1),
    "backprop": lambda: _shipped("recurrent_only"),
}
TWIN_STREAMS, TWIN_SEGMENT, TWIN_RATE = 64, 50, 0.5  # batch, tokens, and units of 1/16
EVALUATE_AT = (2, 5, 8, 10, 20, 30, 45, 60, 80, 100, 120)  # seconds; then every 60
DOCUMENT_BYTES = 16384
HELD_OUT = 0.1


def read(paths: list[str]) -> tuple[list[Any], list[Any]]:
    """Training documents and held-out ones: the last tenth of every file."""
    from data import sources, text

    train, heldout = [], []
    for path in paths:
        [whole] = sources.read_documents(DataConfig(source="text", path=(path,), document_bytes=0))
        boundary = len(whole.text) - round(len(whole.text) * HELD_OUT)
        for part, side in ((whole.text[:boundary], train), (whole.text[boundary:], heldout)):
            side += text.cut(dataclasses.replace(whole, text=part), DOCUMENT_BYTES)
    return train, heldout


Learner = tuple[Callable[[int], None], Callable[[], Parameters], int]


def evolution(recipe: Recipe, tokenizer: Any, train: list[Any]) -> Learner:
    """(run step `number`, weights so far, tokens per step) of a recipe; compiled."""
    import jax

    from data import streams
    from int_lm.method import evolve
    from int_lm.training import memory

    es = recipe.es
    sizes = {"streams": es.streams, "segment_length": es.segment_length}
    laid = streams.build(train, tokenizer, **sizes, seed=recipe.settings.run.seed)
    state, step = evolve.initial(recipe), evolve.compiled_step(recipe)
    # context tables are changed in place: what compiles gets a copy
    jax.block_until_ready(step(jax.tree.map(jax.numpy.copy, state), laid.at(0), 0))
    memory.keep()  # as in training

    def advance(number: int) -> None:
        nonlocal state
        state, measured = step(state, laid.at(number), number)
        measured.scores_P.block_until_ready()

    return advance, lambda: evolve.weights(recipe, state), es.population * es.segment_length


def _twin(recipe: Recipe, tokenizer: Any, train: list[Any]) -> Learner:
    """The same for back-propagation."""
    from benchmarks import backprop
    from data import streams

    sizes = {"streams": TWIN_STREAMS, "segment_length": TWIN_SEGMENT}
    laid = streams.build(train, tokenizer, **sizes, seed=recipe.settings.run.seed)
    twin = backprop.Twin(recipe, TWIN_STREAMS, TWIN_RATE)
    twin.step(laid.at(0), keep=False)
    return (
        lambda number: twin.step(laid.at(number)),
        lambda: twin.weights,
        TWIN_STREAMS * TWIN_SEGMENT,
    )


def curve(
    name: str,
    settings: Config,
    train: list[Any],
    heldout: list[Any],
    seconds: float | None,
    steps: list[int],
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train for `seconds`, or to the last of `steps`; `report` gets a row at each evaluation.

    A row: {recipe, seed, at, seconds, processor_seconds, step, tokens, bits_per_byte}.
    """
    import tokenization
    from int_lm.measure import evaluate

    tokenizer = tokenization.load(settings.data.tokenizer)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    ids = [tokenizer.encode(document.text) for document in heldout]
    sizes = [len(document.text) for document in heldout]
    learner = _twin if name == "backprop" else evolution
    advance, weights_now, tokens = learner(recipe, tokenizer, train)

    def measure(weights: Parameters) -> float:
        return evaluate.evaluate(recipe.model, weights, ids, sizes).bits_per_byte

    due: list[float] = sorted(steps)
    if seconds is not None:
        due = [at for at in EVALUATE_AT if at < seconds]
        due += [at for at in range(180, int(seconds), 60)] + [seconds]
    clock, processor, number = 0.0, 0.0, 0
    while due:
        start, before = time.perf_counter(), time.process_time()
        advance(number)
        clock += time.perf_counter() - start
        processor += time.process_time() - before
        number += 1
        if (number if steps else clock) < due[0]:
            continue
        while due and (number if steps else clock) >= due[0]:
            at = due.pop(0)
        report(
            {
                "recipe": name,
                "seed": settings.run.seed,
                "at": at,
                "seconds": round(clock, 2),
                "processor_seconds": round(processor, 2),
                "step": number,
                "tokens": number * tokens,
                "bits_per_byte": measure(weights_now()),
            }
        )


def changed(name: str, settings: Config, changes: list[str]) -> Config:
    """A recipe after `[recipe:]section.field=value` changes, values as in YAML."""
    import yaml

    tree = config.to_dict(settings)
    for change in changes:
        where, _, value = change.partition("=")
        recipe, _, where = where.rpartition(":")
        section, _, field = where.partition(".")
        if field not in tree.get(section, {}):
            raise errors.UserError(f"--set {change}: no setting {where!r}; see train.py --help")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            raise errors.UserError(f"--set {change}: {value!r} is no value of YAML") from None
        if recipe in ("", name):
            tree[section][field] = read
    return config.validate(config.from_dict(tree, "--set"))


def _table(rows: list[dict[str, Any]]) -> None:
    """Medians over the seeds, recipes against seconds or steps."""
    seconds = sorted({row["at"] for row in rows})
    print(f"{'at':<12}" + "".join(f"{at:>8g}" for at in seconds))
    for name in dict.fromkeys(row["recipe"] for row in rows):
        cells = []
        for at in seconds:
            values = [
                row["bits_per_byte"] for row in rows if (row["recipe"], row["at"]) == (name, at)
            ]
            cells.append(f"{statistics.median(values):8.3f}" if values else " " * 8)
        print(f"{name:<12}" + "".join(cells))


# -- The picture -----------------------------------------------------------------------------------

Point = tuple[str, float, float]  # curve, seconds, bits per byte


def _of_run(directory: Path) -> Iterator[Point]:
    """Points of a run's metrics: its evaluations on held-out text."""
    for row in common.rows_of(directory / "metrics.jsonl", "seconds"):
        if row.get("valid_bits_per_byte") is not None:
            yield directory.name, row["seconds"], row["valid_bits_per_byte"]


def draw(points: list[Point], levels: dict[str, float], out: Path) -> None:
    """A line for each curve and a dashed one for each level; the format is `out`'s suffix."""
    curves: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, seconds, bits in points:
        curves[name][seconds].append(bits)
    figure, axes = picture.pyplot().subplots(figsize=(8, 4.8), layout="constrained")
    for name, measured in curves.items():
        seconds = sorted(measured)
        columns = [measured[at] for at in seconds]
        [line] = axes.plot(seconds, list(map(statistics.median, columns)), marker=".", label=name)
        band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
        axes.fill_between(seconds, list(map(min, columns)), list(map(max, columns)), **band)
    for name, bits in levels.items():
        axes.axhline(bits, linestyle="--", linewidth=0.8, color="gray")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 2), "ha": "right"}
        axes.annotate(name, (1, bits), textcoords="offset points", color="gray", **place)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="held-out bits per byte")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    axes.grid(alpha=0.3)
    picture.save(figure, out)


# -- The command -----------------------------------------------------------------------------------


def _level(text: str) -> tuple[str, float]:
    """The name and the bits of a text such as gzip=2.927."""
    name, _, bits = text.partition("=")
    return name, float(bits)


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
      UserError: it asks for nothing, for what is not installed, or for a file that cannot be
        written.
    """
    parser = common.parser(__doc__)
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="text files")
    parser.add_argument("--seconds", type=float, help="of training, per recipe")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[], help="evaluate at these steps instead"
    )
    present = [name for name in RECIPES if common.has_optax() or name != "backprop"]
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=present)
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="one curve for each")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="[RECIPE:]S.F=V", help="change settings"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    parser.add_argument("--rows", nargs="+", type=Path, default=[], metavar="FILE", help="to draw")
    parser.add_argument("--run", nargs="+", type=Path, default=[], metavar="DIR", help="to draw")
    parser.add_argument(
        "--level", nargs="+", type=_level, default=[], metavar="NAME=BITS", help="to draw"
    )
    common.add_picture_arguments(parser)
    arguments = parser.parse_args()
    if bool(arguments.text) != ((arguments.seconds is not None) + bool(arguments.steps) == 1):
        raise errors.UserError("to measure, name --text and either --seconds or --steps")
    if min(arguments.steps, default=1) < 1:
        raise errors.UserError("--steps must be at least 1")
    drawn = arguments.picture and (arguments.rows or arguments.run)
    if not arguments.text and not drawn:
        raise errors.UserError("nothing to do: add --text and --seconds, or --rows and --picture")
    if arguments.text and "backprop" in arguments.recipe:
        common.require_optax("recipe backprop")
    common.check_out(arguments.out)
    common.check_picture(arguments)
    return arguments


def planned(arguments: argparse.Namespace) -> list[tuple[str, Config]]:
    """The curves to measure: recipe and configuration; what is doubtful in one is said.

    Raises:
      UserError: a change of --set is impossible.
    """
    found = []
    for seed in arguments.seed:
        for name in arguments.recipe:
            settings = common.with_fields(RECIPES[name](), "run", seed=seed)
            settings = changed(name, settings, arguments.set)
            common.recipe_of(settings)
            found.append((name, settings))
    for name, settings in found[: len(arguments.recipe)]:
        last = max(arguments.steps, default=settings.run.steps)
        doubtful = cautions.of(common.with_fields(settings, "run", steps=last))
        for sentence in doubtful if name != "backprop" else []:
            errors.say(f"{name}: {sentence}")
    return found


def measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the machine and the entropies of the held-out text, rows); printed as they come."""
    from data import baselines

    curves = planned(arguments)
    train, heldout = read(arguments.text)
    size = sum(len(document.text) for document in heldout)
    values = baselines.baselines(heldout)
    found = {"machine": common.machine(), "heldout_bytes": size, "entropies": values}
    if not arguments.json:
        print(f"{common.machine()}; bits per byte of {size:,} held-out bytes")
        for name, value in values.items():
            print(f"{name:<12}{value:8.3f}", flush=True)
    rows: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        common.append(arguments.out, row)
        print(
            f"{row['recipe']:<12} seed {row['seed']} {row['seconds']:7.1f} s  "
            f"({row['processor_seconds']:.1f} of the processor)  "
            f"step {row['step']:6}  {row['bits_per_byte']:.4f}",
            file=sys.stderr,
            flush=True,
        )

    for name, settings in curves:
        curve(name, settings, train, heldout, arguments.seconds, arguments.steps, report)
    return found, rows


def main() -> None:
    """Measure, print and draw."""
    arguments = parse()
    found, rows = measured(arguments) if arguments.text else ({}, [])
    if arguments.json:
        print(json.dumps(found | {"rows": rows}))
    elif rows:
        _table(rows)
    if arguments.picture:
        keys = "recipe", "at", "bits_per_byte"
        rows += [row for path in arguments.rows for row in common.rows_of(path, *keys)]
        points = [(row["recipe"], float(row["at"]), row["bits_per_byte"]) for row in rows]
        points += [point for path in arguments.run for point in _of_run(path)]
        draw(points, dict(arguments.level), arguments.picture)
        print(f"wrote {arguments.picture}", file=sys.stderr)


if __name__ == "__main__":
    with errors.reported("learning.py"):
        main()
