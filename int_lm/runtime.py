"""The runtime of an exported model: load, score and sample it with NumPy, in integers, in one file.

It imports nothing but NumPy and the standard library, and every export holds a copy of it. Logits,
log-likelihoods and samples equal those of the training code bit for bit: every operation is exact,
and the likelihood's tables are read from the export.

    model = load("DIRECTORY")
    log2_likelihoods(model, [b"some text"])                    int64, units of 2^-16 bit
    bytes(generate(reader(model), b"def ", Sampler(temperature=0.8, seed=1), tokens=100))

Formats: q4 is an integer holding value x 16, q7 value x 127; both lie in [-127, 127].
Axes: P documents read side by side, T tokens, L layers, D width, F feed-forward width, N inputs,
M outputs, V vocabulary.
"""

import contextlib
import dataclasses
import decimal
import functools
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
METADATA_KEY = "int_lm"  # of the safetensors header; its value is JSON
EXP2_TABLE, LOG2_TABLE = "tables/exp2", "tables/log2_mantissa"
TEXT_BYTES = 1 << 20  # of config.json, and of the header of the weights file, at most
FLOOR = 254  # no token is less likely than 2^-(254 / 16) times the likeliest
SEPARATOR = 0  # the token between documents; reading it resets the state
LOGIT_MAX = 2**15 - 1
VOCABULARY_MAX, DIRECT_LENGTH_MAX, DIRECT_BITS_MAX = 2**16, 16, 24
INPUTS_MAX = (2**31 - 1) // (2 * 127**2)  # of a dot: sums stay below 2^31
_WORD = np.uint64(2**32 - 1)
LANES = 256  # documents read side by side
WEIGHT_BITS = 40  # fractional bits of a sampling weight: 65 536 of them sum to at most 2^56
SAMPLING_KEY = 0x53414D50  # keeps these random words apart from those of training

Ids = Sequence[int] | np.ndarray
Tensors = dict[str, np.ndarray]
Reader = Callable[[int], np.ndarray]  # reads a token, returns the logits [V] of the next one


class ExportError(ValueError):
    """The directory does not hold a sound export: one sentence that says where and why."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ExportError(message)


def integer_dot(x_PN: np.ndarray, weight_MN: np.ndarray) -> np.ndarray:
    """x W^T, exact: integers in [-127, 127], [P, N] and [M, N], give int32 [P, M].

    NumPy multiplies integer matrices slowly but hands float64 ones to BLAS. The result is the
    same: every product is an integer, and so is every partial sum, in whatever order; all are at
    most N 127^2 < 2^31, and float64 holds every integer below 2^53.
    """
    return (x_PN.astype(np.float64) @ weight_MN.T.astype(np.float64)).astype(np.int32)


def saturate(x: np.ndarray) -> np.ndarray:
    """Clip to [-127, 127]; the dtype stays."""
    return np.minimum(np.maximum(x, -127), 127)


def scaled_dot(weight_MN: np.ndarray, x_PN: np.ndarray) -> np.ndarray:
    """x W^T >> (4 + round(log2(N) / 2)), floor rounding: int32 [P, N] -> [P, M]."""
    return integer_dot(x_PN, weight_MN) >> (4 + round(math.log2(x_PN.shape[-1]) / 2))


def linear(weight_MN: np.ndarray, x_PN: np.ndarray) -> np.ndarray:
    """saturate(x W^T >> (4 + round(log2(N) / 2))): int32 [P, N] -> [P, M]."""
    return saturate(scaled_dot(weight_MN, x_PN))


def norm(weight_D: np.ndarray | int, x_PD: np.ndarray) -> np.ndarray:
    """L1 norm: saturate(floor(x w / max(1, mean|x|))), int32 q4 -> int32 q4."""
    mean_P1 = np.abs(x_PD).sum(axis=-1, keepdims=True, dtype=np.int32) // x_PD.shape[-1]
    return saturate(x_PD * weight_D // np.maximum(mean_P1, 1))


class Egg:
    """The EGGROLL paper's recurrent model (arXiv 2511.16652), as int_lm/model/egg.py has it."""

    @staticmethod
    def shapes(model: dict[str, Any], V: int) -> dict[str, list[int]]:
        """{path: shape} of the int8 weights; `model` is that section of the configuration."""
        L, D, F = model["layers"], model["width"], model["width"] * model["ffn_multiple"]
        matrices = ("forget_input", "forget_state", "candidate_input", "candidate_state")
        vectors = ("cell_norm", "forget_bias", "candidate_bias", "ffn_norm")
        return {
            "embedding": [V, D],
            **{f"layers/{name}": [L, D, D] for name in matrices},
            **{f"layers/{name}": [L, D] for name in vectors},
            "layers/ffn_in": [L, F, D],
            "layers/ffn_out": [L, D, F],
            "final_norm": [D],
            "head": [V, D],
        }

    @staticmethod
    def initial_state(model: dict[str, Any], batch: int) -> Tensors:
        """{"cell": int32 q7 zeros [L, P, D]}: every leaf of a state has P as its second axis."""
        return {"cell": np.zeros((model["layers"], batch, model["width"]), np.int32)}

    @staticmethod
    def step(weights: Tensors, state: Tensors, tokens_P: np.ndarray) -> tuple[Tensors, np.ndarray]:
        """Read one token of each document: (next state, logits q4, int32 [P, V]).

        x  = embedding[token]; state s = 0 where the token is a separator; then in every layer
        h  = norm(x)
        f  = saturate(Wf h + Uf s + bf)
        g  = ((f + 127) s) >> 8
        c  = saturate(Wh h + Uh g + bh)
        s' = s + (((f + 127) (c - s)) >> 8)
        x  = saturate(x + s')
        x  = saturate(x + W2 (W1 norm(x)));   and after the last one, logits = head norm(x)
        """
        layered = [name for name in weights if name.startswith("layers/")]
        cells_LPD = np.where((tokens_P == SEPARATOR)[:, None], 0, state["cell"])
        x = weights["embedding"][tokens_P].astype(np.int32)
        for layer, s in enumerate(cells_LPD):
            w = {name.removeprefix("layers/"): weights[name][layer] for name in layered}
            h = norm(w["cell_norm"], x)
            f = linear(w["forget_input"], h) + linear(w["forget_state"], s) + w["forget_bias"]
            gate = saturate(f) + 127
            g = saturate((gate * s) >> 8)
            c = linear(w["candidate_input"], h) + linear(w["candidate_state"], g)
            c = saturate(c + w["candidate_bias"])
            cells_LPD[layer] = saturate(s + ((gate * (c - s)) >> 8))
            x = saturate(x + cells_LPD[layer])
            hidden_PF = linear(w["ffn_in"], norm(w["ffn_norm"], x))
            x = saturate(x + linear(w["ffn_out"], hidden_PF))
        logits_PV = linear(weights["head"], norm(weights["final_norm"], x))
        return {"cell": cells_LPD}, logits_PV


class Rwkv:
    """RWKV's time and channel mixing, made nonlinear, as int_lm/model/rwkv.py has it."""

    @staticmethod
    def shapes(model: dict[str, Any], V: int) -> dict[str, list[int]]:
        """{path: shape} of the int8 weights; `model` is that section of the configuration."""
        L, D, F = model["layers"], model["width"], model["width"] * model["ffn_multiple"]
        return {
            "embedding": [V, D],
            "layers/time_mixing": [L, 3 * D, 2 * D],
            "layers/channel_key": [L, F, D],
            "layers/channel_value": [L, D, F],
            "head": [V, D],
        }

    @staticmethod
    def initial_state(model: dict[str, Any], batch: int) -> Tensors:
        """Int32 zeros [L, P, D]: the cell's state, q7, and the norms of the token before, q4."""
        names = ("cell", "time_shift", "channel_shift")
        shape = model["layers"], batch, model["width"]
        return {name: np.zeros(shape, np.int32) for name in names}

    @staticmethod
    def step(weights: Tensors, state: Tensors, tokens_P: np.ndarray) -> tuple[Tensors, np.ndarray]:
        """Read one token of each document: (next state, logits q4, int32 [P, V]).

        x  = embedding[token]; the state is 0 where the token is a separator; then in every layer,
        h' the norm of the token before, mu_d = floor(127 d / (D - 1)), every norm of gain 16
        h  = norm(x);  h = h + ((mu (h' - h)) >> 7)
        f, c, r = saturate(W [h, s])
        s' = s + (((f + 127) (c - s)) >> 8)
        x  = saturate(x + (((r + 127) s') >> 8))
        h  = norm(x);  h = h + ((mu (h' - h)) >> 7)
        x  = saturate(x + Wv saturate(max(Wk h, 0)^2 >> 6));   and at last, logits = head norm(x)
        """
        past = (tokens_P != SEPARATOR)[:, None]
        state = {name: np.where(past, leaf, 0) for name, leaf in state.items()}
        x = weights["embedding"][tokens_P].astype(np.int32)
        mu = 127 * np.arange(x.shape[-1], dtype=np.int32) // max(1, x.shape[-1] - 1)
        for layer, s in enumerate(state["cell"]):
            h, before = norm(16, x), state["time_shift"][layer].copy()
            state["time_shift"][layer] = h
            both = np.concatenate([h + ((mu * (before - h)) >> 7), s], axis=-1)
            f, c, r = np.split(linear(weights["layers/time_mixing"][layer], both), 3, axis=-1)
            state["cell"][layer] = s + (((f + 127) * (c - s)) >> 8)
            x = saturate(x + (((r + 127) * state["cell"][layer]) >> 8))
            h, before = norm(16, x), state["channel_shift"][layer].copy()
            state["channel_shift"][layer] = h
            k = linear(weights["layers/channel_key"][layer], h + ((mu * (before - h)) >> 7))
            k = saturate(np.maximum(k, 0) ** 2 >> 6)
            x = saturate(x + linear(weights["layers/channel_value"][layer], k))
        logits_PV = scaled_dot(weights["head"], norm(16, x))
        return state, np.minimum(np.maximum(logits_PV, -LOGIT_MAX), LOGIT_MAX)


class Architecture(Protocol):
    """What a class must have to stand for a network: `Egg` and `Rwkv` are such classes."""

    @staticmethod
    def shapes(model: dict[str, Any], V: int) -> dict[str, list[int]]: ...

    @staticmethod
    def initial_state(model: dict[str, Any], batch: int) -> Tensors: ...

    @staticmethod
    def step(
        weights: Tensors, state: Tensors, tokens_P: np.ndarray
    ) -> tuple[Tensors, np.ndarray]: ...


ARCHITECTURES: dict[str, type[Architecture]] = {"egg": Egg, "rwkv": Rwkv}


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded export."""

    config: dict[str, Any]  # the contents of config.json
    architecture: type[Architecture]
    weights: Tensors  # int8, by path
    exp2_table: np.ndarray  # int32: round(2^k 2^(-d/16)) for d = 0..254; the first entry is 2^k
    log2_table: np.ndarray  # int32: round(2^22 log2(1 + i / 2^10)) for i = 0..2^10

    @property
    def direct(self) -> list[int]:
        """Context lengths of the context tables."""
        return self.config["model"].get("direct", [])

    def initial_state(self, batch: int) -> Tensors:
        """The state at a document's start: every leaf has P as its second axis."""
        state = self.architecture.initial_state(self.config["model"], batch)
        if self.direct:
            _require(
                "context" not in state, "the architecture has a state named context; rename it"
            )
            state["context"] = np.full((max(self.direct), batch), SEPARATOR, np.int64)
        return state

    def step(self, state: Tensors, tokens_P: np.ndarray) -> tuple[Tensors, np.ndarray]:
        """Read one token of each document: (next state, logits q4, int32 [P, V])."""
        recurrent = {name: leaf for name, leaf in state.items() if name != "context"}
        recurrent, logits_PV = self.architecture.step(self.weights, recurrent, tokens_P)
        if not self.direct:
            return recurrent, logits_PV
        context_KP = np.concatenate([tokens_P[None], state["context"][:-1]])
        context_KP = np.where(tokens_P != SEPARATOR, context_KP, SEPARATOR)
        for length in self.direct:
            rows_P = context_rows(context_KP[:length], self.config["model"]["direct_bits"])
            logits_PV = logits_PV + self.weights[f"direct/context_{length}"][rows_P]
        logits_PV = np.minimum(np.maximum(logits_PV, -LOGIT_MAX), LOGIT_MAX)
        return recurrent | {"context": context_KP}, logits_PV


def context_rows(context_KP: np.ndarray, bits: int) -> np.ndarray:
    """Rows of a context table, int64 [P]: a hash of the last K tokens, newest first."""
    word = np.full(context_KP.shape[1:], len(context_KP), np.uint64)
    for token_P in context_KP.astype(np.uint64):
        word = ((word ^ token_P) * np.uint64(0x9E3779B1)) & _WORD
        word = word ^ (word >> np.uint64(15))
    return (((word * np.uint64(0x85EBCA77)) & _WORD) >> np.uint64(32 - bits)).astype(np.int64)


def load(
    directory: str | Path, architectures: Mapping[str, type[Architecture]] | None = None
) -> Model:
    """Read an export; raises `ExportError` unless all of it is as it was written.

    Args:
      architectures: classes by name, for networks that this file does not have.

    Nothing that the files say is run, and nothing is allocated before it is known to be there.
    """
    directory, known = Path(directory), {**ARCHITECTURES, **(architectures or {})}
    with _sound(directory):
        text = _config_text(directory)
        config = json.loads(text)
        sound = type(config["step"]) is int and isinstance(config["data"], dict)
        _require(sound, f"{CONFIG_FILE} has no valid step or data")
        with _opened(directory / WEIGHTS_FILE) as file:
            tensors = _read_tensors(file, config, hashlib.sha256(text).hexdigest(), known)
    architecture = known[config["model"]["architecture"]]
    return Model(config, architecture, tensors, tensors.pop(EXP2_TABLE), tensors.pop(LOG2_TABLE))


def architecture_of(directory: str | Path) -> str:
    """The name of an export's architecture, from config.json alone; errors as of `load`."""
    with _sound(Path(directory)):
        name = json.loads(_config_text(Path(directory)))["model"]["architecture"]
        _require(isinstance(name, str), f"{CONFIG_FILE} has no valid architecture")
    return name


def _config_text(directory: Path) -> bytes:
    with _opened(directory / CONFIG_FILE) as file:
        size = os.fstat(file.fileno()).st_size
        _require(size <= TEXT_BYTES, f"{CONFIG_FILE} has more than {TEXT_BYTES} bytes")
        return file.read(size)


@contextlib.contextmanager
def _sound(directory: Path) -> Iterator[None]:
    """Whatever goes wrong in reading an export becomes one `ExportError`."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{directory} is no sound export: {error}; export it again") from error
    except OSError as error:
        problem = f"{error.strerror}: {error.filename}"
        raise ExportError(f"{directory} is no export that can be read ({problem})") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f"its {CONFIG_FILE} or the header of its {WEIGHTS_FILE} is damaged"
        raise ExportError(f"{directory} is no sound export: {reason}; export it again") from error


def _opened(path: Path) -> io.BufferedReader:
    """A file to read; a pipe in its place is not waited for."""
    now = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | now))


def expected_tensors(
    config: dict[str, Any], architectures: Mapping[str, type[Architecture]]
) -> dict[str, tuple[str, list[int]]]:
    """{name: (safetensors dtype, shape)} of all that the weights file of `config` must hold."""
    name = config["model"]["architecture"]
    known = ", ".join(architectures)
    _require(name in architectures, f"its architecture is {name!r}, this runtime knows {known}")
    model, V, direct = config["model"], config["vocab_size"], config["model"].get("direct", [])
    for size, most in (
        (V, VOCABULARY_MAX),
        (model["layers"], INPUTS_MAX),
        (model["width"], INPUTS_MAX),
        (model["ffn_multiple"], INPUTS_MAX),
        *((length, DIRECT_LENGTH_MAX) for length in direct),
        *((model["direct_bits"], DIRECT_BITS_MAX) for _ in direct[:1]),
    ):
        sound = type(size) is int and 0 < size <= most
        _require(sound, f"{CONFIG_FILE} has a size that is no positive integer up to {most}")
    shapes = architectures[name].shapes(model, V)
    widest = max(shape[-1] for shape in shapes.values())
    _require(widest <= INPUTS_MAX, f"it has dots over {widest} inputs, at most {INPUTS_MAX} fit")
    tables = {f"direct/context_{length}": [1 << model["direct_bits"], V] for length in direct}
    _require(len(tables) == len(direct), f"{CONFIG_FILE} names a context table twice")
    shapes |= tables
    same = config["tokenizer"]["vocab_size"] == V
    _require(same, "its tokenizer has another vocabulary than its weights")
    weights = {name: ("I8", shape) for name, shape in shapes.items()}
    return {**weights, EXP2_TABLE: ("I32", [255]), LOG2_TABLE: ("I32", [1025])}


def _read_tensors(
    file: io.BufferedReader,
    config: dict[str, Any],
    config_sha256: str,
    architectures: Mapping[str, type[Architecture]],
) -> Tensors:
    """Every tensor of a safetensors file, checked against `config` and the digests in its header.

    The format: 8 bytes, the header's length; the header, JSON {name: {"dtype", "shape",
    "data_offsets": [begin, end]}}; the data. Integers are little-endian. Lengths are compared with
    the file's before anything of that length is read.
    """
    size = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    _require(start <= size, f"{WEIGHTS_FILE} was cut short")
    _require(start <= TEXT_BYTES, f"the header of {WEIGHTS_FILE} has {start - 8} bytes")
    header = json.loads(file.read(start - 8))
    written = json.loads(header.pop("__metadata__")[METADATA_KEY])
    version, known = written["format_version"], FORMAT_VERSION
    _require(version == known, f"its format version is {version!r}, this runtime reads {known}")
    same = written["config_sha256"] == config_sha256
    _require(same, f"{CONFIG_FILE} is not the one that was written with {WEIGHTS_FILE}")
    expected, tensors = expected_tensors(config, architectures), {}
    same = written["sha256"].keys() == header.keys() == expected.keys()
    _require(same, f"{WEIGHTS_FILE} does not hold the tensors that {CONFIG_FILE} asks for")
    for name, (kind, shape) in expected.items():
        found = header[name]["dtype"], header[name]["shape"]
        _require(found == (kind, shape), f"{name} is {found}, must be {(kind, shape)}")
        dtype = np.dtype({"I8": "int8", "I32": "<i4"}[kind])
        begin, end = header[name]["data_offsets"]
        inside = 0 <= begin <= end <= size - start
        inside = inside and end - begin == math.prod(shape) * dtype.itemsize
        _require(inside, f"{name} does not lie inside {WEIGHTS_FILE}, which was cut short")
        file.seek(start + begin)
        tensor = np.empty(shape, dtype)
        data = tensor.reshape(-1).view(np.uint8).data
        same = file.readinto(data) == end - begin
        same = same and hashlib.sha256(data).hexdigest() == written["sha256"][name]
        _require(same, f"{name} is not what was written: its SHA-256 differs")
        if kind == "I8":
            _require(int(tensor.min()) > -128, f"{name} holds -128, outside [-127, 127]")
        tensors[name] = tensor.astype(dtype.newbyteorder("="), copy=False)
    return tensors


def log2_likelihood(model: Model, logits_PV: np.ndarray, targets_P: np.ndarray) -> np.ndarray:
    """log2 p(target), int64 [P] in units of 2^-16 bit, from logits in units of 1/16 bit.

    log2 p(target) = (logit[target] - max) / 16 - log2 sum_v 2^((logit[v] - max) / 16)

    The sum adds table entries. Its logarithm is the position e of its leading one plus that of the
    31 bits from there on, by a table of 2^10 intervals, interpolated with the next 12 bits.
    """
    logits = logits_PV.astype(np.int64)
    distance_PV = np.minimum(logits.max(axis=-1, keepdims=True) - logits, FLOOR)
    total = model.exp2_table[distance_PV].sum(axis=-1, dtype=np.int64)  # below 2^45
    e = np.searchsorted(np.int64(1) << np.arange(62), total, side="right") - 1
    mantissa = np.where(e > 30, total >> np.maximum(e - 30, 0), total << np.maximum(30 - e, 0))
    index, rest = (mantissa >> 20) & 0x3FF, (mantissa >> 8) & 0xFFF
    low, high = model.log2_table[index], model.log2_table[index + 1]
    fraction = (low + (((high - low) * rest) >> 12) + (1 << 5)) >> 6  # 22 -> 16 fractional bits
    log2_sum = ((e - int(model.exp2_table[0]).bit_length() + 1) << 16) + fraction
    return -(distance_PV[np.arange(len(targets_P)), targets_P] << 12) - log2_sum


def greedy_hit(model: Model, logits_PV: np.ndarray, targets_P: np.ndarray) -> np.ndarray:
    """1 where the target is the likeliest token (of equals, the lowest id), else 0: int64 [P]."""
    return (logits_PV.argmax(axis=-1) == targets_P).astype(np.int64)


def log2_likelihoods(
    model: Model,
    documents: Sequence[Ids],
    *,
    progress: Callable[[int], None] = lambda tokens: None,
    score: Callable[[Model, np.ndarray, np.ndarray], np.ndarray] = log2_likelihood,
    firsts: Sequence[int] | None = None,
) -> np.ndarray:
    """Exact log2-likelihood of every document, int64 in units of 2^-16 bit, or its sum of `score`.

    A document d1..dn is coded as d1..dn and the separator that ends it, from a fresh state:
    inputs [0, d1..dn], targets [d1..dn, 0]. `progress` is told every number of tokens just read.
    With `firsts`, only the targets from that place of each document to dn count.
    """
    ids = [np.array(list(d) if isinstance(d, bytes) else d, np.int64) for d in documents]
    V, totals = model.config["vocab_size"], np.zeros(len(ids), np.int64)
    begins = np.array(firsts if firsts is not None else [0] * len(ids), np.int64)
    if any(document.size and not 0 <= document.min() <= document.max() < V for document in ids):
        raise ValueError(f"a document holds an id outside the vocabulary of {V}")
    longest_first = np.array(sorted(range(len(ids)), key=lambda i: -len(ids[i])), np.int64)
    for start in range(0, len(ids), LANES):
        lanes = longest_first[start : start + LANES]
        lengths_P = np.array([len(ids[index]) + 1 for index in lanes])
        tokens_TP = np.full((lengths_P[0] + 1, len(lanes)), SEPARATOR, np.int64)
        for lane, index in enumerate(lanes):
            tokens_TP[1 : lengths_P[lane], lane] = ids[index]
        state = model.initial_state(len(lanes))
        for t in range(lengths_P[0]):
            active = int((lengths_P > t).sum())  # lanes not at their end: the first ones
            state = {name: leaf[:, :active] for name, leaf in state.items()}
            inputs_P, targets_P = tokens_TP[t : t + 2, :active]
            state, logits_PV = model.step(state, inputs_P)
            counted = begins[lanes[:active]] <= t
            if firsts is not None:
                counted &= t + 1 < lengths_P[:active]
            totals[lanes[:active]] += score(model, logits_PV, targets_P) * counted
            progress(active)
    return totals


def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> int:
    """Threefry-2x32-20 (Salmon et al., SC 2011), the generator of training, as one 64-bit word."""
    words = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    left, right = (counter[0] + words[0]) % 2**32, (counter[1] + words[1]) % 2**32
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            left = (left + right) % 2**32
            right = ((right << rotation) % 2**32 | right >> (32 - rotation)) ^ left
        left = (left + words[(group + 1) % 3]) % 2**32
        right = (right + words[(group + 2) % 3] + group + 1) % 2**32
    return left << 32 | right


@functools.cache
def sampling_weights(temperature: float) -> np.ndarray:
    """round(2^40 * 2^(-d / (16 temperature))) for logit differences d = 0..254: int64 [255]."""
    context = decimal.Context(prec=50)  # its results, unlike exp2's, are the same everywhere
    unit = context.multiply(16, decimal.Decimal(temperature))
    powers = (context.power(2, WEIGHT_BITS - context.divide(d, unit)) for d in range(255))
    return np.array([int(x.to_integral_value(decimal.ROUND_HALF_EVEN)) for x in powers], np.int64)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is drawn: in integers, so that a seed gives the same text everywhere."""

    temperature: float = 0.8  # of the draw; 0 takes the likeliest token (of equals, the lowest id)
    top_k: int = 0  # draw among the k likeliest tokens only (0: all)
    top_p: float = 1.0  # draw among the fewest likeliest tokens that have this probability together
    seed: int = 0

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed < 2**32, "between 0 and 2^32 - 1"),
        ):
            if not sound:
                raise ValueError(f"{name} is {getattr(self, name)}, must be {expected}")

    def choose(self, logits_V: np.ndarray, number: int) -> int:
        """The token that draw `number` picks given logits in units of 1/16 bit."""
        distance_V = np.minimum(int(logits_V.max()) - logits_V.astype(np.int64), FLOOR)
        if self.temperature == 0:
            return int(distance_V.argmin())
        order = distance_V.argsort(kind="stable")[: self.top_k or None]
        cumulated = sampling_weights(self.temperature)[distance_V[order]].cumsum()
        top, bottom = self.top_p.as_integer_ratio()
        needed = -(-int(cumulated[-1]) * top // bottom)  # rounded up
        total = int(cumulated[np.searchsorted(cumulated, needed)])
        word = threefry2x32((self.seed, SAMPLING_KEY), (number % 2**32, number >> 32))
        return int(order[np.searchsorted(cumulated, word * total >> 64, side="right")])


def reader(model: Model) -> Reader:
    """A reader of one document, from a fresh state."""
    state = model.initial_state(1)

    def read(token: int) -> np.ndarray:
        nonlocal state
        state, logits_PV = model.step(state, np.array([token]))
        return logits_PV[0]

    return read


def generate(
    read: Reader, prompt: Ids, sampler: Sampler, *, tokens: int, stop: bool = True
) -> Iterator[int]:
    """Yield at most `tokens` ids that follow `prompt`; with `stop`, end where a text ends."""
    unread = [SEPARATOR, *prompt]
    for number in range(tokens):
        logits_V = [read(token) for token in unread][-1]
        token = sampler.choose(logits_V, number)
        if stop and token == SEPARATOR:
            return
        yield token
        unread = [token]
