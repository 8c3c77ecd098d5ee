"""runtime.c of an export: the model's step and likelihood as traced from JAX, between fixed parts.

The fixed parts are the files of `c/`: those of `_BEFORE` stand before the model, those of `_BEHIND`
behind it. What stands between is generated: sizes, tables, a
struct of the state, and one function for each of what JAX traced. It depends on the configuration
alone, not on the weights, and the same configuration gives the same bytes.

Axes: P streams, of which there is one, V vocabulary.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from int_lm import native, runtime
from int_lm.compile import c, expressions, program, ranges, trace
from int_lm.export import c_declarations as declarations
from int_lm.model import context_tables, layers, likelihood, perturb
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters

FILE = "runtime.c"
_BEFORE = ("arithmetic", "linear")  # the model
_ARCHIVES = {"coder", "learn", "blocks", "archive"}  # only where tokens are bytes
_BEHIND = (
    *("sha256", "hash", "load", "memory", "draw", "cache", "coder", "learn", "threads", "ways"),
    *("score", "sample", "blocks", "archive", "main"),
)
_PARTS = Path(__file__).parent / "c"


def _names_in(code: str) -> set[str]:
    """Names in C code: outside of functions, of called functions, and in capitals (constants)."""
    code = re.sub(r"/\*.*?\*/|'(\\.|[^'])'|\"(\\.|[^\"])*\"", "", code, flags=re.DOTALL)
    inside = re.findall(r"\b[A-Z_][A-Z0-9_]*\b|\b\w+(?=\()", code)
    while (outside := re.sub(r"\{[^{}]*\}|\([^()]*\)", "", code)) != code:
        code = outside
    return {*inside, *re.findall(r"\b[A-Za-z_]\w*", code)}


_TAKEN = {"state", "step", "initial", "result", "target", "tensor", "tensors", "roots", "logit"}
_TAKEN |= {"log2_likelihood", "AXES"}  # names that weights and variables do not get
_TAKEN |= {name for part in _PARTS.glob("*.c") for name in _names_in(part.read_text("utf-8"))}


_HEAD = """\
/* A language model: `{architecture}`, {layers} x {width}, with a vocabulary of {vocab_size}.

   One C99 file without a library, in integers alone. It reads {weights}, which lies beside
   it, and computes the same bits as every other runtime of the model, on any processor.

       cc -O3 -o model runtime.c
       ./model score FILE                           bits of a text
       ./model sample --prompt TEXT --tokens N      text; a seed gives the same one everywhere
       ./model compress IN OUT                      and decompress; archives open everywhere

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
    names, traced = _names(model), _without_cache(model)
    settings, network = model.settings, inspect.getmodule(model.architecture.step)
    step, logit = _step(traced, names, network, wide=bool(settings.cache))
    odds = _likelihood(model, names, logit, step.tables)
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
        *declarations.sizes(model, tokenizer, logit),
        *declarations.tables(odds.tables),
        *declarations.roots(),
        *declarations.tensors(model, names.weights, step.dots),
        *declarations.state(traced, names.state),
        *declarations.contexts(traced, names.weights, names.state),
        *declarations.cache(model, names.weights),
        "/* reads a token: the state before it gives the state after it, and logits of the next */",
        "static INLINE void step(",
        "    linear_function *linear, const struct state *before, struct state *after,",
        "    int32_t token, logit *logits) {",
        *step.lines,
        *([] if step.dots else ["    (void)linear;"]),
        "}",
        "",
        "/* log2 p(target) in units of 2^-16 bit */",
        "static INLINE int32_t log2_likelihood(const logit *logits, int32_t target) {",
        "    int32_t result;",
        *odds.lines,
        "    return result;",
        "}",
        "",
    ]
    behind = _BEHIND if tokenizer["kind"] == "bytes" else (n for n in _BEHIND if n not in _ARCHIVES)
    parts = [*_texts(_BEFORE), "\n".join([*generated, ""]), *_texts(behind)]
    return head + "".join(parts)


def written(model: LanguageModel, tokenizer: Mapping[str, Any]) -> tuple[str, str]:
    """The text of runtime.c and ""; or "" and the operation that cannot be written in C."""
    try:
        return source(model, tokenizer), ""
    except program.UnsupportedError as error:
        return "", str(error)


def _without_cache(model: LanguageModel) -> LanguageModel:
    """The model before the document cache adds to its logits: that is one of the fixed parts."""
    settings = dataclasses.replace(cast("Any", model.settings), cache=())
    return dataclasses.replace(model, settings=settings)


def _equations(network: ModuleType | None) -> str:
    """The docstring of an architecture's module, as lines of a C comment."""
    said = (network.__doc__ or "").replace("*/", "* /").strip() if network is not None else ""
    lines = [line for line in said.splitlines() if not expressions.is_loose(line)]
    return "\n".join(f"   {line}".rstrip() for line in lines)


def _texts(names: Iterable[str]) -> list[str]:
    return [(_PARTS / f"{name}.c").read_text("utf-8") for name in names]


class Names(NamedTuple):
    """Identifiers in C by path."""

    weights: dict[str, str]
    state: dict[str, str]


def _names(model: LanguageModel) -> Names:
    weights, state, _ = declarations.arrays(model)
    return Names(declarations.identifiers(weights, _TAKEN), declarations.identifiers(state, _TAKEN))


def _place(name: str, struct: Any) -> str:
    """The C expression of an array; for an array of one entry, of that entry."""
    return name if math.prod(struct.shape) > 1 else f"{name}[0]"


def _input(key: str, struct: Any, vocab_size: int) -> program.Node:
    """An argument of a traced function with its range: [-127, 127], or [0, V - 1] for ids."""
    dtype = str(struct.dtype)
    low, high = ranges.limits(dtype)
    if key in ("token", "target"):
        low, high = 0, vocab_size - 1
    elif key.startswith("weight ") or key == "logits":
        low = -high
    return program.argument(key, struct.shape, dtype, low, high)


def _step(
    model: LanguageModel, own: Names, network: ModuleType | None, *, wide: bool
) -> tuple[c.Written, str]:
    """The body of the C function `step`, and the dtype of its logits: int16 if they are `wide`."""
    weights, state, tree = declarations.arrays(model)
    structs = {f"weight {path}": struct for path, struct in weights.items()}
    structs |= {f"state {name}": struct for name, struct in state.items()}
    structs |= {"token": jax.ShapeDtypeStruct((1,), jnp.int32)}

    def flat(*arguments: Any) -> list[Any]:
        count = len(weights)
        values = Parameters.of_paths(dict(zip(weights, arguments[:count], strict=True)))
        before = jax.tree.unflatten(tree, arguments[count:-1])
        after, logits_PV, _ = model.step(perturb.unperturbed(values), before, arguments[-1])
        return [*jax.tree.leaves(after), logits_PV.astype(jnp.int16) if wide else logits_PV]

    sources = [network, layers, context_tables, perturb]
    outputs = _traced(flat, structs, model.vocab_size, sources)
    names = {
        f"weight {path}": _place(own.weights[path], struct) for path, struct in weights.items()
    }
    names |= {f"state {n}": f"before->{_place(own.state[n], s)}" for n, s in state.items()}
    places = [f"after->{_place(own.state[name], struct)}" for name, struct in state.items()]
    places.append("logits" if outputs[-1].shape else "logits[0]")
    written = c.write(
        list(zip(outputs, places, strict=True)),
        names | {"token": "token"},
        _TAKEN | set(own.weights.values()),
    )
    return written, outputs[-1].dtype


def _likelihood(
    model: LanguageModel, own: Names, dtype: str, tables: Mapping[str, np.ndarray]
) -> c.Written:
    """The body of the C function `log2_likelihood`."""
    structs = {
        "logits": jax.ShapeDtypeStruct((1, model.vocab_size), np.dtype(dtype)),
        "target": jax.ShapeDtypeStruct((1,), jnp.int32),
    }

    def flat(logits_PV: Any, target_P: Any) -> list[Any]:
        return [likelihood.log2_likelihood(logits_PV, target_P)]

    outputs = _traced(flat, structs, model.vocab_size, [likelihood])
    known = {**tables, **declarations.likelihood_tables(model.vocab_size)}
    names = {"logits": _place("logits", structs["logits"]), "target": "target"}
    reserved = _TAKEN | set(own.weights.values())
    return c.write([(outputs[0], "result")], names, reserved, known)


def _traced(
    function: Any, structs: Mapping[str, Any], V: int, modules: Sequence[ModuleType | None]
) -> list[program.Node]:
    inputs = [_input(key, struct, V) for key, struct in structs.items()]
    shapes = [struct.shape for struct in structs.values()]
    sources = {inspect.getsourcefile(module) or "" for module in modules if module is not None}
    with native.without_kernels():
        return trace.trace(function, inputs, shapes, sources)
