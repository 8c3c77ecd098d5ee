"""What a large vocabulary costs: whole training steps at several V, everything else the same.

    python benchmarks/vocabulary.py [--json] [--vocab_size 256 8192 32768] [--chunk 64]

The readout, the embedding and the likelihood are what grows with V: their share of a step is what
the step takes beyond the one of a vocabulary of two. Steps of all sizes take turns.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from int_lm import config
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import evolve

MODEL = ModelConfig(architecture="rwkv", width=64, layers=2, ffn_multiple=2)
ES = EsConfig(
    population=512,
    segment_length=16,
    sigma_shift=3,
    votes="unit",
    readout="exact",
    update="carry",
    schedule="inverse_sqrt",
)
SMALLEST = 2


def prepared(settings: Config, vocab_size: int) -> tuple[Callable[[], float], int]:
    """(seconds of one more step, bytes of temporaries) at a vocabulary; compiled."""
    es = settings.es
    streams = es.streams
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, vocab_size, (streams, es.segment_length + 1)).astype(np.uint16)
    state = evolve.initial(settings, vocab_size)
    step = evolve.compiled_step(settings, vocab_size)
    number = 0

    def run() -> float:
        nonlocal state, number
        start = time.perf_counter()
        state, measured = step(state, tokens, number)
        measured.scores_P.block_until_ready()
        number += 1
        return time.perf_counter() - start

    word = np.uint32(0)
    whole = jax.jit(functools.partial(evolve.step, settings, vocab_size))
    compiled = whole.lower(state, tokens, word, word, evolve.pace(settings, 0)).compile()
    run()
    return run, int(compiled.memory_analysis().temp_size_in_bytes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab_size", type=int, nargs="+", default=[256, 8192, 32768])
    parser.add_argument("--chunk", type=int, default=64, help="members at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    es = dataclasses.replace(ES, chunk=arguments.chunk)
    settings = config.validate(Config(model=MODEL, es=es))
    sizes = [SMALLEST, *arguments.vocab_size]
    runs = {size: prepared(settings, size) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(arguments.repeats):
        for size in sizes:
            seconds[size].append(runs[size][0]())
    median = {size: statistics.median(times) for size, times in seconds.items()}
    rows: list[dict[str, Any]] = [
        {
            "vocab_size": size,
            "step_over_step_at_256": median[size] / median.get(256, median[sizes[1]]),
            "share_of_the_vocabulary": 1 - median[SMALLEST] / median[size],
            "temporary_bytes": runs[size][1],
            "tokens_per_s": settings.es.population * settings.es.segment_length / median[size],
        }
        for size in arguments.vocab_size
    ]
    if arguments.json:
        print(json.dumps({"jax": jax.__version__, "rows": rows}))
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; P 512, T 16, D 64, L 2")
    for row in rows:
        print(
            f"V {row['vocab_size']:>6}  step x {row['step_over_step_at_256']:7.2f}  "
            f"vocabulary's share {row['share_of_the_vocabulary']:.1%}  "
            f"temporaries {row['temporary_bytes'] / 1e6:,.0f} MB  "
            f"{row['tokens_per_s']:,.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
