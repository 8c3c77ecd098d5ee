"""The runtime of an exported model: load, score and sample it with NumPy, in integers, in one file.

It imports NumPy and the standard library alone, and every export holds a copy of it. Logits,
log-likelihoods and samples equal those of the training code bit for bit: all operations are exact.

    model = load("DIRECTORY")
    log2_likelihoods(model, [b"some text"])                    int64, units of 2^-16 bit
    bytes(generate(reader(model), b"def ", Sampler(temperature=0.8, seed=1), tokens=100))

Formats: q4 is an integer holding value x 16, q7 value x 127; both lie in [-127, 127].
Axes: P documents read side by side, T tokens, L layers, D width, F feed-forward width, N inputs,
M outputs, V vocabulary.
"""

import contextlib
import dataclasses
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

from int_lm.contexts import (
    Tensors,
    cache_step,
    context_rows as context_rows,
    following_words as following_words,
    table_names,
)
from int_lm.sampling import (
    FLOOR,
    SEPARATOR,
    Ids,
    Reader as Reader,
    Sampler as Sampler,
    StateReader,
    generate as generate,
    sampling_weights as sampling_weights,
    threefry2x32 as threefry2x32,
)

FORMAT_VERSION = 2  # version 1, which had no sparse context tables, is read too
PARTS = ("rows", "counts", "columns", "values")  # of a sparse context table
# what a state has beside the recurrent network's
BESIDES = ("context", "words", "cache", "cache_place", "cache_hash")
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
METADATA_KEY = "int_lm"  # of the safetensors header; its value is JSON
CACHE = "direct/cache"  # the weights of the document cache
EXP2_TABLE, LOG2_TABLE = "tables/exp2", "tables/log2_mantissa"
TEXT_BYTES = 1 << 20  # of config.json, and of the header of the weights file, at most
LOGIT_MAX = 2**15 - 1
VOCABULARY_MAX, DIRECT_LENGTH_MAX, DIRECT_BITS_MAX, CACHE_BITS_MAX = 2**16, 16, 24, 16
WORDS_MAX = 4
INPUTS_MAX = (2**31 - 1) // (2 * 127**2)  # of a dot: sums stay below 2^31
EXACT_INPUTS = 2**24 // 127**2  # of a dot in float32: sums stay at most 2^24
ONE_THREAD = 2**18  # products in a call of BLAS: up to this many, OpenBLAS starts no other thread
LANES = 256  # documents read side by side


class ExportError(ValueError):
    """The directory does not hold a sound export: one sentence that says where and why."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ExportError(message)


def integer_dot(x_PN: np.ndarray, weight_MN: np.ndarray) -> np.ndarray:
    """x W^T, exact: integers in [-127, 127], [P, N] and [M, N], give int32 [P, M].

    NumPy multiplies integer matrices slowly, but has BLAS for float32, which holds every integer up
    to 2^24: no partial sum of `EXACT_INPUTS` products is larger, in whatever order they are added.
    Sums of such parts are added in int32. One row is multiplied by dots, several by products so
    small that BLAS starts no threads for them, which would cost more than they bring.
    """
    (P, N), M = x_PN.shape, len(weight_MN)
    total_PM, height = np.zeros((P, M), np.int32), max(1, ONE_THREAD // (P * min(N, EXACT_INPUTS)))
    for part in (slice(n, n + EXACT_INPUTS) for n in range(0, N, EXACT_INPUTS)):
        x = x_PN[:, part].astype(np.float32)
        weight = weight_MN[:, part].astype(np.float32, copy=False)
        if P == 1:
            total_PM[0] += np.vecdot(weight, x[0]).astype(np.int32)
            continue
        for rows in (slice(m, m + height) for m in range(0, M, height)):
            total_PM[:, rows] += (weight[rows] @ x.T).T.astype(np.int32)
    return total_PM


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
        layers = {f"layers/{name}": [L, D, D] for name in matrices}
        layers |= {f"layers/{name}": [L, D] for name in vectors}
        layers |= {"layers/ffn_in": [L, F, D], "layers/ffn_out": [L, D, F]}
        return {"embedding": [V, D], **layers, "final_norm": [D], "head": [V, D]}

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

    shapes: Callable[[dict[str, Any], int], dict[str, list[int]]]
    initial_state: Callable[[dict[str, Any], int], Tensors]
    step: Callable[[Tensors, Tensors, np.ndarray], tuple[Tensors, np.ndarray]]


ARCHITECTURES: dict[str, type[Architecture]] = {"egg": Egg, "rwkv": Rwkv}


class Table:
    """A context table, int8 [R, V]. Rows of a sparse one are filled in when they are first read.

    A sparse one is stored in four parts: a bit for every row that is not all 0, the lowest of a
    byte first; of each such row the number of entries that are not 0, less one; and of these, row
    by row, columns and values.
    """

    def __init__(self, tensors: Tensors, name: str, R: int, V: int):
        self.name, self.waiting_R, dense_RV = name, np.zeros(R, bool), tensors.get(name)
        if dense_RV is None:
            bits, counts, self.columns, self.values = (tensors[f"{name}/{part}"] for part in PARTS)
            self.waiting_R |= np.unpackbits(bits, count=R, bitorder="little").view(bool)
            ends = np.append(0, (counts.astype(np.int64) + 1).cumsum())
            sound = self.waiting_R.sum() == len(counts) and self.columns.max(initial=0) < V
            sound = bool(sound) and ends[-1] == len(self.columns) == len(self.values)
            _require(sound, f"the parts of {name} do not fit each other")
            self.begins = ends[np.append(0, self.waiting_R.cumsum())]  # of rows, and an end
            dense_RV = np.zeros((R, V), np.int8)  # takes memory only where it is written
        self.dense_RV = dense_RV

    def rows(self, rows_P: np.ndarray) -> np.ndarray:
        """Some rows, int8 [P, V]."""
        if self.waiting_R[rows_P].any():
            new = np.unique(rows_P[self.waiting_R[rows_P]])
            ends, lengths = self.begins[new + 1], self.begins[new + 1] - self.begins[new]
            entries = np.arange(lengths.sum()) + (ends - lengths.cumsum()).repeat(lengths)
            self.dense_RV[new.repeat(lengths), self.columns[entries]] = self.values[entries]
            self.waiting_R[new] = False
        return self.dense_RV[rows_P]


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded export."""

    config: dict[str, Any]  # the contents of config.json
    architecture: type[Architecture]
    tensors: Tensors  # int8, as they are stored: context tables dense or in their parts
    exp2_table: np.ndarray  # int32: round(2^k 2^(-d/16)) for d = 0..254; the first entry is 2^k
    log2_table: np.ndarray  # int32: round(2^22 log2(1 + i / 2^10)) for i = 0..2^10

    @property
    def direct(self) -> list[int]:
        """Context lengths of the context tables, the longest first."""
        return sorted(self.config["model"].get("direct", []), reverse=True)

    @property
    def words(self) -> list[int]:
        """Numbers of words of the context tables that words select, descending."""
        return sorted(self.config["model"].get("words", []), reverse=True)

    @property
    def cache(self) -> list[int]:
        """Context lengths of the document cache, the longest first."""
        return sorted(self.config["model"].get("cache", []), reverse=True)

    @functools.cached_property
    def tables(self) -> list[Table]:
        """The context tables, the one of the longest contexts first, then those of words."""
        R, V = 1 << self.config["model"].get("direct_bits", 0), self.config.get("vocab_size", 0)
        names = table_names(self.direct, self.words)
        return [Table(self.tensors, f"direct/{name}", R, V) for name in names]

    @functools.cached_property
    def operands(self) -> Tensors:
        """The network's weights; matrices of the architectures here are float32, for BLAS."""
        own = self.architecture in ARCHITECTURES.values()
        matrices = (name for name, w in self.tensors.items() if w.ndim == 3 or name == "head")
        operands = {name: w for name, w in self.tensors.items() if not name.startswith("direct/")}
        return operands | {name: operands[name].astype(np.float32) for name in matrices if own}

    @property
    def weights(self) -> Tensors:
        """All int8 weights by path, context tables in full."""
        tables = {t.name: t.rows(np.arange(len(t.waiting_R))) for t in self.tables}
        cache = [CACHE] if self.cache else []
        return {name: self.tensors[name] for name in [*self.operands, *cache]} | tables

    def initial_state(self, batch: int) -> Tensors:
        """The state at a document's start: every leaf has P as its second axis."""
        state = self.architecture.initial_state(self.config["model"], batch)
        own = {}
        if self.tables or self.cache:
            longest = max((1, *self.direct, *self.cache))
            own["context"] = np.full((longest, batch), SEPARATOR, np.int64)
        if self.words:
            own["words"] = np.zeros((self.words[0], batch), np.int32)
        if self.cache:
            rows = 1 << self.config["model"]["cache_bits"]
            own["cache"] = np.zeros((len(self.cache), batch, rows, 3), np.int32)
            own["cache_place"] = np.zeros((2, batch), np.int32)
            own["cache_hash"] = np.zeros((len(self.cache), batch), np.int32)
        for name in own:
            _require(name not in state, f"the architecture has a state named {name}; rename it")
        return state | own

    def step(
        self, state: Tensors, tokens_P: np.ndarray, *, owned: bool = False
    ) -> tuple[Tensors, np.ndarray]:
        """Read one token of each document: (next state, logits q4, int32 [P, V]).

        With `owned`, the leaf `cache` of `state` is changed in place, which is faster: do not use
        the old state any more.
        """
        recurrent = {name: leaf for name, leaf in state.items() if name not in BESIDES}
        recurrent, logits_PV = self.architecture.step(self.operands, recurrent, tokens_P)
        if "context" not in state:
            return recurrent, logits_PV
        context_KP = np.concatenate([tokens_P[None], state["context"][:-1]])
        context_KP = np.where(tokens_P != SEPARATOR, context_KP, SEPARATOR)
        following = recurrent | {"context": context_KP}
        if self.words:
            following["words"] = following_words(state["words"], tokens_P)
        for table, rows_P in zip(self.tables, self.rows(following), strict=True):
            logits_PV = logits_PV + table.rows(rows_P)
        logits_PV = np.minimum(np.maximum(logits_PV, -LOGIT_MAX), LOGIT_MAX)
        if not self.cache:
            return following, logits_PV
        state = state if owned else state | {"cache": state["cache"].copy()}
        cache, weights_FP, slots_FP = cache_step(self.cache, state, context_KP, tokens_P)
        boosts_FP = np.append(self.tensors[CACHE], np.int8(0))[weights_FP]
        logits_PV = logits_PV.copy()
        np.add.at(logits_PV, (np.arange(len(tokens_P)), slots_FP), boosts_FP)
        logits_PV = np.minimum(np.maximum(logits_PV, -LOGIT_MAX), LOGIT_MAX)
        return following | cache, logits_PV

    def rows(self, state: Tensors) -> np.ndarray:
        """The row of each of `tables` that the state selects, int64 [tables, P]."""
        bits = self.config["model"].get("direct_bits", 0)
        rows_KP = context_rows(state["context"], self.direct, bits)
        if not self.words:
            return rows_KP
        return np.concatenate([rows_KP, context_rows(state["words"], self.words, bits)])


def load(
    directory: str | Path, architectures: Mapping[str, type[Architecture]] | None = None
) -> Model:
    """Read an export; raises `ExportError` unless all of it is as it was written.

    `architectures` are classes by name, for networks that this file does not have. Nothing that the
    files say is run. Nothing is allocated before it is known to be there, except the address space
    of sparse context tables, which takes memory where rows are read.
    """
    directory, known = Path(directory), {**ARCHITECTURES, **(architectures or {})}
    with _sound(directory):
        text = _config_text(directory)
        config = json.loads(text)
        sound = type(config["step"]) is int and isinstance(config["data"], dict)
        _require(sound, f"{CONFIG_FILE} has no valid step or data")
        with _opened(directory / WEIGHTS_FILE) as file:
            tensors = _read_tensors(file, config, hashlib.sha256(text).hexdigest(), known)
        tables = tensors.pop(EXP2_TABLE), tensors.pop(LOG2_TABLE)
        model = Model(config, known[config["model"]["architecture"]], tensors, *tables)
        _ = model.tables  # raises if their parts do not fit each other
    return model


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
    damages = AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError
    try:
        yield
    except OSError as error:
        problem = f"{error.strerror}: {error.filename}"
        raise ExportError(f"{directory} is no export that can be read ({problem})") from error
    except damages as error:
        damaged = f"its {CONFIG_FILE} or the header of its {WEIGHTS_FILE} is damaged"
        problem = error if isinstance(error, ExportError) else damaged
        raise ExportError(f"{directory} is no sound export: {problem}; export it again") from error


def _opened(path: Path) -> io.BufferedReader:
    """A file to read; a pipe in its place is not waited for."""
    now = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | now))


def expected_tensors(
    config: dict[str, Any], architectures: Mapping[str, type[Architecture]], found: Any = ()
) -> dict[str, tuple[str, list[int]]]:
    """{name: (safetensors dtype, shape)} of all that the weights file of `config` must hold.

    A context table of which `found` names the first part is sparse; -1 is any length.
    """
    name = config["model"]["architecture"]
    known = ", ".join(architectures)
    _require(name in architectures, f"its architecture is {name!r}, this runtime knows {known}")
    model, V = config["model"], config["vocab_size"]
    direct, words, cache = (model.get(names, []) for names in ("direct", "words", "cache"))
    names = table_names(direct, words)
    sizes = [(model[name], INPUTS_MAX) for name in ("layers", "width", "ffn_multiple")]
    sizes += [(length, DIRECT_LENGTH_MAX) for length in direct] + [(n, WORDS_MAX) for n in words]
    sizes += [(model["direct_bits"], DIRECT_BITS_MAX) for _ in names[:1]]
    sizes += [(length, DIRECT_LENGTH_MAX) for length in cache]
    sizes += [(model["cache_bits"], CACHE_BITS_MAX) for _ in cache[:1]]
    for size, most in [(V, VOCABULARY_MAX), *sizes]:
        sound = type(size) is int and 0 < size <= most
        _require(sound, f"{CONFIG_FILE} has a size that is no positive integer up to {most}")
    shapes = architectures[name].shapes(model, V)
    widest = max(shape[-1] for shape in shapes.values())
    _require(widest <= INPUTS_MAX, f"it has dots over {widest} inputs, at most {INPUTS_MAX} fit")
    for lengths in (direct, words, cache):
        _require(len(set(lengths)) == len(lengths), f"{CONFIG_FILE} names a context table twice")
    of_bytes = not words or config["tokenizer"]["kind"] == "bytes"
    _require(of_bytes, "it has tables of words, which need the tokenizer bytes")
    same = config["tokenizer"]["vocab_size"] == V
    _require(same, "its tokenizer has another vocabulary than its weights")
    expected = {name: ("I8", shape) for name, shape in shapes.items()}
    rows, index = 1 << model["direct_bits"] if names else 0, "U8" if V <= 256 else "U16"
    sparse = ("U8", [-(-rows // 8)]), (index, [-1]), (index, [-1]), ("I8", [-1])
    for table in (f"direct/{name}" for name in names):
        parts = {f"{table}/{part}": of for part, of in zip(PARTS, sparse, strict=True)}
        expected |= parts if f"{table}/rows" in found else {table: ("I8", [rows, V])}
    if cache:
        expected[CACHE] = ("I8", [3 * len(cache) ** 2, 32])
    return {**expected, EXP2_TABLE: ("I32", [255]), LOG2_TABLE: ("I32", [1025])}


def _read_tensors(
    file: io.BufferedReader, config: dict[str, Any], config_sha256: str, architectures: Any
) -> Tensors:
    """Every tensor of a safetensors file, checked against `config` and the digests in its header.

    The format: 8 bytes, the header's length; the header, JSON {name: {"dtype", "shape",
    "data_offsets": [begin, end]}}; the data, little-endian. No length is believed but the file's.
    """
    size = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    _require(start <= size, f"{WEIGHTS_FILE} was cut short")
    _require(start <= TEXT_BYTES, f"the header of {WEIGHTS_FILE} has {start - 8} bytes")
    header = json.loads(file.read(start - 8))
    written = json.loads(header.pop("__metadata__")[METADATA_KEY])
    version, sound = written["format_version"], written["format_version"] in (1, FORMAT_VERSION)
    _require(sound, f"its format version is {version!r}, this runtime reads 1 and 2")
    same = written["config_sha256"] == config_sha256
    _require(same, f"{CONFIG_FILE} is not the one that was written with {WEIGHTS_FILE}")
    expected, tensors = expected_tensors(config, architectures, header.keys()), {}
    same = written["sha256"].keys() == header.keys() == expected.keys()
    _require(same, f"{WEIGHTS_FILE} does not hold the tensors that {CONFIG_FILE} asks for")
    for name, (kind, shape) in expected.items():
        found = header[name]["dtype"], header[name]["shape"]
        begin, end = header[name]["data_offsets"]
        dtype = np.dtype({"I8": "int8", "U8": "uint8", "U16": "<u2", "I32": "<i4"}[kind])
        shape = shape if shape != [-1] else [(end - begin) // dtype.itemsize]
        _require(found == (kind, shape), f"{name} is {found}, must be {(kind, shape)}")
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
            _require(int(tensor.min(initial=0)) > -128, f"{name} holds -128, outside [-127, 127]")
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
    metric: Callable[[Model, np.ndarray, np.ndarray], np.ndarray] = log2_likelihood,
    firsts: Sequence[int] | None = None,
) -> np.ndarray:
    """Exact log2-likelihood of every document, int64 in units of 2^-16 bit, or its sum of `metric`.

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
            state, logits_PV = model.step(state, inputs_P, owned=True)
            counted = begins[lanes[:active]] <= t
            if firsts is not None:
                counted &= t + 1 < lengths_P[:active]
            totals[lanes[:active]] += metric(model, logits_PV, targets_P) * counted
            progress(active)
    return totals


def reader(model: Model, state: Tensors | None = None) -> StateReader:
    """A reader of one document, from `state` or from a fresh one."""

    def step(state: Tensors, token: int) -> tuple[Tensors, np.ndarray]:
        state, logits_PV = model.step(state, np.array([token]))
        return state, logits_PV[0]

    return StateReader(step, model.initial_state(1) if state is None else state)
