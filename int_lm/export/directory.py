"""The directory of an export: what it holds, whether it may be replaced, how it appears whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from int_lm import runtime
from int_lm.errors import UserError
from int_lm.files import atomic, digest

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
_IDENTIFYING = {runtime.WEIGHTS_FILE, runtime.CONFIG_FILE}
_CACHE = "__pycache__"  # importing runtime.py makes this folder


def check_own(directory: Path) -> None:
    """Refuse (`UserError`) a directory that is no export, or holds other files besides."""
    if not directory.is_dir() or not all((directory / name).exists() for name in _IDENTIFYING):
        raise UserError(f"{directory} is no export; name a directory that an export wrote")
    if others := sorted({path.name for path in directory.iterdir()} - _FILES - {_CACHE}):
        raise UserError(f"the export {directory} also holds {', '.join(others)}; move that away")


def is_own(place: str) -> bool:
    """Whether a file of an export may have this path, relative to the export."""
    return place.split("/")[0] in _FILES


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse (`UserError`) an `out` that exists, is not empty, and may not be replaced."""
    out = Path(out)
    if not os.path.lexists(out):
        return
    entries = {entry.name for entry in out.iterdir()} if out.is_dir() else None
    if entries == set():
        return
    if entries is None or not entries >= _IDENTIFYING:
        raise UserError(f"{out} exists and is not an export; choose another --out")
    if others := sorted(entries - _FILES - {_CACHE}):
        raise UserError(
            f"the export {out} also holds {', '.join(others)}, which would be lost; "
            "move that away or choose another --out"
        )
    if not overwrite:
        raise UserError(f"{out} already holds an export; replace it with --overwrite")


@contextlib.contextmanager
def named_when_complete(out: Path) -> Iterator[Path]:
    """Yield a new directory beside `out`; at the end it is renamed to `out` and replaces it.

    After an exception, `out` is unchanged and the new directory is deleted.
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
        atomic.sync_directory(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
