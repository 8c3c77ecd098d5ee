"""An architecture: a gated recurrent unit (Cho et al., arXiv 1406.1078) in int8.

    norm(w, x) = saturate(floor(w x / max(1, mean|x|)))
    block      h = norm(w, x)                                         state s
               z = saturate(Wz h + Uz s + bz)                         update gate
               r = saturate(Wr h + Ur s + br)                         reset gate
               n = saturate(Wn h + (((r + 127) (Un s)) >> 8) + bn)    candidate
               s' = s + (((z + 127) (n - s)) >> 8)
               x = saturate(x + O s')
    after them x = saturate(x + D norm(16, x));   logits = head norm(w, x)

x, h and the logits are q4; z, r, n and s q7; every linear saturates to int8, the last one to int16;
>> floors. The rows of z, r and n are stacked in one matrix applied to h and one applied to s. The
reset gate is applied after Un, as in cuDNN, so that row m acts on channel m of s' and on no other.
`ffn_multiple` is not used.

Axes: P members (or any batch), L layers, D width, V vocabulary.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX
from int_lm.model import layers
from int_lm.model.architecture import Architecture
from int_lm.model.layers import Activity, Use
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings

GAIN = 16  # of a norm whose weights are 1.0 in q4


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """The parameter tree of `gru`."""
    D, L, V = model.width, model.layers, vocab_size
    return {
        "embedding": Spec((V, D), Role.EMBEDDING),
        "layers": {
            "norm": Spec((D,), Role.VECTOR, init=GAIN, layers=L),
            "bias": Spec((3 * D,), Role.VECTOR, init=0, layers=L),
            "input": Spec((3 * D, D), Role.MATRIX, layers=L, through="layers/output"),
            "recurrent": Spec((3 * D, D), Role.MATRIX, layers=L, through="layers/output"),
            "output": Spec((D, D), Role.PROJECTION, layers=L),
        },
        "dense": Spec((D, D), Role.PROJECTION, init=0),
        "final_norm": Spec((D,), Role.VECTOR, init=GAIN),
        "head": Spec((V, D), Role.READOUT, init=0),
    }


def initial_state(model: ModelSettings, batch: int) -> Tree:
    """The state at a document's start: {"cell": int8 q7 zeros [L, P, D]}."""
    return {"cell": jnp.zeros((model.layers, batch, model.width), jnp.int8)}


def cell(layer: Tree, h_PD: Array, state_PD: Array) -> Array:
    """(int8 q4 input, int8 q7 state) -> next state."""
    of_input = layers.linear(layer["input"], h_PD)
    of_state = layers.linear(layer["recurrent"], state_PD)
    bias = layers.vector(layer["bias"], of_input)
    wz, wr, wn = jnp.split(of_input.astype(jnp.int32) + bias, 3, axis=-1)
    uz, ur, un = jnp.split(of_state.astype(jnp.int32), 3, axis=-1)
    update = fixed.saturate(wz + uz).astype(jnp.int32)
    reset = fixed.saturate(wr + ur).astype(jnp.int32)
    candidate = fixed.saturate(wn + fixed.shift_floor((reset + INT8_MAX) * un, 8))
    state = state_PD.astype(jnp.int32)
    step = fixed.shift_floor((update + INT8_MAX) * (candidate.astype(jnp.int32) - state), 8)
    return fixed.saturate(state + step)


def block(layer: Tree, x_PD: Array, state: Tree) -> tuple[Array, Tree, Tree]:
    """One residual block: (x, state) -> (x, next state, uses)."""
    h_PD = layers.norm(layers.vector(layer["norm"], x_PD), x_PD)
    cell_PD = cell(layer, h_PD, state["cell"])
    uses = {
        "input": Use(h_PD, cell_PD),
        "recurrent": Use(state["cell"], cell_PD),
        "output": Use(cell_PD),
    }
    x_PD = layers.plus(x_PD, layers.linear(layer["output"], cell_PD))
    return x_PD, {"cell": cell_PD}, uses


def step(weights: Tree, state: Tree, tokens_P: Array) -> tuple[Tree, Array, Activity]:
    """Read one token: (weights, state, int32 tokens [P]) -> (next state, int16 logits q4 [P, V],
    what its reading left behind).
    """
    x_PD = layers.embed(weights["embedding"], tokens_P)
    x_PD, state, uses = layers.through_layers(block, weights["layers"], x_PD, state)
    h_PD = layers.norm(layers.constant_gain(GAIN, x_PD), x_PD)
    x_PD = layers.plus(x_PD, layers.linear(weights["dense"], h_PD))
    gain_PD = layers.vector(weights["final_norm"], x_PD)
    z_PD = layers.norm(gain_PD, x_PD)
    uses = {
        "embedding": Use(tokens_P),
        "layers": uses,
        "dense": Use(h_PD),
        "head": Use(z_PD),
    }
    activity = Activity(uses=uses, residual=x_PD, gain=gain_PD)
    return state, layers.readout(weights["head"], z_PD), activity


GRU = Architecture(specs, initial_state, step, runtime="plugins.gru_numpy:Gru")
