"""The speed of writing completions: a perturbed population beside the bare model, same batch.

    python benchmarks/rollouts.py [--population 512] [--length 32] [--json]

Every member writes `length` tokens after a prompt of 16, greedily and by draws; no token ends a
completion, so that all of them are as long. `perturbed_over_bare` is the ratio of speeds in
processor time, which other programs change less than the clock; a perturbed population draws its
noise within that time. Beside them stands a step of training on text with as many tokens. Speeds
are of tokens written (or read, in training) by all members.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common
from int_lm.config import Config, EsConfig, ModelConfig, RewardConfig, RunConfig
from int_lm.method import evolve, recipe as recipes, tuning
from int_lm.method.clock import Clock

PROMPT = 16
SIZES = ((64, 1), (128, 2), (256, 2))  # width, layers
VOCAB_SIZE = 256


def settings_of(
    width: int, layers: int, population: int, length: int, temperature: float
) -> Config:
    """A tuning of a model of this size."""
    es = EsConfig(
        objective="reward",
        votes="eggroll",
        readout="perturbed",
        population=population,
        members_per_stream=32,
    )
    written = RewardConfig(tokens=length, temperature=temperature)
    model = ModelConfig(width=width, layers=layers)
    return Config(model=model, es=es, run=RunConfig(), reward=written)


def row(width: int, layers: int, population: int, length: int, repeats: int) -> dict[str, Any]:
    """Speeds of one size."""
    settings = settings_of(width, layers, population, length, 0.0)
    recipe = recipes.of(settings, VOCAB_SIZE)
    weights = evolve.initial(recipe).weights
    random = np.random.default_rng(0)
    prompts = random.integers(1, VOCAB_SIZE, (recipe.es.streams, PROMPT)).astype(np.int32)
    every = np.repeat(prompts, recipe.es.members_per_stream, axis=0)
    endless = np.zeros(VOCAB_SIZE, bool)
    drawing = recipes.of(settings_of(width, layers, population, length, 1.0), VOCAB_SIZE)
    greedy, drawn = tuning.compiled_writer(recipe), tuning.compiled_writer(drawing)
    text = dataclasses.replace(
        settings,
        es=EsConfig(population=population, members_per_stream=32, segment_length=length),
    )
    training = recipes.of(text, VOCAB_SIZE)
    state, step = evolve.initial(training), evolve.jitted_step(training)
    tokens = random.integers(1, VOCAB_SIZE, (training.es.streams, length + 1)).astype(np.uint8)
    clock = Clock.at(0, 0)
    functions = {
        "bare": functools.partial(tuning.answers, recipe.model, weights, every, endless, length),
        "perturbed": functools.partial(greedy, weights, prompts, endless, 0),
        "drawn": functools.partial(drawn, weights, prompts, endless, 0),
        "training": lambda: step(*evolve.donated(state), tokens, clock, evolve.values(training, 0))[
            1
        ],
    }
    found = common.medians(functions, repeats)
    count = population * length
    return {
        "width": width,
        "layers": layers,
        "population": population,
        "length": length,
        **{f"{name}_tokens_per_s": count / median.seconds for name, median in found.items()},
        "perturbed_over_bare": found["bare"].cpu / found["perturbed"].cpu,
        "perturbed_over_bare_by_the_clock": found["bare"].seconds / found["perturbed"].seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, repeats=9)
    parser.add_argument("--population", type=int, default=512)
    parser.add_argument("--length", type=int, default=32)
    arguments = parser.parse_args()
    rows = [row(*size, arguments.population, arguments.length, arguments.repeats) for size in SIZES]
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))
        return
    print(common.machine())
    for one in rows:
        shown = [f"{key} {value:,.{3 if 'over' in key else 0}f}" for key, value in one.items()]
        print(*shown, sep="  ")


if __name__ == "__main__":
    main()
