"""`egg`: the EGGROLL paper's int8 recurrent language model (arXiv 2511.16652), our yardstick.

    norm(x)  = saturate(floor(x w / max(1, mean|x|)))
    block    h  = norm(x)                                       minGRU-like cell, state s
             f  = saturate(Wf h + Uf s + bf)
             g  = ((f + 127) s) >> 8
             c  = saturate(Wh h + Uh g + bh)
             s' = s + (((f + 127) (c - s)) >> 8)
             x  = saturate(x + s')
             h  = norm(x)                                       feed-forward, F = 4 D
             x  = saturate(x + W2 (W1 h))                       no activation but saturation
    logits   = head norm(x)                                     q4: 1/16 bit

x, h and the logits are q4, f and s q7; every linear saturates to int8 before a sum; >> floors.
Token 0 separates documents: it resets the state to zero before it is read.

Axes: P members (or any batch), L layers, D width, F feed-forward width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import fixed, perturb
from int_lm.config import ModelConfig
from int_lm.params import Role, Spec, Tree

SEPARATOR = 0


def specs(model: ModelConfig, vocab_size: int) -> Tree:
    """The parameter tree of `egg`."""
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple

    def matrix(outputs: int, inputs: int) -> Spec:
        return Spec((outputs, inputs), Role.MATRIX, layers=L)

    def vector(init: int, layers: int = L) -> Spec:
        return Spec((D,), Role.VECTOR, init=init, layers=layers)

    return {
        "embedding": Spec((V, D), Role.EMBEDDING),
        "layers": {
            "cell_norm": vector(16),
            "forget_input": matrix(D, D),
            "forget_state": matrix(D, D),
            "forget_bias": vector(0),
            "candidate_input": matrix(D, D),
            "candidate_state": matrix(D, D),
            "candidate_bias": vector(0),
            "ffn_norm": vector(16),
            "ffn_in": matrix(F, D),
            "ffn_out": matrix(D, F),
        },
        "final_norm": vector(16, layers=0),
        "head": Spec((V, D), Role.READOUT),
    }


def initial_state(model: ModelConfig, batch: int) -> Tree:
    """The state at a document's start: {"cell": int8 q7 zeros [L, P, D]}."""
    return {"cell": jnp.zeros((model.layers, batch, model.width), jnp.int8)}


def norm(weight: perturb.Weight, x_PD: Array) -> Array:
    """L1 norm: saturate(floor(x w / max(1, mean|x|))), int8 q4 -> int8 q4."""
    x = x_PD.astype(jnp.int32)
    mean_P1 = jnp.sum(jnp.abs(x), axis=-1, keepdims=True) // x.shape[-1]
    scaled = x * perturb.vector(weight, x_PD)
    return fixed.saturate(fixed.floor_divide(scaled, jnp.maximum(mean_P1, 1)))


def _plus(*terms: Array) -> Array:
    """saturate(sum) of int8 or int32 arrays of one shape."""
    return fixed.saturate(functools.reduce(jnp.add, [term.astype(jnp.int32) for term in terms]))


def cell(layer: Tree, h_PD: Array, state_PD: Array) -> Array:
    """The recurrent cell: (int8 q4 input, int8 q7 state) -> int8 q7 next state, also the output."""
    forget = _plus(
        perturb.linear(layer["forget_input"], h_PD),
        perturb.linear(layer["forget_state"], state_PD),
        perturb.vector(layer["forget_bias"], h_PD),
    )
    gate, state = forget.astype(jnp.int32) + fixed.INT8_MAX, state_PD.astype(jnp.int32)
    gated_PD = fixed.saturate(fixed.shift_floor(gate * state, 8))
    candidate = _plus(
        perturb.linear(layer["candidate_input"], h_PD),
        perturb.linear(layer["candidate_state"], gated_PD),
        perturb.vector(layer["candidate_bias"], h_PD),
    )
    return fixed.saturate(
        state + fixed.shift_floor(gate * (candidate.astype(jnp.int32) - state), 8)
    )


def block(layer: Tree, x_PD: Array, state_PD: Array) -> tuple[Array, Array]:
    """One residual block: (x, state) -> (x, next state)."""
    state_PD = cell(layer, norm(layer["cell_norm"], x_PD), state_PD)
    x_PD = _plus(x_PD, state_PD)
    hidden_PF = perturb.linear(layer["ffn_in"], norm(layer["ffn_norm"], x_PD))
    return _plus(x_PD, perturb.linear(layer["ffn_out"], hidden_PF)), state_PD


def step(weights: Tree, state: Tree, tokens_P: Array) -> tuple[Tree, Array]:
    """Read one token: (weights, state, int32 tokens [P]) -> (next state, int8 logits q4 [P, V])."""
    keep_P1 = (tokens_P != SEPARATOR)[:, None]
    cells_LPD = jnp.where(keep_P1, state["cell"], jnp.int8(0))
    x_PD = perturb.embed(weights["embedding"], tokens_P)

    def layer_step(x_PD, layer_and_state):
        layer, state_PD = layer_and_state
        return block(layer, x_PD, state_PD)

    x_PD, cells_LPD = jax.lax.scan(layer_step, x_PD, (weights["layers"], cells_LPD))
    logits_PV = perturb.linear(weights["head"], norm(weights["final_norm"], x_PD))
    return {"cell": cells_LPD}, logits_PV
