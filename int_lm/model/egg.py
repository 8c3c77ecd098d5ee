"""`egg`: the EGGROLL paper's int8 recurrent language model (arXiv 2511.16652), the baseline.

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

x, h and the logits are q4; f and s are q7. Every linear saturates to int8 before its result is
added to others. >> rounds down.

Axes: P members (or any batch), L layers, D width, F feed-forward width, V vocabulary.
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


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """The parameter tree of `egg`."""
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple

    def matrix(outputs: int, inputs: int, through: str | None = None) -> Spec:
        return Spec((outputs, inputs), Role.MATRIX, layers=L, through=through)

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
            "ffn_in": matrix(F, D, through="layers/ffn_out"),
            "ffn_out": Spec((D, F), Role.PROJECTION, layers=L),
        },
        "final_norm": vector(16, layers=0),
        "head": Spec((V, D), Role.READOUT),
    }


def initial_state(model: ModelSettings, batch: int) -> Tree:
    """The state at a document's start: {"cell": int8 q7 zeros [L, P, D]}."""
    return {"cell": jnp.zeros((model.layers, batch, model.width), jnp.int8)}


def _norm(weight: layers.Weight, x_PD: Array) -> Array:
    return layers.norm(layers.vector(weight, x_PD), x_PD)


def cell(layer: Tree, h_PD: Array, state_PD: Array) -> tuple[Array, Tree]:
    """The recurrent cell: (int8 q4 input, int8 q7 state) -> (int8 q7 next state, uses).

    The next state is also the output. The uses are one `Use` for each of the four matrices; the
    effect of all four is the output.
    """
    forget = layers.plus(
        layers.linear(layer["forget_input"], h_PD),
        layers.linear(layer["forget_state"], state_PD),
        layers.vector(layer["forget_bias"], h_PD),
    )
    gate, state = forget.astype(jnp.int32) + INT8_MAX, state_PD.astype(jnp.int32)
    gated_PD = fixed.saturate(fixed.shift_floor(gate * state, 8))
    candidate = layers.plus(
        layers.linear(layer["candidate_input"], h_PD),
        layers.linear(layer["candidate_state"], gated_PD),
        layers.vector(layer["candidate_bias"], h_PD),
    )

    def following(forget: Array, candidate: Array) -> Array:
        step = (forget.astype(jnp.int32) + INT8_MAX) * (candidate.astype(jnp.int32) - state)
        return fixed.saturate(state + fixed.shift_floor(step, 8))

    following_PD = following(forget, candidate)
    of_forget = layers.responses(lambda forget: following(forget, candidate), forget)
    of_candidate = layers.responses(lambda candidate: following(forget, candidate), candidate)
    return following_PD, {
        "forget_input": Use(h_PD, following_PD, of_forget),
        "forget_state": Use(state_PD, following_PD, of_forget),
        "candidate_input": Use(h_PD, following_PD, of_candidate),
        "candidate_state": Use(gated_PD, following_PD, of_candidate),
    }


def block(layer: Tree, x_PD: Array, state_PD: Array) -> tuple[Array, Array, Tree]:
    """One residual block: (x, state) -> (x, next state, uses)."""
    state_PD, uses = cell(layer, _norm(layer["cell_norm"], x_PD), state_PD)
    x_PD = layers.plus(x_PD, state_PD)
    h_PD = _norm(layer["ffn_norm"], x_PD)
    hidden_PF = layers.linear(layer["ffn_in"], h_PD)
    responses = layers.responses(lambda hidden: hidden, hidden_PF)
    uses |= {"ffn_in": Use(h_PD, hidden_PF, responses), "ffn_out": Use(hidden_PF)}
    return layers.plus(x_PD, layers.linear(layer["ffn_out"], hidden_PF)), state_PD, uses


def step(weights: Tree, state: Tree, tokens_P: Array) -> tuple[Tree, Array, Activity]:
    """Read one token: (weights, state, int32 tokens [P]) -> (next state, int8 logits q4 [P, V],
    activity).
    """
    x_PD = layers.embed(weights["embedding"], tokens_P)
    x_PD, cells_LPD, uses = layers.through_layers(block, weights["layers"], x_PD, state["cell"])
    z_PD = _norm(weights["final_norm"], x_PD)
    logits_PV = layers.linear(weights["head"], z_PD)
    activity = Activity(
        uses={"embedding": Use(tokens_P), "layers": uses, "head": Use(z_PD)},
        residual=x_PD,
        gain=layers.vector(weights["final_norm"], x_PD),
    )
    return {"cell": cells_LPD}, logits_PV, activity


EGG = Architecture(specs, initial_state, step, runtime="int_lm.runtime:Egg")
