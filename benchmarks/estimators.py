"""How good votes are: their cosine with less noisy ones, tensor by tensor.

    python benchmarks/estimators.py --text FILE ... [--steps 0 1000] [--draws 64] [--json]

A model is trained by configs/recurrent_only.yaml for each number of `--steps`. Then its weights
stay fixed while a population reads on. The votes of `--draws` segments are summed: this gives the
votes of a population so many times larger. For each of eight more segments, the cosines of its
votes are computed with

    own        the sum for the same estimator: how much of a vote is not noise
    gradient   the straight-through gradient of as many segments (benchmarks/backprop.py), which
               goes through layers and time: how far votes agree with back-propagation

The means of both are printed for every estimator, at equal streams, segment length and perturbation
scale.
"""

import functools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common, learning
from int_lm import errors
from int_lm.config import Config
from int_lm.method.recipe import Recipe
from int_lm.model.params import Parameters

ESTIMATORS = {
    "plain": {"votes": "eggroll", "readout": "perturbed", "members_per_stream": 2},
    "trace": {"votes": "trace", "readout": "exact", "members_per_stream": 2},
    "unit": {"votes": "unit", "readout": "exact", "members_per_stream": 2},
    "local": {"votes": "local", "readout": "exact", "members_per_stream": 1},
    "deep": {"votes": "deep", "readout": "exact", "members_per_stream": 1},
}
SINGLES = 8
WARM_UP = 16  # segments read before the first vote: states forget that they began at zero

Votes = dict[str, np.ndarray]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two arrays as flat vectors; 0 if one of them is all zeros."""
    x, y = (np.asarray(array, np.float64).ravel() for array in (a, b))
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / lengths) if lengths else 0.0


def votes_of(recipe: Recipe, weights: Parameters, laid: Any) -> Iterator[Votes]:
    """Votes of one segment after another, by path."""
    import jax

    from int_lm.method import population
    from int_lm.method.clock import Clock
    from int_lm.method.state import Tables

    ask = jax.jit(functools.partial(population.result, recipe))
    members, number = recipe.model.initial_state(recipe.es.population), 0
    while True:
        clock = Clock.at(recipe.settings.run.seed, number)
        result = ask(weights.network, Tables(), members, laid.at(number), clock)
        members = result.members
        yield {path: np.asarray(votes, np.int64) for path, votes in result.votes.items()}
        number += 1


def gradients_of(recipe: Recipe, weights: Parameters, laid: Any) -> Iterator[Votes]:
    """Straight-through gradients of the log-likelihood, of one segment after another, by path."""
    import jax
    import jax.numpy as jnp

    from benchmarks import backprop
    from int_lm.model import params

    gradient = jax.jit(jax.grad(backprop.loss, has_aux=True))
    state = backprop.real(recipe.model.initial_state(recipe.es.streams))
    latent, number = backprop.real(weights.network), 0
    while True:
        tree, state = gradient(latent, state, jnp.asarray(laid.at(number)))
        yield {path: -np.asarray(leaf, np.float64) for path, leaf in params.flatten(tree)}
        number += 1


def summed(segments: Iterator[Votes], count: int) -> Votes:
    """The sum of the votes of `count` segments."""
    total: Votes = {}
    for _ in range(count):
        for path, ballot in next(segments).items():
            total[path] = total.get(path, 0) + ballot
    return total


def measure(
    settings: Config, text: list[Any], step: int, weights: Parameters, draws: int
) -> list[dict[str, Any]]:
    """Rows of {step, estimator, tensor, own, gradient}."""
    import tokenization
    from data import streams

    tokenizer, es = tokenization.load(settings.data.tokenizer), settings.es
    sizes = {"streams": es.streams, "segment_length": es.segment_length}
    laid = streams.build(text, tokenizer, **sizes)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    gradients = gradients_of(recipe, weights, laid)
    summed(gradients, WARM_UP)
    gradient, rows = summed(gradients, draws), []
    for name, fields in ESTIMATORS.items():
        population = es.streams * int(fields["members_per_stream"])
        changed = common.with_fields(settings, "es", population=population, **fields)
        segments = votes_of(common.recipe_of(changed, tokenizer.vocab_size), weights, laid)
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
    parser = common.parser(__doc__)
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1000], help="of training")
    parser.add_argument("--draws", type=int, default=64, help="segments of the larger population")
    parser.add_argument("--set", nargs="+", default=[], metavar="S.F=V", help="change settings")
    arguments = parser.parse_args()

    import tokenization

    changes = ["run.steps=4000", *arguments.set]
    settings = learning.changed("recurrent", learning.RECIPES["recurrent"](), changes)
    es, text = settings.es, learning.read(arguments.text)[0]
    tokenizer = tokenization.load(settings.data.tokenizer)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    advance, weights_now, _ = learning.evolution(recipe, tokenizer, text)
    rows: list[dict[str, Any]] = []
    done = 0
    for step in sorted(arguments.steps):
        for number in range(done, step):
            advance(number)
        done = max(done, step)
        rows += measure(settings, text, step, weights_now(), arguments.draws)
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "draws": arguments.draws, "rows": rows}))
        return
    sizes = f"S {es.streams}, T {es.segment_length}, {arguments.draws} draws"
    print(f"{common.machine()}; {sizes}")
    report(rows)


if __name__ == "__main__":
    with errors.reported("estimators.py"):
        main()
