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

import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient

from benchmarks import backprop, common, learning
from benchmarks.backprop import _floor, _linear, _norm, _saturate, _token_shift
from int_lm import errors
from int_lm.limits import INT8_MAX, SEPARATOR
from int_lm.method import evolve
from int_lm.model import rwkv
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


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where the gradient stops, and what is added to the model.

    Attributes:
      layers: credit goes through later layers.
      tokens: number of tokens before the present one that credit reaches; -1: the segment.
      leak: only the cell's leak carries credit from token to token.
      linear: number of later tokens of a linear feedback; -1: none.
      later, depth, slow, blind: the additions.
    """

    layers: bool = True
    tokens: int = -1
    leak: bool = False
    linear: int = -1
    later: int = 0
    depth: bool = False
    slow: bool = False
    blind: bool = False


def cut_of(name: str) -> Cut:
    """The cut of a name, as in the module's docstring."""
    base, *more = name.split(" +")
    kind, _, number = base.partition(" ")
    fields: dict[str, Any] = {
        "skip": {"layers": False, "tokens": int(number or 0)},
        "layers": {"tokens": 0},
        "within": {"tokens": int(number or 0)},
        "leak": {"layers": False, "leak": True},
        "linear": {"linear": int(number or 0)},
        "whole": {},
    }[kind]
    for addition in more:
        what, _, count = addition.partition(" ")
        fields[what] = int(count) if count else True
    return Cut(**fields)


def _speeds(cut: Cut, width: int) -> Array:
    """Factors of the cell's changes, by channel."""
    slow = 2.0 ** -np.arange(width).__mod__(8).__sub__(3).clip(0)
    return jnp.asarray(slow if cut.slow else np.ones(width), jnp.float32)


def _block(cut: Cut, layer: Tree, x: Array, state: Tree, at: Tree) -> tuple[Array, Tree, Tree]:
    """One block as in the twin; `at` is added at the places whose credit is wanted.

    Returns (x, state, what was added to the stream or the cell at each place).
    """
    hidden = (lambda x: x) if cut.layers else stop_gradient
    before = jax.tree.map(stop_gradient, state) if cut.leak else state
    h, view = _norm(hidden(x)), before["cell"] * (0.0 if cut.blind else 1.0)
    both = jnp.concatenate([_token_shift(h, before["time_shift"]), view], axis=-1)
    forget, candidate, receptance = jnp.split(
        _saturate(_linear(layer["time_mixing"], both)), 3, axis=-1
    )
    speed = _speeds(cut, h.shape[-1])
    cell = state["cell"]
    cell = cell + _floor(speed * (forget + INT8_MAX) * (candidate - cell) / 256) + at["cell"]
    mixed = _saturate(_floor((receptance + INT8_MAX) * cell / 256)) + at["time"]
    x = _saturate(x + mixed)
    key_h = _norm(hidden(x))
    key = _saturate(_linear(layer["channel_key"], _token_shift(key_h, before["channel_shift"])))
    key = _saturate(_floor(jnp.square(jnp.maximum(key, 0)) / 2.0**rwkv.SQUARE_SHIFT))
    value = _saturate(_linear(layer["channel_value"], key)) + at["channel"]
    following = {"cell": _saturate(cell), "time_shift": h, "channel_shift": key_h}
    return _saturate(x + value), following, {"cell": cell, "time": mixed, "channel": value}


def _read(cut: Cut, weights: Tree, state: Tree, tokens: Array, at: Tree):
    """(state, stream after each layer, places) of one token."""
    keep = (tokens != SEPARATOR)[:, None]
    state = jax.tree.map(lambda leaf: jnp.where(keep, leaf, 0.0), state)
    x = weights["embedding"][tokens] + at["embedding"]
    places, following, streams = {"embedding": x}, [], []
    for layer in range(len(state["cell"])):
        mine = jax.tree.map(lambda leaf, layer=layer: leaf[layer], (weights["layers"], state))
        here = {kind: at[f"{kind}{layer}"] for kind in ("cell", "time", "channel")}
        x, after, found = _block(cut, *mine[:1], x, mine[1], here)
        places |= {f"{kind}{layer}": value for kind, value in found.items()}
        following.append(after)
        streams.append(x)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *following), streams, places


def _nothing(layers: int) -> Tree:
    kinds = [f"{kind}{layer}" for kind in ("cell", "time", "channel") for layer in range(layers)]
    return dict.fromkeys(["embedding", *kinds], 0.0)


def _bits(head: Array, x: Array, targets: Array) -> Array:
    """Bits of targets, given the stream before the last norm."""
    logits = _saturate(_linear(head, _norm(x)), backprop.LOGIT_MAX)
    nats = jax.nn.log_softmax(logits * (math.log(2) / 16))
    return -jnp.take_along_axis(nats, targets[..., None], axis=-1)[..., 0] / math.log(2)


def _losses(cut: Cut, weights: Tree, streams: list[Array], targets: Array) -> Array:
    """Bits of the next token and the additional losses: targets [..., 1 + later], -1 for none."""
    found = _bits(weights["head"], streams[-1], targets[..., 0])
    for lag in range(cut.later):
        mine = targets[..., 1 + lag]
        extra = _bits(weights["extra"][lag], streams[-1], jnp.maximum(mine, 0))
        found += jnp.where(mine >= 0, extra, 0.0) / (1 + cut.later)
    if cut.depth:
        for layer, x in enumerate(streams[:-1]):
            found += _bits(weights["extra"][layer], x, targets[..., 0])
    return found


def states_of(cut: Cut, weights: Tree, state: Tree, tokens_TB: Array) -> tuple[Tree, Tree]:
    """(state after the segment, states before each token, with T in front)."""
    nothing = _nothing(len(state["cell"]))

    def read(state: Tree, tokens: Array) -> tuple[Tree, Tree]:
        return _read(cut, weights, state, tokens, nothing)[0], state

    return jax.lax.scan(read, state, tokens_TB)


def _targets(cut: Cut, tokens_BT: Array) -> Array:
    """The next token and `later` more: int32 [T, B, 1 + later]; -1 past the segment's end."""
    tokens_TB, length = tokens_BT.T, tokens_BT.shape[1] - 1
    padded = jnp.pad(tokens_TB, ((0, cut.later), (0, 0)), constant_values=-1)
    return jnp.stack([padded[1 + lag : 1 + lag + length] for lag in range(1 + cut.later)], -1)


def windowed(cut: Cut, latent: Tree, state: Tree, tokens_BT: Array) -> tuple[Array, Tree]:
    """(mean loss, state after): every token's loss reaches `tokens` tokens back, and no further."""
    weights = jax.tree.map(backprop.rounded, latent)
    targets_TB, tokens_TB = _targets(cut, tokens_BT), tokens_BT.T[:-1]
    length, streams = tokens_TB.shape
    back = length - 1 if cut.tokens < 0 else min(cut.tokens, length - 1)
    after, before = states_of(cut, jax.tree.map(stop_gradient, weights), state, tokens_TB)
    windows = length - back
    before = jax.tree.map(stop_gradient, before)
    # leaves [T, L, B, D] -> [L, windows x B, D]
    held = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf[:windows], 0, 1).reshape(
            leaf.shape[1], windows * streams, leaf.shape[-1]
        ),
        before,
    )
    nothing = _nothing(len(held["cell"]))
    first = jnp.arange(windows * streams) < streams  # the window whose losses all count

    def read(state: Tree, at: Array) -> tuple[Tree, Array]:
        tokens = jax.lax.dynamic_slice_in_dim(tokens_TB, at, windows).reshape(-1)
        targets = jax.lax.dynamic_slice_in_dim(targets_TB, at, windows)
        targets = targets.reshape(windows * streams, -1)
        state, found, _ = _read(cut, weights, state, tokens, nothing)
        losses = _losses(cut, weights, found, targets)
        return state, jnp.sum(jnp.where(first | (at == back), losses, 0.0))

    total = jnp.sum(jax.lax.scan(read, held, jnp.arange(back + 1))[1])
    return total / (length * streams), after


def true_credits(cut: Cut, weights: Tree, state: Tree, tokens_BT: Array) -> tuple[Tree, Tree]:
    """The derivative of the segment's loss with respect to every place: leaves [T, B, D]."""
    targets_TB, tokens_TB = _targets(cut, tokens_BT), tokens_BT.T[:-1]
    shape = (*tokens_TB.shape, weights["embedding"].shape[-1])
    zeros = {name: jnp.zeros(shape) for name in _nothing(len(state["cell"]))}

    def loss(at: Tree) -> tuple[Array, Tree]:
        def read(state: Tree, each: Any) -> tuple[Tree, Array]:
            tokens, targets, here = each
            state, found, _ = _read(cut, weights, state, tokens, here)
            return state, _losses(cut, weights, found, targets)

        after, losses = jax.lax.scan(read, state, (tokens_TB, targets_TB, at))
        return jnp.sum(losses) / losses.size, after

    return jax.grad(loss, has_aux=True)(zeros)


def linear(cut: Cut, latent: Tree, state: Tree, tokens_BT: Array, fit: Tree):
    """(gradient, state after, fit): true credits replaced by a linear map of those of the end."""
    weights = jax.tree.map(backprop.rounded, latent)
    layers = len(state["cell"])
    credits, after = true_credits(cut, weights, state, tokens_BT)
    end = credits[f"channel{layers - 1}"]
    length = len(end)
    seen = jnp.concatenate(
        [jnp.pad(end[lag:], ((0, lag), (0, 0), (0, 0))) for lag in range(cut.linear + 1)], -1
    )
    names = sorted(credits)
    wanted = jnp.concatenate([credits[name] for name in names], -1)
    x, y = seen.reshape(-1, seen.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    fit = {"xx": 0.95 * fit["xx"] + x.T @ x, "xy": 0.95 * fit["xy"] + x.T @ y}
    ridge = (1e-4 * jnp.trace(fit["xx"]) / len(fit["xx"]) + 1e-30) * jnp.eye(len(fit["xx"]))
    hat = (x @ jnp.linalg.solve(fit["xx"] + ridge, fit["xy"])).reshape(wanted.shape)
    hats = dict(zip(names, jnp.split(hat, len(names), axis=-1), strict=True))
    hats[f"channel{layers - 1}"] = end
    tokens_TB, targets_TB = tokens_BT.T[:-1], _targets(cut, tokens_BT)
    local = dataclasses.replace(cut, layers=False, leak=True)
    _, before = states_of(cut, weights, state, tokens_TB)
    before = jax.tree.map(stop_gradient, before)
    nothing = _nothing(layers)

    def surrogate(latent: Tree) -> Array:
        weights = jax.tree.map(backprop.rounded, latent)

        def one(tokens: Array, targets: Array, state: Tree, hats: Tree) -> Array:
            _, found, places = _read(local, weights, state, tokens, nothing)
            head = jnp.sum(_bits(weights["head"], stop_gradient(found[-1]), targets[..., 0]))
            credit = sum(jnp.sum(hats[name] * places[name]) for name in hats)
            return head / (length * len(tokens)) + credit

        return jnp.sum(jax.vmap(one)(tokens_TB, targets_TB, before, hats))

    return jax.grad(surrogate)(latent), after, fit


def evaluate(cut: Cut, latent: Tree, documents: list[list[int]]) -> float:
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
    nothing = _nothing(shape[0])

    @jax.jit
    def read_all(latent: Tree) -> Array:
        weights = jax.tree.map(backprop.rounded, latent)

        def read(state: Tree, each: Any) -> tuple[Tree, Array]:
            tokens, target, counted = each
            state, found, _ = _read(cut, weights, state, tokens, nothing)
            return state, jnp.sum(jnp.where(counted, _bits(weights["head"], found[-1], target), 0))

        each = (tokens_BT.T[:-1], tokens_BT.T[1:], counted_BT.T)
        return jnp.sum(jax.lax.scan(read, state, each)[1])

    return float(read_all(latent)) / counted_BT.sum()


def train(name: str, settings: Any, text: list, heldout: list, steps: int) -> dict[str, Any]:
    """A row: {cut, steps, bits_per_byte, processor_seconds}."""
    import optax

    import tokenization
    from data import streams

    cut, es = cut_of(name), settings.es
    tokenizer = tokenization.load(settings.data.tokenizer)
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    sizes = {"streams": es.streams, "segment_length": es.segment_length}
    laid = streams.build(text, tokenizer, **sizes, seed=settings.run.seed)
    latent = backprop.real(evolve.initial(recipe).network)
    extra = max(cut.later, (settings.model.layers - 1) * cut.depth)
    if extra:
        latent["extra"] = jnp.zeros((extra, *latent["head"].shape))
    state = backprop.real(recipe.model.initial_state(es.streams))

    def rate(count: Array) -> Array:
        return RATE * (1 - count / steps) / jnp.sqrt(1 + count / 500)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.95))
    moments, width = optimizer.init(latent), settings.model.width
    seen, places = width * (cut.linear + 1), width * (1 + 3 * settings.model.layers)
    fit = {"xx": jnp.zeros((seen, seen)), "xy": jnp.zeros((seen, places))}

    @jax.jit
    def update(latent: Tree, moments: Any, state: Tree, tokens_BT: Array, fit: Tree):
        tokens_BT = tokens_BT.astype(jnp.int32)
        if cut.linear < 0:
            gradient, state = jax.grad(functools.partial(windowed, cut), has_aux=True)(
                latent, state, tokens_BT
            )
        else:
            gradient, state, fit = linear(cut, latent, state, tokens_BT, fit)
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

    import tokenization

    settings = learning.changed("recurrent", learning.RECIPES["recurrent"](), arguments.set)
    text, heldout = learning.read(arguments.text)
    tokenizer = tokenization.load(settings.data.tokenizer)
    documents = [list(tokenizer.encode(each.text)) for each in heldout[:: arguments.every]]
    rows = []
    for name in arguments.cut:
        rows.append(train(name, settings, text, documents, arguments.steps))
        line = json.dumps(rows[-1])
        print(line, file=sys.stderr, flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(line + "\n")
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))


if __name__ == "__main__":
    with errors.reported("ceilings.py"):
        main()
