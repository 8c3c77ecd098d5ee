"""Learning curves: seconds of training against held-out bits per byte, beside the entropies.

    python benchmarks/learning.py --text FILE ... --seconds 120 [--seed N ...] [--json]

The last tenth of every file is held out. The clock runs during training steps only: compilation
and evaluation, over the whole held-out text, stand outside it.
"""

import argparse
import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from int_lm import config, errors
from int_lm.config import Config, DataConfig, EsConfig, ModelConfig, RunConfig

RECIPES = {
    "paper": Config(
        model=ModelConfig(architecture="egg", width=64, layers=2),
        es=EsConfig(population=2048, segment_length=50, alpha=1.0),
    ),
}
EVALUATE_AT = (5, 10, 20, 30, 45, 60, 80, 100, 120)  # seconds; then every 60
DOCUMENT_BYTES = 16384
HELD_OUT = 0.1


def read(paths: list[str]) -> tuple[list[Any], list[Any]]:
    """Training documents and held-out ones: the last tenth of every file."""
    from data import sources

    train, heldout = [], []
    for path in paths:
        [whole] = sources.read_documents(DataConfig(source="text", path=(path,), document_bytes=0))
        boundary = len(whole.text) - round(len(whole.text) * HELD_OUT)
        for part, side in ((whole.text[:boundary], train), (whole.text[boundary:], heldout)):
            side += sources.cut(dataclasses.replace(whole, text=part), DOCUMENT_BYTES)
    return train, heldout


def curve(
    name: str, settings: Config, train: list[Any], heldout: list[Any], seconds: float
) -> list[dict[str, Any]]:
    """Train for `seconds`; rows of {recipe, seed, seconds, step, tokens, bits_per_byte}."""
    import jax

    import tokenization
    from data import streams
    from int_lm import evaluate, evolve

    tokenizer = tokenization.load(settings.data.tokenizer)
    es = settings.es
    laid = streams.build(
        train,
        tokenizer,
        streams=es.population // es.members_per_stream,
        segment_length=es.segment_length,
    )
    ids = [tokenizer.encode(document.text) for document in heldout]
    sizes = [len(document.text) for document in heldout]
    state = evolve.initial(settings, tokenizer.vocab_size)
    step = evolve.compiled_step(settings, tokenizer.vocab_size)
    copied = jax.tree.map(
        jax.numpy.copy, state
    )  # tables of direct connections are changed in place
    jax.block_until_ready(step(copied, laid.at(0), 0))  # compiles; its result is not used

    due = [at for at in EVALUATE_AT if at < seconds]
    due += [at for at in range(180, int(seconds), 60)] + [seconds]
    rows, clock, number = [], 0.0, 0
    while due:
        start = time.perf_counter()
        state, measured = step(state, laid.at(number), number)
        measured.scores_P.block_until_ready()
        clock += time.perf_counter() - start
        number += 1
        if clock < due[0]:
            continue
        while due and clock >= due[0]:
            due.pop(0)
        measure = evaluate.evaluate(settings.model, state.weights, ids, sizes)
        rows.append(
            {
                "recipe": name,
                "seed": settings.run.seed,
                "seconds": round(clock, 2),
                "step": number,
                "tokens": number * es.population * es.segment_length,
                "bits_per_byte": measure.bits_per_byte,
            }
        )
        print(
            f"{name:<10} seed {settings.run.seed} {clock:7.1f} s  step {number:5}  "
            f"{measure.bits_per_byte:.4f}",
            file=sys.stderr,
            flush=True,
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--seconds", type=float, required=True, help="of training, per recipe")
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="one curve for each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    train, heldout = read(arguments.text)

    import jax

    from data import baselines

    yardsticks = baselines.baselines(heldout)
    rows = []
    for name in arguments.recipe:
        for seed in arguments.seed:
            settings = dataclasses.replace(RECIPES[name], run=RunConfig(seed=seed))
            rows += curve(name, config.validate(settings), train, heldout, arguments.seconds)
    if arguments.json:
        print(json.dumps({"baselines": yardsticks, "jax": jax.__version__, "rows": rows}))
        return
    size = sum(len(document.text) for document in heldout)
    print(f"{platform.machine()}, jax {jax.__version__}; bits per byte of {size:,} held-out bytes")
    for name, value in yardsticks.items():
        print(f"  {name:<10} {value:.4f}")
    print(f"{'recipe':<10} {'seed':>4} {'seconds':>8} {'step':>6} {'bits/byte':>10}")
    for row in rows:
        print(
            f"{row['recipe']:<10} {row['seed']:>4} {row['seconds']:>8.1f} {row['step']:>6} "
            f"{row['bits_per_byte']:>10.4f}"
        )


if __name__ == "__main__":
    with errors.reported("learning.py"):
        main()
