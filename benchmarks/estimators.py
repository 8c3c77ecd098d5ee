"""How good is a vote? Its cosine with better ones, tensor by tensor.

    python benchmarks/estimators.py --text FILE ... [--steps 0 1000] [--draws 64] [--out ROWS.jsonl]

Weights stand still after each number of `--steps` of training by configs/recurrent_only.yaml, while
a population reads on. Votes of `--draws` segments are summed: the votes of a population so many
times larger. Eight more segments vote on their own; printed are means of their cosines

    own        with the sum of the same estimator: how much of a vote is not noise
    gradient   with the straight-through gradient of as many segments (benchmarks/backprop.py): how
               much of it back-propagation would have done; it goes through layers and time

for every estimator at equal population, segment length and perturbation scale.
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import learning
from int_lm import config, errors
from int_lm.config import Config
from int_lm.model.params import Tree

ESTIMATORS = {
    "plain": {"votes": "eggroll", "readout": "perturbed"},
    "trace": {"votes": "trace", "readout": "exact"},
    "unit": {"votes": "unit", "readout": "exact"},
}
SINGLES = 8
WARM_UP = 16  # segments read before the first vote: states forget that they began at zero

Votes = dict[str, np.ndarray]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays as flat vectors; 0 where one has no length."""
    x, y = (np.asarray(array, np.float64).ravel() for array in (a, b))
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / lengths) if lengths else 0.0


def votes_of(settings: Config, vocab_size: int, weights: Tree, laid: Any) -> Iterator[Votes]:
    """Votes of one segment after another, by path."""
    import jax
    import jax.numpy as jnp

    from int_lm.method import evolve, fitness, population, voting
    from int_lm.model import language_model

    specs = evolve.specs_of(settings, vocab_size)

    @jax.jit
    def vote(weights: Tree, members: Tree, tokens_ST: Any, number: Any):
        seed, chunks_C = jnp.uint32(settings.run.seed), population.all_chunks(settings.es)
        scores_P, members, ballots, _ = population.scores(
            settings, specs, weights, members, tokens_ST, seed, number, chunks_C
        )
        fitness_I = fitness.fitness(settings.es, scores_P)
        plain = voting.plain_votes(settings.es, specs, fitness_I, seed, number, chunks_C)
        return members, ballots | plain

    members = language_model.initial_state(settings.model, settings.es.population)
    number = 0
    while True:
        members, ballots = vote(weights, members, laid.at(number), np.uint32(number))
        yield {path: np.asarray(ballot, np.int64) for path, ballot in ballots.items()}
        number += 1


def gradients_of(settings: Config, weights: Tree, laid: Any) -> Iterator[Votes]:
    """Straight-through gradients of the log-likelihood, of one segment after another, by path."""
    import jax
    import jax.numpy as jnp

    from benchmarks import backprop
    from int_lm.model import language_model, params

    real = functools.partial(params.map_leaves, lambda leaf: leaf.astype(jnp.float32))
    gradient = jax.jit(jax.grad(backprop.loss, has_aux=True))
    es = settings.es
    state = real(language_model.initial_state(settings.model, es.streams))
    latent, number = real(weights), 0
    while True:
        tree, state = gradient(latent, state, jnp.asarray(laid.at(number)))
        yield {path: -np.asarray(leaf, np.float64) for path, leaf in params.flatten(tree)}
        number += 1


def summed(segments: Iterator[Votes], count: int) -> Votes:
    """The sum of so many."""
    total: Votes = {}
    for _ in range(count):
        for path, ballot in next(segments).items():
            total[path] = total.get(path, 0) + ballot
    return total


def measure(settings: Config, text: list[Any], step: int, weights: Tree, draws: int) -> list[Any]:
    """Rows of {step, estimator, tensor, own, gradient}."""
    import tokenization
    from data import streams

    tokenizer, es = tokenization.load(settings.data.tokenizer), settings.es
    laid = streams.build(
        text,
        tokenizer,
        streams=es.streams,
        segment_length=es.segment_length,
    )
    gradients = gradients_of(settings, weights, laid)
    summed(gradients, WARM_UP)
    gradient, rows = summed(gradients, draws), []
    for name, fields in ESTIMATORS.items():
        changed = dataclasses.replace(settings, es=dataclasses.replace(es, **fields))
        segments = votes_of(config.validate(changed), tokenizer.vocab_size, weights, laid)
        summed(segments, WARM_UP)
        own = summed(segments, draws)
        singles = [next(segments) for _ in range(SINGLES)]
        for path in own:
            rows.append(
                {
                    "step": step,
                    "estimator": name,
                    "tensor": path,
                    "own": statistics.mean(cosine(one[path], own[path]) for one in singles),
                    "gradient": statistics.mean(
                        cosine(one[path], gradient[path]) for one in singles
                    ),
                }
            )
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """A table for every number of steps, with the means over the hidden layers."""
    for step in dict.fromkeys(row["step"] for row in rows):
        print(f"\nafter {step} steps" + "".join(f"{name:>20}" for name in ESTIMATORS))
        print(f"{'':<24}" + f"{'own':>11}{'gradient':>9}" * len(ESTIMATORS))
        here = [row for row in rows if row["step"] == step]
        paths = list(dict.fromkeys(row["tensor"] for row in here))
        groups = {path: [path] for path in paths}
        groups["mean of the layers"] = [path for path in paths if path.startswith("layers/")]
        for title, members in groups.items():
            cells = ""
            for name in ESTIMATORS:
                for kind, width in (("own", 11), ("gradient", 9)):
                    values = [
                        row[kind]
                        for row in here
                        if row["estimator"] == name and row["tensor"] in members
                    ]
                    cells += f"{statistics.mean(values):>{width}.3f}"
            print(f"{title:<24}" + cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1000], help="of training")
    parser.add_argument("--draws", type=int, default=64, help="segments of the larger population")
    parser.add_argument("--set", nargs="+", default=[], metavar="S.F=V", help="change settings")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write rows as JSON lines")
    arguments = parser.parse_args()

    import jax

    settings = learning.changed(
        "recurrent", learning.RECIPES["recurrent"](), ["run.steps=4000", *arguments.set]
    )
    es = settings.es
    text, _ = learning.read(arguments.text)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, jax {jax.__version__}; "
        f"P {es.population}, T {es.segment_length}, {arguments.draws} draws"
    )
    advance, weights_now, _ = learning.evolution(settings, text)
    rows: list[dict[str, Any]] = []
    done = 0
    for step in sorted(arguments.steps):
        for number in range(done, step):
            advance(number)
        done = max(done, step)
        rows += measure(settings, text, step, weights_now(), arguments.draws)
    report(rows)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    with errors.reported("estimators.py"):
        main()
