"""Export: writes a run's int8 weights as a directory that the NumPy runtime loads, without JAX.

model.safetensors    int8 weights by path, context tables without zeros (`sparse`), and the int32
                     tables of the likelihood
config.json          model, tokenizer, step, hash of the weights, and digest of the text
tokenizer/           the run's tokenizer
runtime.py           loads the model, scores text and samples, with NumPy alone
runtime.c            the same in C99 without any library, if the network can be written in C
architecture.py      the network in NumPy, if its architecture is not one of int_lm's own
README.md            the model card
files.sha256         a digest of every file above (`sha256sum -c files.sha256`)

The same run gives the same bytes. JAX is imported only when a model is exported, so that
`python -m int_lm.export --help`, which imports this file, answers at once.
"""

import ast
import hashlib
import inspect
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from int_lm import config, contexts, programs, runtime, sampling
from int_lm.arithmetic import constants
from int_lm.errors import UserError
from int_lm.export import card, metadata, sparse
from int_lm.export.directory import (
    ARCHITECTURE_FILE,
    C_FILE,
    CARD_FILE,
    RUNTIME_FILE,
    TOKENIZER_FOLDER,
    check_free,
    named_when_complete,
)
from int_lm.files import digest, names, untrusted
from int_lm.limits import SEPARATOR

if TYPE_CHECKING:
    from int_lm.run import Run

_OWN_IMPORT = re.compile(r"^from (int_lm\.\w+) import (?:\([^)]*\)|.*)\n", re.MULTILINE)
_STANDING_ALONE = {"numpy", *sys.stdlib_module_names}  # modules that an export may import
QUANTIZATION = {  # docs/arithmetic.md has the bounds
    "weights": "int8",
    "activations": "int8",
    "accumulators": "int32",
    "unit_of_weights": "1/16",
    "unit_of_states": "1/127",
}
CHECKED_TOKENS, CHECKED_LANES = 32, 4  # read by both forms of a plug-in's network, to compare them


def numpy_forms(architecture: str) -> dict[str, type[runtime.Architecture]]:
    """The NumPy class of a plug-in's architecture by name; empty for those that `runtime` has.

    Raises:
      UserError: the architecture or its NumPy class is not found.
    """
    if architecture in runtime.ARCHITECTURES:
        return {}
    from int_lm import plugins
    from int_lm.model import architecture as architectures

    target = architectures.get(architecture).runtime
    return {architecture: plugins.attribute(target, f"the NumPy form of {architecture}")}


def runtime_text() -> str:
    """The text of an export's runtime.py: `int_lm.runtime`, and what it imports of int_lm inserted.

    A module's text stands where it is imported first.
    """
    paths = {module.__name__: inspect.getfile(module) for module in (runtime, contexts, sampling)}
    inserted: set[str] = set()

    def text_of(name: str) -> str:
        if name in inserted:
            return ""
        inserted.add(name)
        text = Path(paths[name]).read_text(encoding="utf-8")
        return _OWN_IMPORT.sub(lambda found: text_of(found[1]), text)

    return text_of(runtime.__name__)


def _check_imports(file: Path) -> None:
    """Refuse (`UserError`) a network in NumPy whose file imports what an export does not have."""
    foreign = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        foreign |= {name for name in names if name.split(".")[0] not in _STANDING_ALONE}
    if foreign:
        raise UserError(
            f"cannot export: {file} imports {', '.join(sorted(foreign))}; an export holds a copy "
            "of it, which may import NumPy and the standard library only"
        )


def _check_logits(run: "Run", exported: runtime.Model) -> None:
    """Refuse (`UserError`) a network in NumPy whose logits are not those of the one in JAX."""
    import jax
    import jax.numpy as jnp

    from int_lm.model import perturb

    model, generator = run.recipe.model, np.random.default_rng(0)
    tokens_TP = generator.integers(0, model.vocab_size, (CHECKED_TOKENS, CHECKED_LANES))
    tokens_TP[0] = tokens_TP[CHECKED_TOKENS // 2, ::2] = SEPARATOR
    step, weights = jax.jit(model.step), perturb.unperturbed(run.weights)
    state, own = model.initial_state(CHECKED_LANES), exported.initial_state(CHECKED_LANES)
    for tokens_P in tokens_TP:
        state, logits_PV, _ = step(weights, state, jnp.asarray(tokens_P, jnp.int32))
        own, own_PV = exported.step(own, tokens_P)
        if not np.array_equal(logits_PV, own_PV):
            name, form = run.config.model.architecture, exported.architecture
            raise UserError(
                f"cannot export: {form.__name__} in {inspect.getfile(form)} computes other logits "
                f"than the architecture {name}; make the two agree"
            )


def load(directory: str | Path) -> runtime.Model:
    """Read an export of any architecture. JAX is not imported for architectures of int_lm.

    Raises:
      UserError: the directory is not an export or is damaged, or its architecture is code that is
        not trusted (`plugins`).
    """
    try:
        return runtime.load(directory, numpy_forms(runtime.architecture_of(directory)))
    except runtime.ExportError as error:
        raise UserError(str(error)) from error


def export_config(run: "Run") -> dict[str, Any]:
    """The content of config.json."""
    from int_lm.model import hashing

    settings = config.to_dict(run.config)
    return {
        "format_version": runtime.FORMAT_VERSION,
        "model_type": "int_lm",  # what libraries of the hub look for
        "library_name": "int_lm",
        "quantization": dict(QUANTIZATION),
        "model": settings["model"],
        "vocab_size": run.recipe.model.vocab_size,
        "tokenizer": run.tokenizer,
        "step": run.step,
        "weights_hash": hashing.weights_hash(run.weights),
        "data": settings["data"],
        "text_sha256": run.text_sha256,
    }


def tensors_of(run: "Run") -> dict[str, np.ndarray]:
    """The tensors of model.safetensors by name, C-contiguous: safetensors writes others wrongly."""
    from int_lm.model import likelihood

    narrow = run.recipe.model.vocab_size <= likelihood.NARROW_VOCABULARY
    tensors = {
        **run.weights.by_path(),
        runtime.EXP2_TABLE: constants.exp2(
            likelihood.NARROW_BITS if narrow else likelihood.WIDE_BITS
        ),
        runtime.LOG2_TABLE: constants.log2_mantissa(),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    direct = [name for name in tensors if name.startswith("direct/") and name != runtime.CACHE]
    return sparse.stored(tensors, direct)


def weights_file(tensors: Mapping[str, np.ndarray], config_text: bytes) -> bytes:
    """The bytes of model.safetensors: the same for the same tensors and configuration.

    All metadata are in one entry, because safetensors writes several entries in random order.
    """
    from safetensors.numpy import save

    metadata = {
        "format_version": runtime.FORMAT_VERSION,
        "config_sha256": hashlib.sha256(config_text).hexdigest(),
        "sha256": {
            name: hashlib.sha256(
                tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
            ).hexdigest()
            for name, tensor in tensors.items()
        },
    }
    return save(dict(tensors), {runtime.METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def export_model(
    run: "Run",
    out: str | Path,
    *,
    tokenizer_directory: Path,
    evaluation: Mapping[str, Any] | None = None,
    pruned: Mapping[str, Any] | None = None,
    license: str | None = None,
    languages: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write an export under a temporary name, verify it, and rename it to `out`.

    Args:
      out: the directory to make. An existing directory is replaced if it is empty, or if it is an
        export and `overwrite` is True.
      tokenizer_directory: the directory of the run's tokenizer, which is copied.
      evaluation: content of the run's evaluation.json. The card shows it only if it is of these
        weights.
      pruned: what was left out of `run.weights`, for config.json and the card (`export.__main__`).
      license: the identifier of a licence, for the card's metadata, as `metadata.checked_license`
        returns it; None for no entry.
      languages: codes of the languages of the text, likewise.

    Returns:
      The directory of the export.

    Raises:
      UserError: `out` exists and may not be replaced, the tokenizer is not the run's, the runtime
        does not support it, or the file system refused. Or a plug-in's network in NumPy imports
        too much or computes other logits. Nothing is written then.
    """
    from int_lm.export import c_runtime

    out = Path(out)
    check_free(out, overwrite)
    _check_tokenizer(run, tokenizer_directory)
    settings, tensors = export_config(run), tensors_of(run)
    if pruned:
        settings["pruned"] = dict(pruned)
    architectures = numpy_forms(run.config.model.architecture)
    for network in architectures.values():
        _check_imports(Path(inspect.getfile(network)))
    text = (json.dumps(settings, indent=2) + "\n").encode()
    in_c, lacking = c_runtime.written(run.recipe.model, run.tokenizer)
    try:
        runtime.expected_tensors(settings, {**runtime.ARCHITECTURES, **architectures}, tensors)
        with named_when_complete(out.resolve()) as partial:
            (partial / runtime.WEIGHTS_FILE).write_bytes(weights_file(tensors, text))
            (partial / runtime.CONFIG_FILE).write_bytes(text)
            (partial / RUNTIME_FILE).write_text(runtime_text(), encoding="utf-8", newline="\n")
            if in_c:
                (partial / C_FILE).write_text(in_c, encoding="utf-8", newline="\n")
            for network in architectures.values():
                shutil.copyfile(inspect.getfile(network), partial / ARCHITECTURE_FILE)
            folder = Path(shutil.copytree(tokenizer_directory, partial / TOKENIZER_FOLDER))
            names.tokenizer_file(folder).rename(folder / names.TOKENIZER)
            size = (partial / runtime.WEIGHTS_FILE).stat().st_size
            front = metadata.front(run, settings, evaluation, license, languages)
            model_card = card.model_card(
                run, settings, size, evaluation, architectures, lacking, front=front
            )
            (partial / CARD_FILE).write_text(model_card, encoding="utf-8", newline="\n")
            digest.seal(partial)
            exported = runtime.load(partial, architectures)
            if architectures:  # only for plug-ins: tests compare the networks of int_lm
                _check_logits(run, exported)
    except runtime.ExportError as error:
        raise UserError(f"cannot export: {error}") from error
    except OSError as error:
        raise UserError(
            f"cannot write the export {out}: {error.strerror or error}; "
            "free some space or choose another --out"
        ) from error
    return out


def export_run(
    run: "Run",
    root: str | Path,
    out: str | Path,
    *,
    pruned: Mapping[str, Any] | None = None,
    license: str | None = None,
    languages: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Export a run's model with the tokenizer and the evaluation in its directory.

    Args:
      run: opened from the directory `root`.
      root: the run directory. The other arguments and the result are those of `export_model`.

    Raises:
      UserError: as `export_model`; or evaluation.json is damaged.
    """
    from int_lm.run import Paths

    paths = Paths(Path(root))
    evaluation = None
    if paths.evaluation.exists():
        try:
            evaluation = untrusted.read_json(paths.evaluation, untrusted.METADATA_BYTES)
            card.check_evaluation(evaluation)
        except untrusted.MalformedError as error:
            raise UserError(f"{paths.evaluation} is damaged; run eval.py again") from error
    return export_model(
        run,
        out,
        tokenizer_directory=paths.tokenizer,
        evaluation=evaluation,
        pruned=pruned,
        license=license,
        languages=languages,
        overwrite=overwrite,
    )


def _check_tokenizer(run: "Run", directory: Path) -> None:
    """Refuse a tokenizer that is damaged or was not used in the training (`UserError`)."""
    path = names.tokenizer_file(directory)
    try:
        identity = untrusted.read_json(path, untrusted.METADATA_BYTES)
        del identity["format_version"]  # of the file, not of the tokenizer
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(f"cannot read the tokenizer {path}: {reason}; restore it") from error
    programs.load("tokenization").check_own(directory, identity, run.tokenizer)
