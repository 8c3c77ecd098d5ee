"""`rwkv`: RWKV's time and channel mixing (Peng et al., arXiv 2305.13048), int8 and nonlinear.

    norm(x)   = saturate(floor(16 x / max(1, mean|x|)))
    shift(h)  = h + ((mu (h' - h)) >> 7)                          token shift, h' one token earlier
    block     h  = shift(norm(x))                                 time mixing, state s
              f, c, r = rows of W [h, s]                          one matrix [3 D, 2 D]
              s' = s + (((f + 127) (c - s)) >> 8)
              x  = saturate(x + (((r + 127) s') >> 8))
              k  = saturate(max(Wk shift(norm(x)), 0)^2 >> 6)     channel mixing, F = ffn_multiple D
              x  = saturate(x + Wv k)
    logits    = head norm(x)                                      q4: 1/16 bit

x, h, k and the logits are q4; f, c, r and s are q7. Every linear saturates to int8; only the
readout saturates to int16, so that unlikely tokens can have very low logits. >> rounds down. Unlike
in RWKV, the forget gate f, the candidate c and the receptance r depend on the state. So the
recurrence is nonlinear and cannot be computed by a parallel scan over time; forward-only training
does not need one. mu rises from 0 to 127 over the channels: the first channel gets the present
token, the last one the token before. The norms have no weights, because the matrices behind them
can have the same effect.

Axes: P members (or any batch), L layers, D width, F feed-forward width, V vocabulary.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX
from int_lm.model import layers
from int_lm.model.architecture import Architecture, Back, Credit
from int_lm.model.layers import Activity, Use
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings

GAIN = 16  # gain of every norm: its output has a mean magnitude of 1.0 in q4
SQUARE_SHIFT = 6  # right shift of the squared ReLU


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """The parameter tree of `rwkv`.

    `channel_value` and `head` begin at 0: at first channel mixing adds nothing to the residual
    stream, and every token is as likely as any other.
    """
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple
    return {
        "embedding": Spec((V, D), Role.EMBEDDING),
        "layers": {
            "time_mixing": Spec((3 * D, 2 * D), Role.MATRIX, layers=L),
            "channel_key": Spec((F, D), Role.MATRIX, layers=L, through="layers/channel_value"),
            "channel_value": Spec((D, F), Role.PROJECTION, init=0, layers=L),
        },
        "head": Spec((V, D), Role.READOUT, init=0),
    }


def initial_state(model: ModelSettings, batch: int) -> Tree:
    """The state at a document's start: a dict of int8 zeros [L, P, D].

    cell             s, q7
    time_shift       output of the norm before time mixing, for the token before, q4
    channel_shift    output of the norm before channel mixing, for the token before, q4
    """
    zeros = jnp.zeros((model.layers, batch, model.width), jnp.int8)
    return {"cell": zeros, "time_shift": zeros, "channel_shift": zeros}


def shift_weights(width: int) -> np.ndarray:
    """mu: floor(127 d / (D - 1)), int32 [D]."""
    return (INT8_MAX * np.arange(width, dtype=np.int32)) // np.int32(max(1, width - 1))


def _norm(x_PD: Array) -> Array:
    return layers.norm(layers.constant_gain(GAIN, x_PD), x_PD)


def token_shift(h_PD: Array, before_PD: Array) -> Array:
    """h + ((mu (h' - h)) >> 7): int8 q4 [P, D]. `before_PD` is h', h of the token before."""
    h = h_PD.astype(jnp.int32)
    mu_1D = jnp.asarray(shift_weights(h.shape[-1]))[None]
    return fixed.saturate(h + fixed.shift_floor(mu_1D * (before_PD.astype(jnp.int32) - h), 7))


def time_mixing(
    layer: Tree, x_PD: Array, h_PD: Array, state_PD: Array
) -> tuple[Array, Array, Tree]:
    """(int8 q4 stream, its shifted norm, int8 q7 state) -> (output, next state, uses)."""
    both = jnp.concatenate([h_PD, state_PD], axis=-1)
    gates_PM = layers.linear(layer["time_mixing"], both)
    forget, candidate, receptance = jnp.split(gates_PM.astype(jnp.int32), 3, axis=-1)
    before = state_PD.astype(jnp.int32)

    def following(forget: Array, candidate: Array) -> Array:
        return before + fixed.shift_floor((forget + INT8_MAX) * (candidate - before), 8)

    def output(forget: Array, candidate: Array, receptance: Array) -> Array:
        state = following(forget, candidate)
        return fixed.saturate(fixed.shift_floor((receptance + INT8_MAX) * state, 8))

    output_PD = output(forget, candidate, receptance)
    responses = layers.responses(output, forget, candidate, receptance)
    of_state = layers.responses(lambda f, c: fixed.saturate(following(f, c)), forget, candidate)
    uses = {"time_mixing": Use(both, output_PD, responses, x_PD, of_state, gates_PM)}
    return output_PD, fixed.saturate(following(forget, candidate)), uses


def channel_mixing(layer: Tree, x_PD: Array, h_PD: Array) -> tuple[Array, Tree]:
    """(int8 q4 stream, its shifted norm) -> (output, uses)."""

    def squared(key: Array) -> Array:
        key = jnp.maximum(key, 0).astype(jnp.int32)
        return fixed.saturate(fixed.shift_floor(key * key, SQUARE_SHIFT))

    output_PF = layers.linear(layer["channel_key"], h_PD)
    key_PF = squared(output_PF)
    responses = layers.responses(squared, output_PF)
    uses = {"channel_key": Use(h_PD, key_PF, responses, x_PD), "channel_value": Use(key_PF)}
    return layers.linear(layer["channel_value"], key_PF), uses


def block(layer: Tree, x_PD: Array, state: Tree) -> tuple[Array, Tree, Tree]:
    """One residual block: (x, state) -> (x, next state, uses)."""
    h_PD = _norm(x_PD)
    output_PD, cell_PD, uses = time_mixing(
        layer, x_PD, token_shift(h_PD, state["time_shift"]), state["cell"]
    )
    x_PD = layers.plus(x_PD, output_PD)
    key_PD = _norm(x_PD)
    output_PD, more = channel_mixing(layer, x_PD, token_shift(key_PD, state["channel_shift"]))
    following = {"cell": cell_PD, "time_shift": h_PD, "channel_shift": key_PD}
    return layers.plus(x_PD, output_PD), following, uses | more


def step(weights: Tree, state: Tree, tokens_P: Array) -> tuple[Tree, Array, Activity]:
    """Read one token: (weights, state, int32 tokens [P]) -> (next state, int16 logits q4 [P, V],
    activity).
    """
    x_PD = layers.embed(weights["embedding"], tokens_P)
    x_PD, state, uses = layers.through_layers(block, weights["layers"], x_PD, state)
    z_PD = _norm(x_PD)
    activity = Activity(
        uses={"embedding": Use(tokens_P), "layers": uses, "head": Use(z_PD)},
        residual=x_PD,
        gain=layers.constant_gain(GAIN, x_PD),
    )
    return state, layers.readout(weights["head"], z_PD), activity


def credit(
    back: Back, layer: Tree, uses: Tree, of_stream: Credit
) -> tuple[Credit, dict[str, Credit]]:
    """`Architecture.credit`: through both mixings, and from the next token through its state."""
    key, mixing = uses["channel_key"], uses["time_mixing"]
    shift = jnp.asarray(shift_weights(key.stream.shape[-1]))
    of_squared = back.through(layer["channel_value"], of_stream)
    of_key = back.moved((of_squared, key.responses))
    of_input = back.through(layer["channel_key"], of_key, finer=2)
    middle = back.norm(key.stream, of_stream, of_input, shift)

    # what the next token reads of the state, by its own credit alone
    of_output = back.moved((middle, mixing.responses), finer=1)
    of_both = back.through(layer["time_mixing"], of_output, finer=2)
    width = mixing.stream.shape[-1]
    of_input = Credit(of_both.value[..., :width], of_both.bits)
    of_state = back.later(Credit(of_both.value[..., width:], of_both.bits))
    of_mixing = back.inward(
        back.moved((middle, mixing.responses), (of_state, mixing.state_responses), finer=1),
        mixing.outputs,  # a key needs it not: at its end the squared one answers nothing
    )
    before = back.norm(mixing.stream, middle, of_input, shift)
    return before, {
        "channel_value": of_stream,
        "channel_key": of_key,
        "time_mixing": of_mixing,
    }


RWKV = Architecture(specs, initial_state, step, runtime="int_lm.runtime:Rwkv", credit=credit)
