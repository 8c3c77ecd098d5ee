"""A saved state: where a text stopped, so that it can go on as if it had not.

The file is a safetensors file: the model's state (one int32 tensor a leaf, named state/LEAF),
`before` (the ids of the document so far, for the repetition penalty), and metadata: the hash of the
weights, the number of the next draw, and the ids that the state has not read yet. It is the same
from a run and from its export.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from int_lm.errors import UserError
from int_lm.files import digest
from int_lm.runtime import SEPARATOR, Tensors

METADATA_KEY, FORMAT_VERSION = "int_lm_state", 1
BYTES_MAX = 1 << 30


@dataclasses.dataclass(frozen=True)
class Saved:
    """Where a text stopped.

    Attributes:
      state: leaves [., 1, ...] as of `initial_state(1)`.
      before: ids of the document so far, without the separator at its beginning.
      unread: the ids that `state` has not read yet.
      number: of the next draw.
    """

    state: Tensors
    before: list[int]
    unread: list[int]
    number: int


def beginning(initial_state: Any) -> Saved:
    """A document's start."""
    leaves = {name: np.asarray(leaf) for name, leaf in initial_state.items()}
    return Saved(leaves, [], [SEPARATOR], 0)


def write(path: str | Path, saved: Saved, weights_hash: str) -> None:
    """Replace the file at `path`; errors `OSError`."""
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
    digest.write_atomically(Path(path), data)


def read(path: str | Path, initial_state: Any, weights_hash: str, V: int) -> Saved:
    """Read what `write` wrote.

    Args:
      initial_state: of the model, for one document: what the leaves must be like.
      weights_hash: of the model. V: its vocabulary.

    Raises:
      UserError: no such file, a damaged one, or one of another model.
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
    """The content of a file; errors `ValueError`, `KeyError` and `TypeError`."""
    before, state = tensors.pop("before"), {}
    if set(tensors) != {f"state/{name}" for name in initial_state}:
        raise ValueError("other leaves")
    for name, like in initial_state.items():
        leaf = tensors[f"state/{name}"]
        low, high = (0, V - 1) if name == "context" else (-127, 127)
        if leaf.dtype != np.int32 or leaf.shape != like.shape or not _within(leaf, low, high):
            raise ValueError(name)
        state[name] = leaf.astype(like.dtype)
    unread, number = np.array(metadata["unread"], np.int64), metadata["number"]
    sound = before.dtype == np.int32 and before.ndim == unread.ndim == 1 <= len(unread)
    sound = sound and _within(before, 0, V - 1) and _within(unread, 0, V - 1)
    if not sound or type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("ids or number")
    return Saved(state, before.tolist(), unread.tolist(), number)


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return values.size == 0 or bool(low <= values.min() and values.max() <= high)
