"""The twin of `recurrent` with a gradient that stops at chosen places (benchmarks/ceilings.py).

The forward pass is that of benchmarks/backprop.py, and so is the gradient where nothing is cut off.

Axes: B streams or windows, T tokens of a segment, D width, V vocabulary.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient

from benchmarks import backprop
from int_lm.errors import UserError
from int_lm.limits import INT8_MAX, SEPARATOR
from int_lm.model import rwkv
from int_lm.model.params import Tree

CUT = re.compile(
    r"(skip( \d+)?|layers|within \d+|leak|linear \d+|whole)( \+(later [1-9]\d*|depth|slow|blind))*"
)


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
    """The cut of a name, as in the docstring of benchmarks/ceilings.py.

    Raises:
      UserError: there is none of this name.
    """
    if not CUT.fullmatch(name):
        raise UserError(f"{name!r} is no cut; see --help for their names")
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
    h, view = backprop.norm(hidden(x)), before["cell"] * (0.0 if cut.blind else 1.0)
    both = jnp.concatenate([backprop.token_shift(h, before["time_shift"]), view], axis=-1)
    forget, candidate, receptance = jnp.split(
        backprop.saturate(backprop.linear(layer["time_mixing"], both)), 3, axis=-1
    )
    speed = _speeds(cut, h.shape[-1])[None]
    cell = state["cell"]
    cell = (
        cell + backprop.floor(speed * (forget + INT8_MAX) * (candidate - cell) / 256) + at["cell"]
    )
    mixed = backprop.saturate(backprop.floor((receptance + INT8_MAX) * cell / 256)) + at["time"]
    x = backprop.saturate(x + mixed)
    key_h = backprop.norm(hidden(x))
    key = backprop.saturate(
        backprop.linear(layer["channel_key"], backprop.token_shift(key_h, before["channel_shift"]))
    )
    key = backprop.saturate(
        backprop.floor(jnp.square(jnp.maximum(key, 0)) / 2.0**rwkv.SQUARE_SHIFT)
    )
    value = backprop.saturate(backprop.linear(layer["channel_value"], key)) + at["channel"]
    following = {"cell": backprop.saturate(cell), "time_shift": h, "channel_shift": key_h}
    return backprop.saturate(x + value), following, {"cell": cell, "time": mixed, "channel": value}


def read_token(cut: Cut, weights: Tree, state: Tree, tokens: Array, at: Tree):
    """(state, stream after each layer, places) of one token."""
    keep = (tokens != SEPARATOR)[:, None]
    state = jax.tree.map(lambda leaf: jnp.where(keep, leaf, 0.0), state)
    x = weights["embedding"][tokens] + at["embedding"]
    places, following, streams = {"embedding": x}, [], []
    for layer in range(len(state["cell"])):
        own, held = jax.tree.map(lambda leaf, layer=layer: leaf[layer], (weights["layers"], state))
        here = {kind: at[f"{kind}{layer}"] for kind in ("cell", "time", "channel")}
        x, after, found = _block(cut, own, x, held, here)
        places |= {f"{kind}{layer}": value for kind, value in found.items()}
        following.append(after)
        streams.append(x)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *following), streams, places


def nowhere(layers: int) -> Tree:
    kinds = [f"{kind}{layer}" for kind in ("cell", "time", "channel") for layer in range(layers)]
    return dict.fromkeys(["embedding", *kinds], 0.0)


def bits(head: Array, x: Array, targets: Array) -> Array:
    """Bits of targets, given the stream before the last norm."""
    logits = backprop.saturate(backprop.linear(head, backprop.norm(x)), backprop.LOGIT_MAX)
    nats = jax.nn.log_softmax(logits * (math.log(2) / 16))
    return -jnp.take_along_axis(nats, targets[..., None], axis=-1)[..., 0] / math.log(2)


def _losses(cut: Cut, weights: Tree, streams: list[Array], targets: Array) -> Array:
    """Bits of the next token and the additional losses: targets [..., 1 + later], -1 for none."""
    found = bits(weights["head"], streams[-1], targets[..., 0])
    for lag in range(cut.later):
        mine = targets[..., 1 + lag]
        extra = bits(weights["extra"][lag], streams[-1], jnp.maximum(mine, 0))
        found += jnp.where(mine >= 0, extra, 0.0) / (1 + cut.later)
    if cut.depth:
        for layer, x in enumerate(streams[:-1]):
            found += bits(weights["extra"][layer], x, targets[..., 0])
    return found


def states_of(cut: Cut, weights: Tree, state: Tree, tokens_TB: Array) -> tuple[Tree, Tree]:
    """(state after the segment, states before each token, with T in front)."""
    nothing = nowhere(len(state["cell"]))

    def read(state: Tree, tokens: Array) -> tuple[Tree, Tree]:
        return read_token(cut, weights, state, tokens, nothing)[0], state

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
    nothing = nowhere(len(held["cell"]))
    first = jnp.arange(windows * streams) < streams  # the window whose losses all count

    def read(state: Tree, at: Array) -> tuple[Tree, Array]:
        tokens = jax.lax.dynamic_slice_in_dim(tokens_TB, at, windows).reshape(-1)
        targets = jax.lax.dynamic_slice_in_dim(targets_TB, at, windows)
        targets = targets.reshape(windows * streams, -1)
        state, found, _ = read_token(cut, weights, state, tokens, nothing)
        losses = _losses(cut, weights, found, targets)
        return state, jnp.sum(jnp.where(first | (at == back), losses, 0.0))

    total = jnp.sum(jax.lax.scan(read, held, jnp.arange(back + 1))[1])
    return total / (length * streams), after


def true_credits(cut: Cut, weights: Tree, state: Tree, tokens_BT: Array) -> tuple[Tree, Tree]:
    """The derivative of the segment's loss with respect to every place: leaves [T, B, D]."""
    targets_TB, tokens_TB = _targets(cut, tokens_BT), tokens_BT.T[:-1]
    shape = (*tokens_TB.shape, weights["embedding"].shape[-1])
    zeros = {name: jnp.zeros(shape) for name in nowhere(len(state["cell"]))}

    def loss(at: Tree) -> tuple[Array, Tree]:
        def read(state: Tree, each: Any) -> tuple[Tree, Array]:
            tokens, targets, here = each
            state, found, _ = read_token(cut, weights, state, tokens, here)
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
    nothing = nowhere(layers)

    def surrogate(latent: Tree) -> Array:
        weights = jax.tree.map(backprop.rounded, latent)

        def one(tokens: Array, targets: Array, state: Tree, hats: Tree) -> Array:
            _, found, places = read_token(local, weights, state, tokens, nothing)
            head = jnp.sum(bits(weights["head"], stop_gradient(found[-1]), targets[..., 0]))
            credit = sum(jnp.sum(hats[name] * places[name]) for name in hats)
            return head / (length * len(tokens)) + credit

        return jnp.sum(jax.vmap(one)(tokens_TB, targets_TB, before, hats))

    return jax.grad(surrogate)(latent), after, fit
