"""Export: a run's int8 weights as a directory that the NumPy runtime loads, without JAX.

model.safetensors    int8 weights by path, context tables without zeros (`sparse`), and the int32
                     tables of the likelihood
config.json          model, tokenizer, step, hash of the weights, and which text was held out
tokenizer/           the run's tokenizer
runtime.py           loads, scores and samples all this, with NumPy alone
runtime.c            the same in C99, without any library; not for a network that it cannot express
architecture.py      the network in NumPy, if its architecture is not one of int_lm's own
README.md            the model card
files.sha256         a digest of every file above (`sha256sum -c files.sha256`)

The same run gives the same bytes. JAX is imported when a model is exported, not before:
`python -m int_lm.export` begins by importing this file, and must answer `--help` at once.
"""

import ast
import contextlib
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from int_lm import config, runtime, sampling
from int_lm.arithmetic import tables
from int_lm.errors import UserError
from int_lm.export import card, sparse
from int_lm.files import digest, names, untrusted
from int_lm.limits import SEPARATOR

if TYPE_CHECKING:
    from int_lm.run import Run

CARD_FILE, RUNTIME_FILE, TOKENIZER_FOLDER = "README.md", "runtime.py", "tokenizer"
C_FILE = "runtime.c"
ARCHITECTURE_FILE = "architecture.py"  # the NumPy form of a network that runtime.py does not have
_FILES = {
    runtime.WEIGHTS_FILE,
    runtime.CONFIG_FILE,
    RUNTIME_FILE,
    C_FILE,
    ARCHITECTURE_FILE,
    CARD_FILE,
    TOKENIZER_FOLDER,
    digest.FILE_DIGESTS,
}
_CACHE = "__pycache__"  # what importing runtime.py leaves behind
_STANDING_ALONE = {"numpy", *sys.stdlib_module_names}  # modules that an export can import
CHECKED_TOKENS, CHECKED_LANES = 32, 4  # that both forms of a network read before an export of it


def numpy_forms(architecture: str) -> dict[str, type[runtime.Architecture]]:
    """What `runtime.load` must be given for an architecture that it does not have, by name.

    Raises:
      UserError: the architecture is not found, or its class for NumPy is not.
    """
    if architecture in runtime.ARCHITECTURES:
        return {}
    from int_lm import plugins
    from int_lm.model import architecture as architectures

    target = architectures.get(architecture).runtime
    return {architecture: plugins.attribute(target, f"the NumPy form of {architecture}")}


def runtime_text() -> str:
    """The runtime.py of an export: one file that stands alone, for it holds what it imports."""
    text = Path(runtime.__file__).read_text(encoding="utf-8")
    of_sampling = Path(sampling.__file__).read_text(encoding="utf-8")
    return re.sub(r"from int_lm\.sampling import \([^)]*\)\n", lambda _: of_sampling, text)


def _check_imports(file: Path) -> None:
    """Refuse a network for NumPy whose file would not run on its own in an export."""
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
    """Refuse a network for NumPy that does not compute what the one in JAX does."""
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
    """Read an export, whatever its architecture; imports no JAX for int_lm's own.

    Raises:
      UserError: it is no sound export, or its architecture is code that is not trusted (`plugins`).
    """
    try:
        return runtime.load(directory, numpy_forms(runtime.architecture_of(directory)))
    except runtime.ExportError as error:
        raise UserError(str(error)) from error


def export_config(run: "Run") -> dict[str, Any]:
    """The contents of config.json."""
    from int_lm.model import hashing

    settings = config.to_dict(run.config)
    return {
        "format_version": runtime.FORMAT_VERSION,
        "model": settings["model"],
        "vocab_size": run.recipe.model.vocab_size,
        "tokenizer": run.tokenizer,
        "step": run.step,
        "weights_hash": hashing.weights_hash(run.weights),
        "data": settings["data"],
        "text_sha256": run.text_sha256,
    }


def tensors_of(run: "Run") -> dict[str, np.ndarray]:
    """The contents of model.safetensors, contiguous: its library writes others wrongly."""
    from int_lm.model import likelihood

    narrow = run.recipe.model.vocab_size <= likelihood.NARROW_VOCABULARY
    tensors = {
        **run.weights.by_path(),
        runtime.EXP2_TABLE: tables.exp2(likelihood.NARROW_BITS if narrow else likelihood.WIDE_BITS),
        runtime.LOG2_TABLE: tables.log2_mantissa(),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return sparse.stored(tensors, [name for name in tensors if name.startswith("direct/")])


def weights_file(tensors: Mapping[str, np.ndarray], config_text: bytes) -> bytes:
    """The bytes of model.safetensors: the same for the same tensors and configuration.

    All metadata are one entry, for the library writes several in random order.
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
    overwrite: bool = False,
) -> Path:
    """Write an export, verify it, and only then give it its name.

    Args:
      out: the directory to make. One that exists is replaced if it is empty, or if it is an export
        and `overwrite` is set.
      tokenizer_directory: the run's tokenizer, which is copied.
      evaluation: what evaluation.json of the run says; figures of other weights are not shown.
      pruned: what `run.weights` have lost, for config.json and the card (see `export.__main__`).

    Returns:
      The export's directory.

    Raises:
      UserError: `out` is in the way, the tokenizer is not the run's or not one that the runtime
        knows, a plug-in's network for NumPy does not stand alone or computes something else, or the
        file system refused; nothing is written then.
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
        with _named_when_complete(out.resolve()) as partial:
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
            model_card = card.model_card(run, settings, size, evaluation, architectures, lacking)
            (partial / CARD_FILE).write_text(model_card, encoding="utf-8", newline="\n")
            digest.seal(partial)
            exported = runtime.load(partial, architectures)
            if architectures:  # the tests of int_lm see to its own
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
    overwrite: bool = False,
) -> Path:
    """Export a run's model with the tokenizer and the evaluation that lie in its directory.

    Args:
      run: opened from the directory `root`. out, pruned, overwrite: as of `export_model`.

    Returns:
      The export's directory.

    Raises:
      UserError: as of `export_model`; the evaluation is damaged.
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
        overwrite=overwrite,
    )


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse, with a `UserError`, to replace what may be dear to the user."""
    out = Path(out)
    if not os.path.lexists(out):
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else None
    if entries == set():
        return
    if entries is None or not {runtime.WEIGHTS_FILE, runtime.CONFIG_FILE} <= entries:
        raise UserError(f"{out} exists and is not an export; choose another --out")
    if others := sorted(entries - _FILES - {_CACHE}):
        raise UserError(
            f"the export {out} also holds {', '.join(others)}, which would be lost; "
            "move that away or choose another --out"
        )
    if not overwrite:
        raise UserError(f"{out} already holds an export; replace it with --overwrite")


def _check_tokenizer(run: "Run", directory: Path) -> None:
    """Refuse a tokenizer that is damaged or not the one the weights were trained with."""
    from int_lm import resume

    path = names.tokenizer_file(directory)
    try:
        identity = untrusted.read_json(path, untrusted.METADATA_BYTES)
        del identity["format_version"]  # of the file, not of the tokenizer
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(f"cannot read the tokenizer {path}: {reason}; restore it") from error
    resume.check_tokenizer(run.tokenizer, identity)


@contextlib.contextmanager
def _named_when_complete(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its name, and the place of an old one, at the end.

    After an exception, `out` is as it was and nothing else is left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        if out.exists():
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        digest.sync_directory(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
