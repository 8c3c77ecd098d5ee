"""Saved states, from which a text that was stopped can go on as if it had not been stopped.

A saved state is a safetensors file. Its tensors are the model's state (int32, one tensor for each
leaf, named state/LEAF) and `before` (the ids of the document so far, for the repetition penalty).
Its metadata are the hash of the weights, the number of the next draw, and the ids that the state
has not read yet. A run and its export write the same file.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from int_lm.errors import UserError
from int_lm.files import atomic
from int_lm.runtime import SEPARATOR, Tensors

METADATA_KEY, FORMAT_VERSION = "int_lm_state", 1
BYTES_MAX = 1 << 30


@dataclasses.dataclass(frozen=True)
class Saved:
    """The state of a text that was stopped.

    Attributes:
      state: leaves [., 1, ...] like those of the model's `initial_state(1)`.
      before: ids of the document so far, without the separator at its beginning.
      unread: the ids that `state` has not read yet, at least one.
      number: number of the next draw, 0 for the first.
    """

    state: Tensors
    before: list[int]
    unread: list[int]
    number: int


def beginning(initial_state: Any) -> Saved:
    """The state at the beginning of a document: only the separator is not read yet."""
    leaves = {name: np.asarray(leaf) for name, leaf in initial_state.items()}
    return Saved(leaves, [], [SEPARATOR], 0)


def write(path: str | Path, saved: Saved, weights_hash: str) -> None:
    """Write a saved state, in place of the file at `path` if there is one.

    Args:
      path: of the file.
      saved: the state.
      weights_hash: hash of the model's weights.

    Raises:
      OSError: the file system refused.
    """
    from safetensors.numpy import save

    tensors = {
        f"state/{name}": np.ascontiguousarray(leaf, np.int32) for name, leaf in saved.state.items()
    }
    tensors["before"] = np.array(saved.before, np.int32)
    metadata = {
        "format_version": FORMAT_VERSION,
        "weights_hash": weights_hash,
        "number": saved.number,
        "unread": saved.unread,
    }
    data = save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with atomic.replacement(Path(path)) as file:
        file.write(data)


def read(path: str | Path, initial_state: Any, weights_hash: str, V: int) -> Saved:
    """Read a saved state.

    Args:
      path: of the file.
      initial_state: the model's state for one document, with the expected leaves.
      weights_hash: hash of the model's weights.
      V: size of the model's vocabulary.

    Raises:
      UserError: the file cannot be read, is damaged, or is of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if Path(path).stat().st_size > BYTES_MAX:
            raise ValueError("too large")
        with safe_open(str(path), framework="numpy") as file:
            metadata = json.loads(file.metadata()[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        own = metadata["weights_hash"]
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError("another version")
        saved = _checked(metadata, tensors, initial_state, V) if own == weights_hash else None
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise UserError(f"cannot read the state {path}: {reason}; name a saved state") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no sound state; save it again with --save_state") from error
    if saved is None:
        raise UserError(
            f"the state {path} is of the weights {own}, these are {weights_hash}; use the model "
            "that saved it"
        )
    return saved


def _checked(metadata: dict[str, Any], tensors: Tensors, initial_state: Any, V: int) -> Saved:
    """The content of a file after all checks.

    Raises:
      ValueError: a value is wrong.
      KeyError: an entry is missing.
      TypeError: an entry has a wrong type.
    """
    before, state = tensors.pop("before"), {}
    if set(tensors) != {f"state/{name}" for name in initial_state}:
        raise ValueError("other leaves")
    for name, like in initial_state.items():
        leaf = tensors[f"state/{name}"]
        if leaf.dtype != np.int32 or leaf.shape != like.shape or not _possible(name, leaf, V):
            raise ValueError(name)
        state[name] = leaf.astype(like.dtype)
    unread, number = np.array(metadata["unread"], np.int64), metadata["number"]
    sound = before.dtype == np.int32 and before.ndim == unread.ndim == 1 <= len(unread)
    sound = sound and _within(before, 0, V - 1) and _within(unread, 0, V - 1)
    if not sound or type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("ids or number")
    return Saved(state, before.tolist(), unread.tolist(), number)


def _possible(name: str, leaf: np.ndarray, V: int) -> bool:
    """Whether a leaf of a state holds values that a model with a vocabulary of V can leave."""
    if name == "cache":  # any places and checks; tokens of the vocabulary
        tokens = np.stack([leaf[..., 1], leaf[..., 2], leaf[..., 2] >> 16]) & 0xFFFF
        return _within(tokens, 0, V - 1) and _within(leaf[..., 1], 0, 2**31 - 1)
    if name in ("words", "cache_place", "cache_hash"):
        return True
    return _within(leaf, *((0, V - 1) if name == "context" else (-127, 127)))


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return values.size == 0 or bool(low <= values.min() and values.max() <= high)
