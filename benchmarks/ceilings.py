"""What a lead for better credit can give at most: the twin's gradient with parts of it cut off.

    python benchmarks/ceilings.py --text FILE ... [--cut NAME ...] [--steps 500]
        [--set model.width=96 ...] [--every 6] [--out ROWS.jsonl] [--json]

Every cut trains the float twin of `recurrent` (benchmarks/backprop.py) for the same number of steps
on the streams and segments that evolution would read, by Adam, with rates that fall to 0. Its
gradient has no noise: no estimator of the same paths can do better. Held-out text is read by the
float model, from a fresh state for every document, one document in `--every`.

A cut names the paths that credit flows along from the loss of a token:

    skip        the skip path to what the present token added: what unit votes aim at
    layers      the later layers at the present token, too
    within K    all of it at the present token and the K tokens before it
    skip K      the skip path, and all paths within a layer at the K tokens before it
    leak        the skip path, and the leak of the cell through the whole segment
    linear K    a fixed linear map from the credits of the stream's end at this token and the next
                K, fitted by least squares to the whole credit of every place, anew in every step
    whole       all of it, through the whole segment

Additions: `+later N` has readouts of the N tokens after the next, `+depth` one after each layer;
both are thrown away in the end. `+slow` lets half of the cell's channels change more slowly, by
factors down to 1/16; `+blind` hides the cell from the gates, so that the leak is all its memory.

Axes: B streams or windows, T tokens of a segment, D width, V vocabulary.
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import backprop, common, cuts, learning
from int_lm import errors
from int_lm.limits import SEPARATOR
from int_lm.method import evolve
from int_lm.model.params import Tree

RATE = 0.5  # of Adam, in units of 1/16
CUTS = [
    "skip",
    "layers",
    "within 1",
    "within 3",
    "whole",
    "skip 1",
    "leak",
    "linear 0",
    "linear 3",
    "skip +later 3",
    "skip +depth",
    "leak +slow +blind",
    "whole +slow +blind",
]


def evaluate(cut: cuts.Cut, latent: Tree, documents: list[list[int]]) -> float:
    """Bits per byte of held-out documents, each from a fresh state."""
    length = max(map(len, documents))
    tokens_BT = np.full((len(documents), length), SEPARATOR, np.int32)
    for row, ids in zip(tokens_BT, documents, strict=True):
        row[: len(ids)] = ids
    counted_BT = np.arange(1, length)[None] < np.array([[len(ids)] for ids in documents])
    shape = jax.tree.leaves(latent["layers"])[0].shape[0], len(documents)
    width = latent["embedding"].shape[-1]
    names = ("cell", "time_shift", "channel_shift")
    state = {name: jnp.zeros((*shape, width)) for name in names}
    nothing = cuts.nowhere(shape[0])

    @jax.jit
    def read_all(latent: Tree) -> Array:
        weights = jax.tree.map(backprop.rounded, latent)

        def read(state: Tree, each: Any) -> tuple[Tree, Array]:
            tokens, target, counted = each
            state, found, _ = cuts.read_token(cut, weights, state, tokens, nothing)
            return state, jnp.sum(
                jnp.where(counted, cuts.bits(weights["head"], found[-1], target), 0)
            )

        each = (tokens_BT.T[:-1], tokens_BT.T[1:], counted_BT.T)
        return jnp.sum(jax.lax.scan(read, state, each)[1])

    return float(read_all(latent)) / counted_BT.sum()


def train(name: str, settings: Any, text: list, heldout: list, steps: int) -> dict[str, Any]:
    """A row: {cut, steps, bits_per_byte, processor_seconds}."""
    import optax

    import tokenization
    from data import streams

    cut, es = cuts.cut_of(name), settings.es
    tokenizer = tokenization.load(settings.data.tokenizer)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    sizes = {"streams": es.streams, "segment_length": es.segment_length}
    laid = streams.build(text, tokenizer, **sizes, seed=settings.run.seed)
    latent = backprop.real(evolve.initial(recipe).network)
    extra = max(cut.later, (settings.model.layers - 1) * cut.depth)
    if extra:
        latent["extra"] = jnp.zeros((extra, *latent["head"].shape))
    state = backprop.real(recipe.model.initial_state(es.streams))

    def rate(count: Any) -> Array:
        return RATE * (1 - count / steps) / jnp.sqrt(1 + count / 500)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.95))
    moments, width = optimizer.init(latent), settings.model.width
    seen, places = width * (cut.linear + 1), width * (1 + 3 * settings.model.layers)
    fit = {"xx": jnp.zeros((seen, seen)), "xy": jnp.zeros((seen, places))}

    @jax.jit
    def update(latent: Tree, moments: Any, state: Tree, tokens_BT: Array, fit: Tree):
        tokens_BT = tokens_BT.astype(jnp.int32)
        if cut.linear < 0:
            gradient, state = jax.grad(functools.partial(cuts.windowed, cut), has_aux=True)(
                latent, state, tokens_BT
            )
        else:
            gradient, state, fit = cuts.linear(cut, latent, state, tokens_BT, fit)
        change, moments = optimizer.update(gradient, moments, latent)
        return optax.apply_updates(latent, change), moments, state, fit

    begun, curve = 0.0, {}
    for number in range(steps):
        if number == 1:
            jax.block_until_ready(latent)
            begun = time.process_time()
        latent, moments, state, fit = update(
            latent, moments, state, jnp.asarray(laid.at(number)), fit
        )
        if number + 1 in (steps // 2, steps):
            jax.block_until_ready(latent)
            spent = time.process_time() - begun
            curve[number + 1] = evaluate(cut, latent, heldout)
    return {
        "cut": name,
        "steps": steps,
        "half": curve[steps // 2],
        "bits_per_byte": curve[steps],
        "processor_seconds": round(spent, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files")
    parser.add_argument("--cut", nargs="+", default=CUTS, metavar="NAME", help="what to measure")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    parser.add_argument("--every", type=int, default=6, help="one held-out document in so many")
    parser.add_argument("--set", nargs="+", default=[], metavar="S.F=V", help="change settings")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows as JSON lines")
    arguments = parser.parse_args()
    for name in arguments.cut:
        cuts.cut_of(name)
    errors.require(arguments.steps >= 2, f"--steps is {arguments.steps}, must be at least 2")
    errors.require(arguments.every >= 1, f"--every is {arguments.every}, must be at least 1")
    common.require_optax("the twin in floats")

    import tokenization

    settings = learning.changed("recurrent", learning.RECIPES["recurrent"](), arguments.set)
    text, heldout = learning.read(arguments.text)
    tokenizer = tokenization.load(settings.data.tokenizer)
    documents = [list(tokenizer.encode(each.text)) for each in heldout[:: arguments.every]]
    rows = []
    for name in arguments.cut:
        rows.append(train(name, settings, text, documents, arguments.steps))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        common.append(arguments.out, rows[-1])
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))


if __name__ == "__main__":
    with errors.reported("ceilings.py"):
        main()
