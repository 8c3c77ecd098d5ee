"""Points of a law of scaling: runs with schedules of their own, each a row (benchmarks/law.py)."""

import dataclasses
import re
import time
from typing import Any

import numpy as np

from benchmarks import common, learning
from int_lm import errors
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.training import plan

RATE_WIDTH = 96  # the learning rate is 1.0 up to this width, and falls with the square above
HALFLIFE = 0.2  # of the learning rate, as a share of the steps
LAST_STEPS = 50  # whose mean is the row's figure of the training text, read under perturbation
POINT = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(\+?)")


@dataclasses.dataclass(frozen=True)
class Point:
    """A run: width and layers of the network, steps, and whether tables and cache are beside it."""

    width: int
    layers: int
    steps: int
    tables: bool

    @classmethod
    def of(cls, text: str) -> "Point":
        """The point that a text such as 96x2x1000 names.

        Raises:
          UserError: it names none.
        """
        if not (found := POINT.fullmatch(text)):
            raise UserError(f"{text} is no point; write WIDTHxLAYERSxSTEPS, or that and a +")
        width, layers, steps = map(int, found.groups()[:3])
        return cls(width, layers, steps, bool(found[4]))


def settings_of(base: Config, point: Point, changes: list[str]) -> Config:
    """The configuration of a point: rates by width and steps, then the changes."""
    model = {"width": point.width, "layers": point.layers}
    if not point.tables:
        model |= {"direct": (), "words": (), "cache": ()}
    settings = common.with_fields(base, "model", **model)
    rate, halflife = min(1.0, (RATE_WIDTH / point.width) ** 2), HALFLIFE * point.steps
    settings = common.with_fields(
        settings, "es", learning_rate=rate, learning_rate_halflife=halflife
    )
    settings = common.with_fields(settings, "run", steps=point.steps)
    return learning.changed("", settings, changes)


def beside(counted: plan.Costs, point: Point) -> int:
    """Weights of the network without embedding and readout."""
    return counted.weights - 2 * common.VOCAB_SIZE * point.width


def row_of(
    base: Config, point: Point, changes: list[str], *, score_bytes: int, at_most: int
) -> dict[str, Any]:
    """Train a point from its beginning to its end, and score it.

    Args:
      changes: of the configuration, as for `settings_of`.
      score_bytes: of held-out text that are scored.
      at_most: tokens that a stream reads before it moves to other text.
    """
    import jax

    import tokenization
    from data import split
    from data.open import open_corpus
    from int_lm.arithmetic import constants
    from int_lm.measure import evaluate
    from int_lm.method import evolve
    from int_lm.training import memory

    settings = settings_of(base, point, changes)
    tokenizer = tokenization.load(settings.data.tokenizer)
    opened = open_corpus(settings.data, tokenizer, say=errors.say)
    phases = [(0, [source.weight for source in opened.sources])]
    streams = opened.streams(settings, phases, at_most)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    state, step = evolve.initial(recipe), evolve.compiled_step(recipe)
    spent, bits, size = 0.0, 0.0, 0
    for number in range(point.steps):
        tokens_ST, began = streams.at(number), time.process_time()
        state, measured = step(state, tokens_ST, number)
        jax.block_until_ready(measured.scores_P)
        if number:  # the first one compiles
            spent += time.process_time() - began
        else:
            memory.trim()
            memory.keep()
        if number >= point.steps - LAST_STEPS:
            bits += constants.bits(int(np.asarray(measured.scores_P, np.int64).sum()))
            size += streams.text_bytes(number) * settings.es.members_per_stream
    heldout = [one for documents in opened.heldout(0).values() for one in documents]
    pieces = split.spread(heldout, score_bytes, evaluate.PIECE_BYTES)
    ids = [tokenizer.encode(piece.text) for piece in pieces]
    sizes = [len(piece.text) for piece in pieces]
    lengths = evaluate.evaluate(recipe.model, evolve.weights(recipe, state), ids, sizes)
    counted, es = plan.costs(recipe), settings.es
    return {
        **dataclasses.asdict(point),
        "changes": changes,
        "at_most": at_most,
        "seed": settings.run.seed,
        "learning_rate": es.learning_rate,
        "weights": counted.weights,
        "network": beside(counted, point),
        "text_tokens": point.steps * es.streams * es.segment_length,
        "operations": counted.operations * es.members_per_stream,
        "processor_seconds": round(spent * point.steps / max(1, point.steps - 1), 4),
        "train_bits_per_byte": round(bits / size, 5),
        "bits_per_byte": round(lengths.bits_per_byte, 5),
    }
