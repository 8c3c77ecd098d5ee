"""runtime.c of an export: the model's step and likelihood as traced from JAX, between fixed parts.

The fixed parts are the files of `c/`: arithmetic.c and linear.c stand before the model; sha256.c,
load.c, memory.c, draw.c and main.c behind it. What stands between is generated: sizes, tables, a
struct of the state, and one function for each of what JAX traced. It depends on the configuration
alone, not on the weights, and the same configuration gives the same bytes.

Axes: P streams, of which there is one, V vocabulary.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from int_lm import native, runtime
from int_lm.arithmetic import constants
from int_lm.compile import c, expressions, layout, program, ranges, reading, trace
from int_lm.export import c_constants
from int_lm.limits import SEPARATOR
from int_lm.model import context_tables, document_cache, layers, likelihood, perturb
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import TABLES, Parameters

FILE = "runtime.c"
_PARTS = Path(__file__).parent / "c"


def _names(code: str) -> set[str]:
    """Names in C code: outside of functions, of called functions, and in capitals (constants)."""
    code = re.sub(r"/\*.*?\*/|'(\\.|[^'])'|\"(\\.|[^\"])*\"", "", code, flags=re.DOTALL)
    inside = re.findall(r"\b[A-Z_][A-Z0-9_]*\b|\b\w+(?=\()", code)
    while (outside := re.sub(r"\{[^{}]*\}|\([^()]*\)", "", code)) != code:
        code = outside
    return {*inside, *re.findall(r"\b[A-Za-z_]\w*", code)}


_TAKEN = {"state", "step", "initial", "result", "target", "tensor", "tensors", "roots", "logit"}
_TAKEN |= {"log2_likelihood", "AXES"}  # names that weights and variables do not get
_TAKEN |= {name for part in _PARTS.glob("*.c") for name in _names(part.read_text("utf-8"))}


_HEAD = """\
/* A language model: `{architecture}`, {layers} x {width}, with a vocabulary of {vocab_size}.

   One C99 file without a library, in integers alone. It reads {weights}, which lies beside
   it, and computes the same bits as every other runtime of the model, on any processor.

       cc -O3 -o model runtime.c
       ./model score FILE                           bits of a text
       ./model sample --prompt TEXT --tokens N      text; a seed gives the same one everywhere

   `step` and `log2_likelihood` are made of what JAX traces of the model. Above their loops stand
   the statements of Python that they come from. What the network says of itself:

{equations} */

"""


def source(model: LanguageModel, tokenizer: Mapping[str, Any]) -> str:
    """The text of runtime.c for models of this configuration.

    Args:
      model: sizes and equations.
      tokenizer: the tokenizer's identity; texts of other kinds than bytes are read as ids.

    Raises:
      program.UnsupportedError: the network does something that cannot be compiled.
    """
    settings, network = model.settings, inspect.getmodule(model.architecture.step)
    before_cache = dataclasses.replace(
        model, settings=dataclasses.replace(cast("Any", settings), cache=())
    )
    step, logit = _step(before_cache, network)
    if settings.cache and logit != "int16":
        raise program.UnsupportedError(f"a document cache that adds to logits of {logit}")
    odds = _likelihood(model, logit, step.tables)
    head = _HEAD.format(
        architecture=settings.architecture.rpartition(":")[2].lower(),
        layers=settings.layers,
        width=settings.width,
        vocab_size=model.vocab_size,
        weights=runtime.WEIGHTS_FILE,
        equations=_equations(network),
    )
    generated = [
        f"/* The model {'-' * 85} */",
        "",
        *_sizes(model, tokenizer, logit),
        *c_constants.of_arrays(odds.tables),
        *c_constants.of_roots(),
        *_tensors(model, step.dots),
        *_state(before_cache),
        *_cache(model),
        "/* reads a token: the state before it gives the state after it, and logits of the next */",
        "static INLINE void step(",
        "    linear_function *linear, const struct state *before, struct state *after,",
        "    int32_t token, logit *logits) {",
        *step.lines,
        *([] if step.dots else ["    (void)linear;"]),
        "}",
        "",
        "/* log2 p(target) in units of 2^-16 bit */",
        "static int32_t log2_likelihood(const logit *logits, int32_t target) {",
        "    int32_t result;",
        *odds.lines,
        "    return result;",
        "}",
        "",
    ]
    parts = [(_PARTS / f"{name}.c").read_text("utf-8") for name in ("arithmetic", "linear")]
    parts += ["\n".join([*generated, ""])]
    parts += [
        (_PARTS / f"{name}.c").read_text("utf-8")
        for name in ("sha256", "load", "memory", "draw", "cache", "main")
    ]
    return head + "".join(parts)


def written(model: LanguageModel, tokenizer: Mapping[str, Any]) -> tuple[str, str]:
    """The text of runtime.c and ""; or "" and the operation that cannot be written in C."""
    try:
        return source(model, tokenizer), ""
    except program.UnsupportedError as error:
        return "", str(error)


def _equations(network: ModuleType | None) -> str:
    """The docstring of an architecture's module, as lines of a C comment."""
    said = (network.__doc__ or "").replace("*/", "* /").strip() if network is not None else ""
    lines = [line for line in said.splitlines() if not expressions.is_loose(line)]
    return "\n".join(f"   {line}".rstrip() for line in lines)


def _identifier(path: str) -> str:
    name = re.sub(r"\W", "_", path)
    return f"{name}_" if name in reading.RESERVED | _TAKEN else name


def _place(path: str, struct: Any) -> str:
    """The C name of an array; for an array of one entry, the C expression of that entry."""
    name = "logits" if path == "logits" else _identifier(path)
    return name if math.prod(struct.shape) > 1 else f"{name}[0]"


def _arrays(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Shapes and dtypes of the weights by path and of the state by name; the state as a tree."""
    weights = {
        path: jax.ShapeDtypeStruct(spec.full_shape, jnp.int8)
        for path, spec in model.specs.by_path().items()
    }
    state = jax.eval_shape(lambda: model.initial_state(1))
    found, tree = jax.tree_util.tree_flatten_with_path(state)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="_"): leaf for path, leaf in found}
    return weights, leaves, tree


def _input(key: str, struct: Any, vocab_size: int) -> program.Node:
    """An argument of a traced function with its range: [-127, 127], or [0, V - 1] for ids."""
    dtype = str(struct.dtype)
    low, high = ranges.limits(dtype)
    if key in ("token", "target"):
        low, high = 0, vocab_size - 1
    elif key.startswith("weight ") or key == "logits":
        low = -high
    return program.argument(key, struct.shape, dtype, low, high)


def _step(model: LanguageModel, network: ModuleType | None) -> tuple[c.Written, str]:
    """The body of the C function `step`, and the dtype of its logits."""
    weights, state, tree = _arrays(model)
    structs = {f"weight {path}": struct for path, struct in weights.items()}
    structs |= {f"state {name}": struct for name, struct in state.items()}
    structs |= {"token": jax.ShapeDtypeStruct((1,), jnp.int32)}

    def flat(*arguments: Any) -> list[Any]:
        count = len(weights)
        values = Parameters.of_paths(dict(zip(weights, arguments[:count], strict=True)))
        before = jax.tree.unflatten(tree, arguments[count:-1])
        after, logits_PV, _ = model.step(perturb.unperturbed(values), before, arguments[-1])
        return [*jax.tree.leaves(after), logits_PV]

    sources = [network, layers, context_tables, perturb]
    outputs = _traced(flat, structs, model.vocab_size, sources)
    names = {f"weight {path}": _place(path, struct) for path, struct in weights.items()}
    names |= {f"state {name}": f"before->{_place(name, s)}" for name, s in state.items()}
    places = [f"after->{_place(name, struct)}" for name, struct in state.items()]
    places.append("logits" if outputs[-1].shape else "logits[0]")
    written = c.write(
        list(zip(outputs, places, strict=True)),
        names | {"token": "token"},
        _TAKEN | set(map(_identifier, weights)),
    )
    return written, outputs[-1].dtype


def _likelihood(model: LanguageModel, dtype: str, tables: Mapping[str, np.ndarray]) -> c.Written:
    """The body of the C function `log2_likelihood`."""
    structs = {
        "logits": jax.ShapeDtypeStruct((1, model.vocab_size), np.dtype(dtype)),
        "target": jax.ShapeDtypeStruct((1,), jnp.int32),
    }

    def flat(logits_PV: Any, target_P: Any) -> list[Any]:
        return [likelihood.log2_likelihood(logits_PV, target_P)]

    outputs = _traced(flat, structs, model.vocab_size, [likelihood])
    names = {"logits": _place("logits", structs["logits"]), "target": "target"}
    reserved = _TAKEN | set(map(_identifier, model.specs.by_path()))
    return c.write([(outputs[0], "result")], names, reserved, tables)


def _traced(
    function: Any, structs: Mapping[str, Any], V: int, modules: Sequence[ModuleType | None]
) -> list[program.Node]:
    inputs = [_input(key, struct, V) for key, struct in structs.items()]
    shapes = [struct.shape for struct in structs.values()]
    sources = {inspect.getsourcefile(module) or "" for module in modules if module is not None}
    with native.without_kernels():
        return trace.trace(function, inputs, shapes, sources)


def _sizes(model: LanguageModel, tokenizer: Mapping[str, Any], logit: str) -> Iterator[str]:
    yield f"#define BYTES {int(tokenizer['kind'] == 'bytes')} /* a token is a byte */"
    yield f'#define MODEL_FILE "{runtime.WEIGHTS_FILE}"'
    yield (
        f"enum {{ VOCABULARY = {model.vocab_size}, SEPARATOR = {SEPARATOR}, "
        f"FORMAT_VERSION = {runtime.FORMAT_VERSION} }};"
    )
    yield f"typedef {layout.TYPES[logit]} logit; /* in units of 1/16 bit */"
    yield ""


def _tensors(model: LanguageModel, dots: set[str]) -> Iterator[str]:
    """C declarations of the weights: a pointer to each, and its entry in the weights file."""
    weights, _, _ = _arrays(model)
    rows, room, of_tables = [], [], ["64"]
    index = "U8" if model.vocab_size <= 256 else "U16"
    for path, struct in weights.items():
        name, shape, size = _identifier(path), struct.shape, math.prod(struct.shape)
        tiled, bytes_there = f"weight {path}" in dots, str(size)
        if tiled:
            bytes_there = f"{math.prod(shape[:-2])} * MATRIX({shape[-2]}, {shape[-1]})"
        room.append(f"({bytes_there} + 63) / 64 * 64")
        axes = ", ".join(str(size) for size in shape)
        yield f"static const int8_t *{name}; /* [{axes}] */"
        there = f"{len(shape)}, {{{axes}}}, {size}, {room[-1]}, {int(tiled)}, &{name}"
        rows.append(f'"{path}", "I8", 0, {there}')
        if path.startswith(f"{TABLES}/") and path != runtime.CACHE:
            of_tables.append(room[-1])
            for number, (part, dtype) in enumerate(
                zip(runtime.PARTS, ("U8", index, index, "I8"), strict=True), start=1
            ):
                rows.append(f'"{path}/{part}", "{dtype}", {number}, 1, {{0}}, 0, 0, 0, NULL')
    for path, array in (
        (runtime.EXP2_TABLE, constants.exp2(0)),
        (runtime.LOG2_TABLE, constants.log2_mantissa()),
    ):
        rows.append(f'"{path}", "I32", 0, 1, {{{array.size}}}, {array.size * 4}, 0, 0, NULL')
    rows = [f"    {{{row}}}," for row in rows]
    header = 1024 + sum(2 * len(row) + 200 for row in rows)
    widest = max(struct.shape[-1] for struct in weights.values())
    yield ""
    yield f"enum {{ TENSORS = {len(rows)}, AXES = {max(len(s.shape) for s in weights.values())} }};"
    yield f"#define HEADER_BYTES {header} /* at most */"
    yield f"#define COLUMNS {widest} /* of the widest matrix */"
    yield f"#define TABLE_BYTES ({' + '.join(of_tables)}) /* of context tables */"
    yield "#define MEMORY_BYTES ( \\"
    yield from (f"    {part} + \\" for part in room)
    yield "    8192)"
    yield ""
    yield "static const struct tensor {"
    yield "    const char *name, *dtype;"
    yield "    int part, axes; /* 1 to 4: a part of the table before it, of any length */"
    yield "    uint32_t shape[AXES];"
    yield "    uint64_t bytes, room; /* in the file; in memory */"
    yield "    int tiled; /* only `linear` reads it */"
    yield "    const int8_t **place; /* NULL: a table that this program has */"
    yield "} tensors[TENSORS] = {"
    yield from rows
    yield "};"
    yield ""


def _cache(model: LanguageModel) -> Iterator[str]:
    """C declarations of the sizes of the document cache."""
    lengths = document_cache.lengths(model.settings)
    yield f"#define CACHE_LENGTHS {len(lengths)} /* of contexts of the document cache */"
    if lengths:
        yield f"enum {{ CACHE_BITS = {model.settings.cache_bits}, CACHE_LONGEST = {lengths[0]} }};"
        listed = ", ".join(map(str, lengths))
        yield f"static const uint32_t cache_lengths[CACHE_LENGTHS] = {{{listed}}};"
    yield ""


def _state(model: LanguageModel) -> Iterator[str]:
    """C declarations of the state of a text, and of the state at its start."""
    _, structs, _ = _arrays(model)
    values = dict(zip(structs, jax.tree.leaves(model.initial_state(1)), strict=True))
    yield "struct state {"
    for name, struct in structs.items():
        shape = ", ".join(map(str, struct.shape))
        size = math.prod(struct.shape)
        yield f"    {layout.TYPES[str(struct.dtype)]} {_identifier(name)}[{size}]; /* [{shape}] */"
    yield "};"
    yield ""
    yield "static void initial(struct state *state) {"
    for path, value in values.items():
        name, flat = _identifier(path), np.asarray(value).reshape(-1)
        if (flat == 0).all():
            yield f"    memset(state->{name}, 0, sizeof state->{name});"
            continue
        yield f"    static const {layout.TYPES[str(flat.dtype)]} {name}[{flat.size}] = {{"
        yield from (
            f"    {line}" for line in c_constants.lines_of([str(int(entry)) for entry in flat])
        )
        yield "    };"
        yield f"    memcpy(state->{name}, {name}, sizeof {name});"
    yield "}"
    yield ""
