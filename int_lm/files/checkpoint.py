"""Checkpoints: their files, and how they are read and verified.

A directory holds one subdirectory per step:

    <step>/state/         the arrays, in Orbax's format
    <step>/host/host.json the other data of a run: configuration, tokenizer identity, mixture,
                          with the format version, a digest of every array and one of itself
    <step>/files.sha256   a digest of every file above (`sha256sum -c files.sha256`)

A step gets its name only when Orbax has written all of it. If the process was killed after that,
`files.sha256` may be missing; such a step is accepted if the digests of all arrays are right.
Nothing here writes (`checkpointer` does), and nothing depends on the model: a state is any pytree
of arrays, and it is returned with NumPy arrays.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from int_lm.errors import UserError
from int_lm.files import digest, storage, untrusted
from int_lm.files.digest import DamagedError

FORMAT = 1  # of host.json; every version keeps its keys "format" and "sha256"
HOST_FILE = "host.json"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint.

    Attributes:
      step: number of updates done.
      state: the pytree that was saved, with NumPy arrays.
      host: the host data that was saved beside it.
    """

    step: int
    state: Any
    host: dict[str, Any]


def steps(directory: str | Path) -> list[int]:
    """The steps that `directory` holds, in increasing order; empty if it does not exist."""
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def latest_step(directory: str | Path) -> int | None:
    """The newest step, or None where there is none."""
    return max(steps(directory), default=None)


def read_host(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """The host data of a step, without its arrays.

    Args:
      directory: the directory of the checkpoints.
      step: which checkpoint; None for the newest one whose files are not damaged.

    Raises:
      UserError: there is no such checkpoint, all are damaged, or the format version is another one.
    """
    return _newest_sound(Path(directory), step, _checked_document, lambda _: None)["host"]


def restore(
    directory: str | Path,
    abstract_state: Any,
    *,
    step: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Restored | None:
    """Read and verify a checkpoint.

    To resume, compare configurations first (`read_host`, `resume.check_config`): an error about a
    configuration says more than one about the shapes that follow from it.

    Args:
      directory: the directory of the checkpoints.
      abstract_state: a pytree whose leaves have the expected `shape` and `dtype`.
      step: which checkpoint; None for the newest one that is not damaged.
      say: receives one sentence, with the name of the file, for every damaged step passed over.

    Returns:
      The checkpoint, or None if `step` is None and there is no checkpoint at all.

    Raises:
      UserError: there is no such step, all are damaged, the format version is another one, or
        arrays differ from `abstract_state` in name, dtype or shape.
    """
    root = Path(directory)
    if step is None and not steps(root):
        return None
    return _newest_sound(
        root, step, lambda root, step: _restore_step(root, step, abstract_state), say
    )


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, such as `weights/head`."""
    import jax

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def signature(leaf: Any) -> dict[str, Any]:
    """The entries of host.json for an array, without its digest: dtype and shape."""
    return {"dtype": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)}


def _shown(array: Mapping[str, Any]) -> str:
    return f"{array['dtype']}{array['shape']}"


def reason(error: BaseException) -> str:
    """The reason of an error of Python, Orbax or TensorStore, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _document(root: Path, step: int) -> dict[str, Any]:
    """The verified content of a step's host.json.

    Raises:
      DamagedError: the file is missing, not JSON, or differs from what was written.
      UserError: the file has another format version.
    """
    path = root / str(step) / "host" / HOST_FILE
    name = path.relative_to(root).as_posix()
    try:
        most, inside = untrusted.METADATA_BYTES, root / str(step)
        document = untrusted.read_json(path, most, inside=inside)
        expected = document.pop("sha256")
        version = document["format"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(f"{name} is missing") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedError(f"{name} has changed since it was written") from error
    if digest.of_json(document) != expected:
        raise DamagedError(f"{name} has changed since it was written")
    if document.get("step", step) != step:
        raise DamagedError(f"{name} belongs to step {document['step']}")
    if version != FORMAT:
        raise UserError(
            f"{path} has format version {version}, this program reads version {FORMAT}; "
            "use the version of int_lm that wrote it"
        )
    if not _is_document(document):
        raise DamagedError(f"{name} is not what a checkpoint holds")
    return document


def _is_document(value: dict[str, Any]) -> bool:
    """Whether every entry of a host.json is there and has the right type."""
    arrays, bits = value.get("arrays"), value.get("valid_bits_per_byte", False)
    return (
        type(value.get("step")) is int
        and isinstance(value.get("host"), dict)
        and (bits is None or type(bits) in (int, float))
        and isinstance(arrays, dict)
        and all(
            isinstance(array, dict)
            and [type(array.get(key)) for key in ("dtype", "shape", "sha256")] == [str, list, str]
            and all(type(size) is int and size > 0 for size in array["shape"])
            for array in arrays.values()
        )
    )


def _checked_document(root: Path, step: int) -> dict[str, Any]:
    digest.check(root / str(step))
    return _document(root, step)


def _restore_step(root: Path, step: int, abstract_state: Any) -> Restored:
    """Read and verify one step.

    Raises:
      DamagedError: a file differs from what was written.
      UserError: the step is not damaged, but it does not fit `abstract_state` or cannot be read.
    """
    sealed = digest.check(root / str(step))
    document = _document(root, step)
    expected = leaves(abstract_state)
    _check_leaves(root / str(step), document["arrays"], expected)
    place = root.absolute() / str(step) / "state"
    try:
        target = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in expected.items()}
    except (MemoryError, ValueError) as error:  # ValueError: more than can be addressed
        raise UserError(f"the arrays of checkpoint {place} do not fit into memory") from error
    try:
        arrays = storage.read_arrays(place, target)
    except MemoryError:
        raise
    except Exception as error:
        if sealed:  # every file is as written: the checkpoint is not damaged
            raise UserError(f"cannot read checkpoint {place}: {reason(error)}") from error
        raise DamagedError(f"{step}/state cannot be read: {reason(error)}") from error
    for path, array in arrays.items():
        if digest.of_array(array) != document["arrays"][path]["sha256"]:
            raise DamagedError(f"{step}/state holds other values of {path} than were written")
        if array.dtype == np.int8 and array.min() == -128:
            raise DamagedError(f"{step}/state holds -128 in {path}, outside [-127, 127]")
    import jax

    state = jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[p] for p in expected])
    return Restored(step, state, document["host"])


def _check_leaves(place: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare names, dtypes and shapes before reading: Orbax would cast without an error."""
    for path in [*saved, *(path for path in expected if path not in saved)]:
        old = _shown(saved[path]) if path in saved else "nothing"
        new = _shown(signature(expected[path])) if path in expected else "nothing"
        if old != new:
            raise UserError(
                f"checkpoint {place} holds {old} at {path}, expected {new}; use the configuration "
                "the run was started with, or another --run.dir"
            )


def _newest_sound(
    root: Path, step: int | None, read: Callable[[Path, int], _T], say: Callable[[str], None]
) -> _T:
    """The result of `read` for `step`, or for the newest step that is not damaged."""
    found = steps(root)
    if not found:
        raise UserError(f"no checkpoint in {root}; train one first, or name another directory")
    if step is not None and step not in found:
        raise UserError(f"no checkpoint {step} in {root}; it holds {', '.join(map(str, found))}")
    damage = ""
    for candidate in reversed(found) if step is None else [step]:
        try:
            return read(root, candidate)
        except DamagedError as error:
            damage = damage or str(error)
            if step is None:
                say(f"checkpoint {candidate} is damaged ({error}); trying the one before")
    which = "every checkpoint" if step is None else f"checkpoint {step}"
    raise UserError(
        f"{which} in {root} is damaged ({damage}); restore its files from a copy, or start again "
        "with another --run.dir"
    )


def evaluations(root: Path) -> dict[int, float | None]:
    """Bits per byte of held-out text by step; None for a step not evaluated or not readable."""
    found: dict[int, float | None] = {}
    for step in steps(root):
        try:
            found[step] = _document(root, step)["valid_bits_per_byte"]
        except (DamagedError, UserError, OSError):
            found[step] = None
    return found


def best_of(bits_per_byte: Mapping[int, float | None]) -> int | None:
    """The step with the lowest value (of equal ones, the newest); None if no step has a value."""
    known = [(value, -step) for step, value in bits_per_byte.items() if value is not None]
    return -min(known)[1] if known else None
