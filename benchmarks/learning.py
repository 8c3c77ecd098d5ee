"""Learning curves: seconds of training against held-out bits per byte, beside the entropies.

    python benchmarks/learning.py --text FILE ... --seconds 120 [--recipe NAME ...] [--seed N ...]
                                  [--set es.votes=trace default:run.steps=1500 ...]
                                  [--out ROWS.jsonl]

The last tenth of every file is held out. The clock runs during training steps only: compilation
and evaluation, over the whole held-out text, stand outside it. Every row is printed, and written
to --out, as soon as it is measured; `benchmarks/picture.py` draws the rows. Recipe `backprop` is
the twin of `recurrent` (benchmarks/backprop.py) and needs `pip install -e '.[bench]'`; without, it
is left out. Learning rates fall to 0 at run.steps, which are the configurations' own: --set them to
what the machine does in --seconds.
"""

import argparse
import dataclasses
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from int_lm import config, errors
from int_lm.config import Config, DataConfig, EsConfig, ModelConfig, RunConfig
from int_lm.model.params import Tree

ROOT = Path(__file__).resolve().parents[1]


def _from_file(name: str, **changes: Any) -> Config:
    """Model, estimator and steps of configs/`name`.yaml, with fields of the model changed."""
    settings = config.load(ROOT / "configs" / f"{name}.yaml")
    model, run = dataclasses.replace(settings.model, **changes), RunConfig(steps=settings.run.steps)
    return Config(model=model, es=settings.es, run=run)


RECIPES = {
    "paper": lambda: Config(
        model=ModelConfig(architecture="egg", width=64, layers=2),
        es=EsConfig(population=2048, segment_length=50, alpha=1.0),
    ),
    "recurrent": lambda: _from_file("recurrent_only"),
    "default": lambda: _from_file("quickstart"),
    # direct connections alone: a network of one channel is next to none
    "direct": lambda: _from_file("quickstart", width=1, layers=1, ffn_multiple=1),
    "backprop": lambda: _from_file("recurrent_only"),
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


def evolution(settings: Config, train: list[Any]) -> tuple[Callable[[int], None], Any, int]:
    """(run step `number`, weights so far, tokens per step) of a recipe; compiled."""
    import jax

    import tokenization
    from data import streams
    from int_lm.method import evolve
    from int_lm.training import memory

    tokenizer, es = tokenization.load(settings.data.tokenizer), settings.es
    laid = streams.build(
        train,
        tokenizer,
        streams=es.streams,
        segment_length=es.segment_length,
        seed=settings.run.seed,
    )
    state = evolve.initial(settings, tokenizer.vocab_size)
    step = evolve.compiled_step(settings, tokenizer.vocab_size)
    # tables of direct connections are changed in place: what compiles gets a copy
    jax.block_until_ready(step(jax.tree.map(jax.numpy.copy, state), laid.at(0), 0))
    memory.keep()  # as in training

    def advance(number: int) -> None:
        nonlocal state
        state, measured = step(state, laid.at(number), number)
        measured.scores_P.block_until_ready()

    return advance, lambda: state.weights, es.population * es.segment_length


def _twin(settings: Config, train: list[Any]) -> tuple[Callable[[int], None], Any, int]:
    """The same for back-propagation."""
    import tokenization
    from benchmarks import backprop
    from data import streams

    tokenizer = tokenization.load(settings.data.tokenizer)
    sizes = {"streams": TWIN_STREAMS, "segment_length": TWIN_SEGMENT}
    laid = streams.build(train, tokenizer, **sizes, seed=settings.run.seed)
    twin = backprop.Twin(settings, tokenizer.vocab_size, TWIN_STREAMS, TWIN_RATE)
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
    seconds: float,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train for `seconds`; `report` gets {recipe, seed, seconds, step, tokens, bits_per_byte}."""
    import tokenization
    from int_lm.measure import evaluate

    tokenizer = tokenization.load(settings.data.tokenizer)
    ids = [tokenizer.encode(document.text) for document in heldout]
    sizes = [len(document.text) for document in heldout]
    advance, weights_now, tokens = (_twin if name == "backprop" else evolution)(settings, train)

    def measure(weights: Tree) -> float:
        return evaluate.evaluate(settings.model, weights, ids, sizes).bits_per_byte

    due = [at for at in EVALUATE_AT if at < seconds]
    due += [at for at in range(180, int(seconds), 60)] + [seconds]
    clock, number = 0.0, 0
    while due:
        start = time.perf_counter()
        advance(number)
        clock += time.perf_counter() - start
        number += 1
        if clock < due[0]:
            continue
        while due and clock >= due[0]:
            at = due.pop(0)
        report(
            {
                "recipe": name,
                "seed": settings.run.seed,
                "at": at,
                "seconds": round(clock, 2),
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
        if recipe in ("", name):
            tree[section][field] = yaml.safe_load(value)
    return config.validate(config.from_dict(tree, "--set"))


def _table(rows: list[dict[str, Any]]) -> None:
    """Medians over the seeds, recipes against seconds."""
    seconds = sorted({row["at"] for row in rows})
    print(f"{'seconds':<12}" + "".join(f"{at:>8g}" for at in seconds))
    for name in dict.fromkeys(row["recipe"] for row in rows):
        cells = []
        for at in seconds:
            values = [
                row["bits_per_byte"] for row in rows if (row["recipe"], row["at"]) == (name, at)
            ]
            cells.append(f"{statistics.median(values):8.3f}" if values else " " * 8)
        print(f"{name:<12}" + "".join(cells))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--seconds", type=float, required=True, help="of training, per recipe")
    bench = importlib.util.find_spec("optax") is not None
    present = [name for name in RECIPES if bench or name != "backprop"]
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=present)
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="one curve for each")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="[RECIPE:]S.F=V", help="change settings"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    arguments = parser.parse_args()
    if not set(arguments.recipe) <= set(present):
        raise errors.UserError("recipe backprop needs optax: pip install -e '.[bench]'")

    train, heldout = read(arguments.text)

    import jax

    from data import baselines

    size = sum(len(document.text) for document in heldout)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, jax {jax.__version__}; "
        f"bits per byte of {size:,} held-out bytes"
    )
    for name, value in baselines.baselines(heldout).items():
        print(f"{name:<12}{value:8.3f}", flush=True)
    rows: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(
            f"{row['recipe']:<12} seed {row['seed']} {row['seconds']:7.1f} s  "
            f"step {row['step']:6}  {row['bits_per_byte']:.4f}",
            file=sys.stderr,
            flush=True,
        )

    for seed in arguments.seed:
        for name in arguments.recipe:
            settings = RECIPES[name]()
            run = dataclasses.replace(settings.run, seed=seed)
            settings = dataclasses.replace(settings, run=run)
            settings = changed(name, settings, arguments.set)
            curve(name, settings, train, heldout, arguments.seconds, report)
    _table(rows)


if __name__ == "__main__":
    with errors.reported("learning.py"):
        main()
