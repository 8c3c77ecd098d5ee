"""The network of gru.py in NumPy, for exports, which hold a copy of this file.

It imports NumPy and the standard library only. q4 is an integer holding value x 16, q7 value x 127.
Axes: P documents read side by side, L layers, D width, N inputs, M outputs, V vocabulary.
"""

import math
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
LOGIT_MAX = 2**15 - 1


def saturate(x: np.ndarray) -> np.ndarray:
    """Clip to [-127, 127]."""
    return np.clip(x, -127, 127)


def scaled_dot(weight_MN: np.ndarray, x_PN: np.ndarray) -> np.ndarray:
    """x W^T >> (4 + round(log2(N) / 2)): int64 [P, N] -> [P, M]."""
    exact = x_PN.astype(np.float64) @ weight_MN.T.astype(np.float64)  # sums stay below 2^53
    return exact.astype(np.int64) >> (4 + round(math.log2(x_PN.shape[-1]) / 2))


def linear(weight_MN: np.ndarray, x_PN: np.ndarray) -> np.ndarray:
    """`scaled_dot`, saturated."""
    return saturate(scaled_dot(weight_MN, x_PN))


def norm(weight_D: np.ndarray | int, x_PD: np.ndarray) -> np.ndarray:
    """saturate(floor(x w / max(1, mean|x|)))."""
    mean_P1 = np.abs(x_PD).sum(axis=-1, keepdims=True) // x_PD.shape[-1]
    return saturate(x_PD * weight_D // np.maximum(mean_P1, 1))


class Gru:
    """The gated recurrent unit of gru.py, which has the equations."""

    @staticmethod
    def shapes(model: dict[str, Any], V: int) -> dict[str, list[int]]:
        """{path: shape} of the int8 weights; `model` is that section of the configuration."""
        L, D = model["layers"], model["width"]
        return {
            "embedding": [V, D],
            "layers/norm": [L, D],
            "layers/bias": [L, 3 * D],
            "layers/input": [L, 3 * D, D],
            "layers/recurrent": [L, 3 * D, D],
            "layers/output": [L, D, D],
            "dense": [D, D],
            "final_norm": [D],
            "head": [V, D],
        }

    @staticmethod
    def initial_state(model: dict[str, Any], batch: int) -> Tensors:
        """{"cell": int64 q7 zeros [L, P, D]}."""
        return {"cell": np.zeros((model["layers"], batch, model["width"]), np.int64)}

    @staticmethod
    def step(weights: Tensors, state: Tensors, tokens_P: np.ndarray) -> tuple[Tensors, np.ndarray]:
        """Read one token of each document: (next state, logits q4 [P, V])."""
        cells_LPD = np.where((tokens_P != 0)[:, None], state["cell"], 0)
        x = weights["embedding"][tokens_P].astype(np.int64)
        for layer, s in enumerate(cells_LPD):
            h = norm(weights["layers/norm"][layer].astype(np.int64), x)
            of_input = linear(weights["layers/input"][layer], h) + weights["layers/bias"][layer]
            wz, wr, wn = np.split(of_input, 3, axis=-1)
            uz, ur, un = np.split(linear(weights["layers/recurrent"][layer], s), 3, axis=-1)
            update, reset = saturate(wz + uz), saturate(wr + ur)
            candidate = saturate(wn + (((reset + 127) * un) >> 8))
            following = saturate(s + (((update + 127) * (candidate - s)) >> 8))
            cells_LPD[layer] = following
            x = saturate(x + linear(weights["layers/output"][layer], following))
        x = saturate(x + linear(weights["dense"], norm(16, x)))
        logits_PV = scaled_dot(weights["head"], norm(weights["final_norm"].astype(np.int64), x))
        return {"cell": cells_LPD}, np.clip(logits_PV, -LOGIT_MAX, LOGIT_MAX)
