"""Declarations of runtime.c: sizes, tables, the weights with their names in C, the state.

Axes: V vocabulary.
"""

import decimal
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from int_lm import runtime
from int_lm.arithmetic import constants
from int_lm.compile import expressions, layout, reading
from int_lm.limits import SEPARATOR
from int_lm.model import document_cache, hashing, likelihood
from int_lm.model.context_tables import CONTEXT, WORDS
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import TABLES

ROOTS = 96  # roots of 1/2, of 128 fractional bits, that powers of it are products of
ROW_BYTES = 12  # of the document cache
POWERS, LOGARITHMS = "powers", "logarithms"  # names of the likelihood's tables


def identifiers(paths: Iterable[str], taken: Set[str]) -> dict[str, str]:
    """A C identifier for each path, each another one, and none of `taken` or of C itself."""
    found: dict[str, str] = {}
    used = taken | reading.RESERVED
    for path in paths:
        name = re.sub(r"\W", "_", path, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"w{name}"
        stem, number = name, 1
        while name in used or name in found.values():
            number += 1
            name = f"{stem}_{number}"
        found[path] = name
    return found


def arrays(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Shapes and dtypes of the weights by path and of the state by name; the state as a tree."""
    weights = {
        path: jax.ShapeDtypeStruct(spec.full_shape, jnp.int8)
        for path, spec in model.specs.by_path().items()
    }
    state = jax.eval_shape(lambda: model.initial_state(1))
    found, tree = jax.tree_util.tree_flatten_with_path(state)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
    return weights, leaves, tree


def sizes(model: LanguageModel, tokenizer: Mapping[str, Any], logit: str) -> Iterator[str]:
    """The vocabulary and the type of logits."""
    yield f"#define BYTES {int(tokenizer['kind'] == 'bytes')} /* a token is a byte */"
    if tokenizer["kind"] != "bytes":
        yield "#define ARCHIVES 0 /* they need the tokenizer */"
        yield "#define LEARNING 0"
    yield f'#define MODEL_FILE "{runtime.WEIGHTS_FILE}"'
    yield (
        f"enum {{ VOCABULARY = {model.vocab_size}, SEPARATOR = {SEPARATOR}, "
        f"FORMAT_VERSION = {runtime.FORMAT_VERSION} }};"
    )
    yield f"typedef {layout.TYPES[logit]} logit; /* in units of 1/16 bit */"
    yield ""


def lines(values: Sequence[str]) -> Iterator[str]:
    """Lines with the values of an array, as many in a line as fit."""
    line = "   "
    for value in values:
        if len(line) + len(value) + 2 > reading.WIDTH:
            yield line
            line = "   "
        line += f" {value},"
    yield line


def likelihood_tables(V: int) -> dict[str, np.ndarray]:
    """The tables of the likelihood, int32, by their names in C."""
    bits = likelihood.NARROW_BITS if V <= likelihood.NARROW_VOCABULARY else likelihood.WIDE_BITS
    return {POWERS: constants.exp2(bits), LOGARITHMS: constants.log2_mantissa()}


def tables(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The tables that the traced functions read."""
    for name, array in arrays.items():
        dtype = str(array.dtype)
        yield f"static const {layout.TYPES[dtype]} {name}[{array.size}] = {{"
        yield from lines([expressions.literal(int(value), dtype) for value in array.reshape(-1)])
        yield "};"
        yield ""


def roots() -> Iterator[str]:
    """2^(-2^-i) for i = 1..ROOTS in units of 2^-128: words of 32 bits, lowest first."""
    context = decimal.Context(prec=80)
    yield f"enum {{ ROOTS = {ROOTS} }};"
    yield ""
    yield "/* 2^(-2^-(i + 1)) in units of 2^-128, lowest words first: `sampling_weight` */"
    yield f"static const uint32_t roots[{ROOTS}][4] = {{"
    for i in range(1, ROOTS + 1):
        exponent = -context.divide(decimal.Decimal(1), decimal.Decimal(2**i))
        scaled = context.multiply(context.power(2, exponent), decimal.Decimal(2**128))
        number = int(scaled.to_integral_value(decimal.ROUND_HALF_EVEN))
        words = [f"0x{number >> 32 * k & 0xFFFFFFFF:08X}" for k in range(4)]
        yield f"    {{{', '.join(words)}}},"
    yield "};"
    yield ""


def tensors(model: LanguageModel, names: Mapping[str, str], dots: Set[str]) -> Iterator[str]:
    """C declarations of the weights: a pointer to each, and its entry in the weights file.

    Args:
      model: sizes.
      names: in C, by path.
      dots: inputs of the traced step that only `linear` reads.
    """
    weights, _, _ = arrays(model)
    rows, room, of_tables = [], [], ["64"]
    index = "U8" if model.vocab_size <= 256 else "U16"
    for path, struct in weights.items():
        name, shape, size = names[path], struct.shape, math.prod(struct.shape)
        tiled, bytes_there = f"weight {path}" in dots, str(size)
        if tiled:
            bytes_there = f"{math.prod(shape[:-2])} * MATRIX({shape[-2]}, {shape[-1]})"
        room.append(f"({bytes_there} + 63) / 64 * 64")
        axes = ", ".join(str(size) for size in shape)
        yield f"static const int8_t *{name}; /* [{axes}] */"
        there = f"{len(shape)}, {{{axes}}}, {size}, {room[-1]}, {int(tiled)}, &{name}"
        keys = ", ".join(f"0x{key:08X}" for key in hashing.tensor_keys(path, shape))
        rows.append(f'"{path}", "I8", 0, {there}, {{{keys}}}')
        if path.startswith(f"{TABLES}/") and path != runtime.CACHE:
            of_tables.append(room[-1])
            for number, (part, dtype) in enumerate(
                zip(runtime.PARTS, ("U8", index, index, "I8"), strict=True), start=1
            ):
                rows.append(f'"{path}/{part}", "{dtype}", {number}, 1, {{0}}, 0, 0, 0, NULL, {{0}}')
    for path, array in (
        (runtime.EXP2_TABLE, constants.exp2(0)),
        (runtime.LOG2_TABLE, constants.log2_mantissa()),
    ):
        rows.append(f'"{path}", "I32", 0, 1, {{{array.size}}}, {array.size * 4}, 0, 0, NULL, {{0}}')
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
    yield "    uint32_t keys[3]; /* of its part of the hash */"
    yield "} tensors[TENSORS] = {"
    yield from rows
    yield "};"
    yield ""


def contexts(
    model: LanguageModel, weights: Mapping[str, str], states: Mapping[str, str]
) -> Iterator[str]:
    """C declarations of what context tables there are; the arguments are names in C by path."""
    lengths, numbers = model.settings.direct, model.settings.words
    names = [weights[f"{TABLES}/{name}"] for name in model.specs.tables]
    yield f"#define DIRECT {len(names)} /* context tables */"
    if not names:
        yield ""
        return
    bits, longest = model.settings.direct_bits, max((1, *lengths))
    yield f"enum {{ CONTEXT = {longest}, DIRECT_BITS = {bits}, DIRECT_ROWS = 1 << {bits} }};"
    yield f"enum {{ OF_TOKENS = {len(lengths)} }}; /* tables: the others are of words */"
    of = ", ".join(map(str, [*lengths, *numbers]))
    yield f"UNUSED static const int32_t direct_lengths[DIRECT] = {{{of}}};"
    yield f"#define OVER_TABLES(of) ({' + '.join(f'of({k})' for k in range(len(names)))})"
    yield "UNUSED static const int8_t **const direct_tables[DIRECT] = {"
    yield from lines([f"&{name}" for name in names])
    yield "};"
    yield ""
    yield "/* the last tokens, the newest first */"
    yield "UNUSED static const int32_t *recent_tokens(const struct state *state) {"
    yield f"    return state->{states[CONTEXT]};"
    yield "}"
    yield ""
    yield "/* hashes of the last words, the newest first */"
    yield "UNUSED static const int32_t *recent_words(const struct state *state) {"
    yield f"    return state->{states[WORDS if numbers else CONTEXT]};"
    yield "}"
    yield ""


def cache(model: LanguageModel, weights: Mapping[str, str]) -> Iterator[str]:
    """C declarations of the sizes of the document cache, and of its weights, names in C by path."""
    lengths, bits = document_cache.lengths(model.settings), model.settings.cache_bits
    yield f"#define CACHE {len(lengths)} /* lengths of contexts of the document cache */"
    yield f"#define CACHE_BYTES {len(lengths) * (ROW_BYTES << bits)}LL /* of its rows */"
    if lengths:
        yield f"enum {{ CACHE_BITS = {bits}, CACHE_CONTEXT = {lengths[0]} }};"
        of = ", ".join(map(str, lengths))
        yield f"static const uint32_t cache_lengths[CACHE] = {{{of}}};"
        yield f"static const int8_t **const cache_weights = &{weights[runtime.CACHE]};"
    yield ""


def state(model: LanguageModel, names: Mapping[str, str]) -> Iterator[str]:
    """C declarations of the state of a text, and of the state at its start."""
    _, structs, _ = arrays(model)
    values = dict(zip(structs, jax.tree.leaves(model.initial_state(1)), strict=True))
    yield "struct state {"
    for name, struct in structs.items():
        shape = ", ".join(map(str, struct.shape))
        size = math.prod(struct.shape)
        yield f"    {layout.TYPES[str(struct.dtype)]} {names[name]}[{size}]; /* [{shape}] */"
    yield "};"
    yield ""
    yield "static void initial(struct state *state) {"
    for path, value in values.items():
        name, flat = names[path], np.asarray(value).reshape(-1)
        if (flat == 0).all():
            yield f"    memset(state->{name}, 0, sizeof state->{name});"
            continue
        yield f"    static const {layout.TYPES[str(flat.dtype)]} {name}[{flat.size}] = {{"
        yield from (f"    {line}" for line in lines([str(int(entry)) for entry in flat]))
        yield "    };"
        yield f"    memcpy(state->{name}, {name}, sizeof {name});"
    yield "}"
    yield ""
