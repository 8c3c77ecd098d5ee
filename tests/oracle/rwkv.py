"""`rwkv`: tensors, a block, and a whole token of one member."""

from collections.abc import Callable
from typing import Any

from int_lm.config import ModelConfig
from oracle.arithmetic import Matrix, Vector, answer, norm, saturate
from oracle.egg import layer_of
from oracle.perturb import embed, linear, readout

LOWEST = -32767  # logit
GAIN = 16
THROUGH = {"layers/channel_key": "layers/channel_value"}  # the projection that an effect passes


def tensors(model: ModelConfig, vocab_size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """(kind, shape, layers) of every tensor, in the order that numbers them."""
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple
    return {
        "embedding": ("matrix", (V, D), 0),
        "head": ("matrix", (V, D), 0),
        "layers/channel_key": ("matrix", (F, D), L),
        "layers/channel_value": ("matrix", (D, F), L),
        "layers/time_mixing": ("matrix", (3 * D, 2 * D), L),
    }


def normed(x: Vector) -> Vector:
    """The norm, whose gain is no weight."""
    return norm([GAIN] * len(x), x)


def shifted(h: Vector, before: Vector) -> Vector:
    """h + ((mu (h' - h)) >> 7), mu from 0 to 127 over the channels."""
    result = []
    for d in range(len(h)):
        mu = 127 * d // max(1, len(h) - 1)
        result.append(saturate(h[d] + (mu * (before[d] - h[d])) // 128))
    return result


def mixed_cell(before: int, parts: Vector) -> int:
    """The cell moved by forget towards candidate, before it is clipped."""
    return before + ((parts[0] + 127) * (parts[1] - before)) // 256


def mixed_output(before: int, parts: Vector) -> int:
    """What time mixing adds to the stream, of forget, candidate and receptance."""
    return saturate(((parts[2] + 127) * mixed_cell(before, parts)) // 256)


def squared(k: int) -> int:
    """The key's nonlinearity."""
    return saturate(max(k, 0) ** 2 // 64)


def block(
    layer: dict[str, Any], x: Vector, state: dict[str, Vector]
) -> tuple[Vector, dict[str, Vector], dict[str, list[Vector]]]:
    """(x, state) -> (x, next state, uses by name): inputs, effects, their answers and the stream in
    front of the norm; of time mixing also the answers of the next state to forget and candidate,
    and the outputs."""
    h, width, first = normed(x), len(x), x
    both = shifted(h, state["time_shift"]) + state["cell"]
    rows = linear(layer["time_mixing"], both)
    cell, output, answers, of_state = [], [], [[], [], []], [[], []]
    for d in range(width):
        parts, before = [rows[part * width + d] for part in range(3)], state["cell"][d]
        cell.append(saturate(mixed_cell(before, parts)))
        output.append(mixed_output(before, parts))
        for part in range(3):

            def own(row: int, part: int = part, d: int = d) -> Vector:
                return [rows[p * width + d] if p != part else row for p in range(3)]

            def moved(row: int, own: Callable[[int], Vector] = own, d: int = d) -> int:
                return mixed_output(state["cell"][d], own(row))

            def kept(row: int, own: Callable[[int], Vector] = own, d: int = d) -> int:
                return saturate(mixed_cell(state["cell"][d], own(row)))

            answers[part].append(answer(moved, parts[part]))
            if part < 2:
                of_state[part].append(answer(kept, parts[part]))
    x = [saturate(a + b) for a, b in zip(x, output, strict=True)]
    g = normed(x)
    mixed = shifted(g, state["channel_shift"])
    linear_key = linear(layer["channel_key"], mixed)
    key = [squared(k) for k in linear_key]
    added = linear(layer["channel_value"], key)
    uses = {
        "time_mixing": [both, output, sum(answers, []), first, sum(of_state, []), rows],
        "channel_key": [mixed, key, [answer(squared, k) for k in linear_key], x],
        "channel_value": [key],
    }
    x = [saturate(a + b) for a, b in zip(x, added, strict=True)]
    return x, {"cell": cell, "time_shift": h, "channel_shift": g}, uses


def model_step(
    member: dict[str, Any], state: dict[str, Matrix], token: int
) -> tuple[dict[str, Matrix], Vector, dict[str, list], Vector, Vector]:
    """Read one token: the next state by name [L][D], logits [V], inputs and effects by path with a
    layer axis in front, the stream at its end and the gain of the norm behind it."""
    if token == 0:
        state = {name: [[0] * len(row) for row in rows] for name, rows in state.items()}
    x = embed(member["embedding"], token)
    following: dict[str, Matrix] = {name: [] for name in state}
    uses: dict[str, list] = {"embedding": [token]}
    for number in range(len(state["cell"])):
        before = {name: rows[number] for name, rows in state.items()}
        x, after, used = block(layer_of(member, number), x, before)
        for name in following:
            following[name].append(after[name])
        for name, parts in used.items():
            uses.setdefault(f"layers/{name}", []).append(parts)
    z = normed(x)
    uses["head"] = [z]
    return following, readout(member["head"], z), uses, x, [GAIN] * len(x)
