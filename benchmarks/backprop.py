"""The same int8 `rwkv` model, trained by back-propagation in floating point: the twin.

It uses straight-through gradients (Bengio, Léonard and Courville, arXiv 1308.3432) and Adam. The
forward pass computes the integer model's numbers exactly, because float32 holds them all. The
backward pass uses the gradient 1 for every floor and rounding, and the true gradient of every clip.
Latent weights are float32 in units of 1/16; the forward pass and the evaluation use them rounded to
int8. Gradients stop at the start of a segment; the state is carried over, as in evolution.

It is a baseline of `benchmarks/learning.py`: the same weights, trained for the same time with
gradients through layers and time.

Axes: S streams, T tokens of a segment, D width, F feed-forward width, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.limits import INT8_MAX, SEPARATOR
from int_lm.method import evolve
from int_lm.method.recipe import Recipe
from int_lm.model import params, rwkv
from int_lm.model.layers import shift_for
from int_lm.model.params import Parameters, Tree

LOGIT_MAX = 2**15 - 1


@jax.custom_jvp
def floor(x: Array) -> Array:
    """floor(x), with the gradient of x."""
    return jnp.floor(x)


@jax.custom_jvp
def rounding(x: Array) -> Array:
    """x rounded to the nearest integer, with the gradient of x."""
    return jnp.round(x)


floor.defjvp(lambda primals, tangents: (jnp.floor(*primals), *tangents))
rounding.defjvp(lambda primals, tangents: (jnp.round(*primals), *tangents))


def saturate(x: Array, most: int = INT8_MAX) -> Array:
    return jnp.clip(x, -most, most)


def real(tree: Tree) -> Tree:
    """A tree of integers in float32, which holds them exactly."""
    return params.map_leaves(lambda leaf: leaf.astype(jnp.float32), tree)


def rounded(latent: Array) -> Array:
    """A latent weight rounded to an integer in [-127, 127], with the gradient of a clip."""
    return rounding(saturate(latent))


def linear(weight_MN: Array, x_SN: Array) -> Array:
    return floor(x_SN @ weight_MN.T / 2.0 ** shift_for(x_SN.shape[-1]))


def norm(x_SD: Array) -> Array:
    # XLA may divide by way of the reciprocal: half a unit more keeps exact quotients whole, and
    # reaches no next one
    mean_S1 = jnp.maximum(floor(jnp.mean(jnp.abs(x_SD), axis=-1, keepdims=True)), 1)
    return saturate(floor((rwkv.GAIN * x_SD + 0.5) / mean_S1))


def token_shift(h_SD: Array, before_SD: Array) -> Array:
    mu_1D = jnp.asarray(rwkv.shift_weights(h_SD.shape[-1]), jnp.float32)[None]
    return saturate(h_SD + floor(mu_1D * (before_SD - h_SD) / 128))


def _block(layer: Tree, x_SD: Array, state: Tree) -> tuple[Array, Tree]:
    h_SD, cell = norm(x_SD), state["cell"]
    both = jnp.concatenate([token_shift(h_SD, state["time_shift"]), cell], axis=-1)
    forget, candidate, receptance = jnp.split(
        saturate(linear(layer["time_mixing"], both)), 3, axis=-1
    )
    cell = cell + floor((forget + INT8_MAX) * (candidate - cell) / 256)
    output = saturate(floor((receptance + INT8_MAX) * cell / 256))
    x_SD = saturate(x_SD + output)
    key_SD = norm(x_SD)
    key = saturate(linear(layer["channel_key"], token_shift(key_SD, state["channel_shift"])))
    key = saturate(floor(jnp.square(jnp.maximum(key, 0)) / 2.0**rwkv.SQUARE_SHIFT))
    x_SD = saturate(x_SD + saturate(linear(layer["channel_value"], key)))
    return x_SD, {"cell": saturate(cell), "time_shift": h_SD, "channel_shift": key_SD}


def step(weights: Tree, state: Tree, tokens_S: Array) -> tuple[Tree, Array]:
    """`rwkv.step` in float32: (rounded weights, state, int32 [S]) -> (state, logits q4 [S, V])."""
    keep_S1 = (tokens_S != SEPARATOR)[:, None]
    state = jax.tree.map(lambda leaf: jnp.where(keep_S1, leaf, 0.0), state)
    x_SD, following = weights["embedding"][tokens_S], []
    for layer in range(len(state["cell"])):
        at = jax.tree.map(lambda leaf, layer=layer: leaf[layer], (weights["layers"], state))
        x_SD, after = _block(at[0], x_SD, at[1])
        following.append(after)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *following)
    return stacked, saturate(linear(weights["head"], norm(x_SD)), LOGIT_MAX)


def loss(latent: Tree, state: Tree, tokens_ST: Array) -> tuple[Array, Tree]:
    """Mean bits per token of one segment [S, T+1], and the state after it."""
    weights = jax.tree.map(rounded, latent)

    def read(state: Tree, pair: tuple[Array, Array]) -> tuple[Tree, Array]:
        state, logits_SV = step(weights, state, pair[0])
        nats_SV = jax.nn.log_softmax(logits_SV * (math.log(2) / 16))
        return state, jnp.take_along_axis(nats_SV, pair[1][:, None], axis=-1)

    tokens_TS = tokens_ST.astype(jnp.int32).T
    state, nats = jax.lax.scan(read, state, (tokens_TS[:-1], tokens_TS[1:]))
    return -jnp.mean(nats) / math.log(2), state


class Twin:
    """Weights, Adam's moments and the streams' states of one training run."""

    def __init__(self, recipe: Recipe, streams: int, learning_rate: float):
        """Initialise the training of a model without context tables.

        Args:
          recipe: the model and its segment length.
          streams: S.
          learning_rate: in units of 1/16. It decays as 1 / sqrt(1 + step / 500).
        """
        import optax

        self.latent = real(evolve.initial(recipe).network)
        self.state = real(recipe.model.initial_state(streams))
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(lambda count: learning_rate / jnp.sqrt(1 + count / 500), b2=0.99),
        )
        self.moments = optimizer.init(self.latent)

        @jax.jit
        def update(latent: Tree, moments: Any, state: Tree, tokens_ST: Array):
            (bits, state), gradient = jax.value_and_grad(loss, has_aux=True)(
                latent, state, tokens_ST
            )
            change, moments = optimizer.update(gradient, moments, latent)
            return optax.apply_updates(latent, change), moments, state, bits

        self._update = update

    def step(self, tokens_ST: np.ndarray, *, keep: bool = True) -> None:
        """One step, finished when this returns; with `keep` false it is only compiled."""
        latent, moments, state, bits = self._update(
            self.latent, self.moments, self.state, jnp.asarray(tokens_ST)
        )
        bits.block_until_ready()
        if keep:
            self.latent, self.moments, self.state = latent, moments, state

    @property
    def weights(self) -> Parameters:
        """The int8 model."""
        return Parameters(
            params.map_leaves(lambda leaf: rounded(leaf).astype(jnp.int8), self.latent)
        )
