"""`egg`: tensors, the cell, a block, and a whole token of one member."""

from typing import Any

from int_lm.config import ModelConfig
from oracle.arithmetic import Matrix, Vector, answer, norm, saturate, shift_floor
from oracle.perturb import embed, linear

LOWEST = -127  # logit


def tensors(model: ModelConfig, vocab_size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """(kind, shape, layers) of every tensor, in the order that numbers them."""
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple
    return {
        "embedding": ("matrix", (V, D), 0),
        "final_norm": ("vector", (D,), 0),
        "head": ("matrix", (V, D), 0),
        "layers/candidate_bias": ("vector", (D,), L),
        "layers/candidate_input": ("matrix", (D, D), L),
        "layers/candidate_state": ("matrix", (D, D), L),
        "layers/cell_norm": ("vector", (D,), L),
        "layers/ffn_in": ("matrix", (F, D), L),
        "layers/ffn_norm": ("vector", (D,), L),
        "layers/ffn_out": ("matrix", (D, F), L),
        "layers/forget_bias": ("vector", (D,), L),
        "layers/forget_input": ("matrix", (D, D), L),
        "layers/forget_state": ("matrix", (D, D), L),
    }


THROUGH = {"layers/ffn_in": "layers/ffn_out"}  # which projection a matrix's effect passes


def gates(layer: dict[str, Any], h: Vector, state: Vector) -> tuple[Vector, Vector]:
    """f, and the gated state g."""
    forget_h, forget_s = linear(layer["forget_input"], h), linear(layer["forget_state"], state)
    f = [saturate(forget_h[d] + forget_s[d] + layer["forget_bias"][d]) for d in range(len(h))]
    return f, [shift_floor((f[d] + 127) * state[d], 8) for d in range(len(h))]


def candidate(layer: dict[str, Any], h: Vector, gated: Vector) -> Vector:
    """c, of the input and the gated state."""
    candidate_h, candidate_g = (
        linear(layer["candidate_input"], h),
        linear(layer["candidate_state"], gated),
    )
    bias = layer["candidate_bias"]
    return [saturate(candidate_h[d] + candidate_g[d] + bias[d]) for d in range(len(h))]


def towards(state: int, f: int, c: int) -> int:
    """A cell moved by its gate towards the candidate."""
    return state + shift_floor((f + 127) * (c - state), 8)


def cell(layer: dict[str, Any], h: Vector, state: Vector) -> Vector:
    """The recurrent cell: the next state."""
    f, g = gates(layer, h, state)
    c = candidate(layer, h, g)
    return [towards(state[d], f[d], c[d]) for d in range(len(h))]


def block(layer: dict[str, Any], x: Vector, state: Vector) -> tuple[Vector, Vector]:
    """One residual block."""
    state = cell(layer, norm(layer["cell_norm"], x), state)
    x = [saturate(x[d] + state[d]) for d in range(len(x))]
    hidden = linear(layer["ffn_in"], norm(layer["ffn_norm"], x))
    out = linear(layer["ffn_out"], hidden)
    return [saturate(x[d] + out[d]) for d in range(len(x))], state


def uses_of(layer: dict[str, Any], x: Vector, state: Vector) -> dict[str, list[Vector]]:
    """What every matrix of a block is applied to and, but for the projection, what it acts on and
    how that answers: to the gate and to the candidate, whichever part of them the matrix gives."""
    h, following = norm(layer["cell_norm"], x), block(layer, x, state)[1]
    f, g = gates(layer, h, state)
    c = candidate(layer, h, g)
    both = list(zip(state, f, c, strict=True))
    of_f = [answer(lambda f, s=s, c=c: towards(s, f, c), f) for s, f, c in both]
    of_c = [answer(lambda c, s=s, f=f: towards(s, f, c), c) for s, f, c in both]
    middle = [saturate(n + s) for n, s in zip(x, following, strict=True)]
    h_ffn = norm(layer["ffn_norm"], middle)
    hidden = linear(layer["ffn_in"], h_ffn)
    return {
        "forget_input": [h, following, of_f],
        "forget_state": [state, following, of_f],
        "candidate_input": [h, following, of_c],
        "candidate_state": [g, following, of_c],
        "ffn_in": [h_ffn, hidden, [answer(lambda k: k, k) for k in hidden]],
        "ffn_out": [hidden],
    }


def layer_of(member: dict[str, Any], number: int) -> dict[str, Any]:
    """The tensors of one layer by name."""
    return {
        path.removeprefix("layers/"): leaf[number]
        for path, leaf in member.items()
        if path.startswith("layers/")
    }


def model_step(
    member: dict[str, Any], state: dict[str, Matrix], token: int
) -> tuple[dict[str, Matrix], Vector, dict[str, list], Vector, Vector]:
    """Read one token: the next state {"cell": [L][D]}, logits [V], inputs and effects by path with
    a layer axis in front, the stream at its end and the gain of the norm behind it."""
    cells = [[0] * len(row) for row in state["cell"]] if token == 0 else state["cell"]
    x, following = embed(member["embedding"], token), []
    uses: dict[str, list] = {"embedding": [token]}
    for number, row in enumerate(cells):
        layer = layer_of(member, number)
        for name, parts in uses_of(layer, x, row).items():
            uses.setdefault(f"layers/{name}", []).append(parts)
        x, row = block(layer, x, row)
        following.append(row)
    z = norm(member["final_norm"], x)
    uses["head"] = [z]
    return {"cell": following}, linear(member["head"], z), uses, x, member["final_norm"]
