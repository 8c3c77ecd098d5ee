"""The population: tensors and their estimators, members' weights, and what a member reads."""

from types import ModuleType
from typing import Any, NamedTuple

from int_lm.config import Config, EsConfig, ModelConfig
from oracle import contexts, egg, pool, rwkv
from oracle.arithmetic import Vector
from oracle.likelihood import log2_likelihood
from oracle.noise import matrix_noise, vector_noise
from oracle.perturb import bare, perturbed_matrix, perturbed_vector

NO_TARGET = -1
Tensors = dict[str, tuple[str, tuple[int, ...], int]]


def architecture(model: ModelConfig) -> ModuleType:
    """Its equations."""
    return {"egg": egg, "rwkv": rwkv}[model.architecture]


def tensors(model: ModelConfig, vocab_size: int) -> Tensors:
    """(kind, shape, layers) of every tensor, in the order that numbers them: by path."""
    shape = 2**model.direct_bits, vocab_size
    names = sorted(f"direct/context_{k}" for k in model.direct)
    tables: Tensors = {path: ("table", shape, 0) for path in names}
    return tables | architecture(model).tensors(model, vocab_size)


def numbered(
    model: ModelConfig, vocab_size: int
) -> list[tuple[str, int, int, str, tuple[int, ...]]]:
    """(path, layer or -1, number, kind, shape) of every matrix, vector and table there is."""
    listed = []
    for path, (kind, shape, layers) in tensors(model, vocab_size).items():
        for layer in range(layers) if layers else [-1]:
            listed.append((path, layer, len(listed), kind, shape))
    return listed


def at(tree: dict[str, Any], path: str, layer: int) -> Any:
    """One matrix or vector of a tree."""
    return tree[path] if layer < 0 else tree[path][layer]


def estimator(es: EsConfig, path: str, kind: str) -> str:
    """Whose votes a tensor takes: plain, trace, unit, local, deep or exact."""
    votes = "plain" if es.votes == "eggroll" else es.votes
    if kind == "vector":
        return "plain"
    if kind == "table":
        return "exact"
    if path == "head":
        return "exact" if es.readout == "exact" else votes
    streams = path in ("embedding", "layers/ffn_out", "layers/channel_value")
    return "exact" if votes in ("unit", "local") and streams else votes


def member_weights(
    config: Config, vocab_size: int, weights: dict[str, Any], seed: int, step: int, p: int
) -> dict[str, Any]:
    """The tree that member p uses at a step; tensors with exact, local or deep votes are bare."""
    es, pair, sign = config.es, p // 2, 1 - 2 * (p % 2)
    member: dict[str, Any] = {}
    for path, layer, number, kind, shape in numbered(config.model, vocab_size):
        value = at(weights, path, layer)
        if kind == "table":
            leaf = value
        elif estimator(es, path, kind) in ("exact", "local", "deep"):
            leaf = bare(value)
        elif kind == "vector":
            noise = vector_noise(es, shape[0], seed, step, number, pair)
            leaf = perturbed_vector(es, value, noise, sign)
        else:
            factors = matrix_noise(es, (shape[0], shape[1]), seed, step, number, pair)
            leaf = perturbed_matrix(es, value, factors, sign)
        if layer < 0:
            member[path] = leaf
        else:
            member.setdefault(path, []).append(leaf)
    return member


class Reading(NamedTuple):
    """What reading one token comes to: its target is `NO_TARGET` where it is padding.

    Attributes:
      uses: by path [inputs, effect and answer if there is one], with a layer axis in front in
        layers; the row of a table; of a pool "held", whether the target is held back.
    """

    logits: Vector
    target: int
    log_likelihood: int
    uses: dict[str, Any]
    residual: Vector
    gain: Vector


State = dict[str, Any]  # of one member: leaves [L][D] by name, and "context" [K]


def read_token(
    model: ModelConfig, member: dict[str, Any], state: State, token: int, apart: bool = False
) -> tuple[State, Vector, dict[str, Any], Vector, Vector]:
    """`model_step` of an architecture, with context tables beside it, which are added or not."""
    recurrent = {name: leaf for name, leaf in state.items() if name not in ("context", "held")}
    recurrent, logits, *rest = architecture(model).model_step(member, recurrent, token)
    uses, residual, gain = rest
    if not model.direct:
        return recurrent, logits, uses, residual, gain
    context = contexts.following(state["context"], token)
    rows = contexts.rows_of(model, context)
    uses = uses | rows
    if apart:
        uses["held"] = pool.held_back(bool(state["held"][0]), context)
        recurrent["held"] = [int(uses["held"])]
    else:
        logits = contexts.added(member, rows, logits)
    return recurrent | {"context": context}, logits, uses, residual, gain


def read(
    model: ModelConfig,
    member: dict[str, Any],
    state: State,
    tokens: Vector,
    padded: bool = False,
    apart: bool = False,
) -> tuple[State, list[Reading]]:
    """The state after all but the last token, and the reading of each of them; with `padded`, a
    separator after a separator has no likelihood and no target; `apart` as in `read_token`."""
    readings = []
    for token, target in zip(tokens[:-1], tokens[1:], strict=True):
        state, logits, *rest = read_token(model, member, state, token, apart)
        nothing = padded and token == target == 0
        log_likelihood = 0 if nothing else log2_likelihood(logits, target)
        readings.append(Reading(logits, NO_TARGET if nothing else target, log_likelihood, *rest))
    return state, readings
