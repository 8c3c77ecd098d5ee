"""What JAX compiles is kept for the next start, in the user's cache.

JAX's own cache does the work (docs.jax.dev/en/latest/persistent_compilation_cache.html). Two things
are done here. A process that is killed while it writes an entry leaves a part of one, which JAX
never replaces and complains of at every start: what is not whole is removed. And old entries are,
because JAX's own bound accepts no entry any more after such a kill (jax-ml/jax#39880).
"""

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path

BYTES_AT_MOST = 1 << 28
_SECONDS = 0.1  # programs that compile in less are not kept
_PROCESSORS = Path("/proc/cpuinfo")


def folder() -> Path:
    """The folder of int_lm in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "int_lm"


def directory() -> Path:
    """The folder of what is compiled by this jaxlib for processors like this one.

    Home directories are shared by unequal machines: programs for instructions that a processor does
    not have would end it.
    """
    import jaxlib.version

    features = [platform.machine()]
    with contextlib.suppress(OSError):
        lines = _PROCESSORS.read_text().splitlines()
        features += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    digest = hashlib.blake2b("\n".join(features).encode(), digest_size=6).hexdigest()
    return folder() / f"jax-{jaxlib.version.__version__}-{digest}"


def keep() -> None:
    """Let JAX keep what it compiles from now on; call it before the first compilation.

    Does nothing where the user has named a folder to JAX (JAX_COMPILATION_CACHE_DIR) or switched
    its cache off (JAX_ENABLE_COMPILATION_CACHE=0), or where the user's cache cannot be written to.
    """
    import jax

    names = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    own, enabled = (getattr(jax.config, name) for name in names)
    if own or not enabled:
        return
    try:
        place = directory()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(place)
    except (OSError, RuntimeError):  # RuntimeError: no home
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # another process is writing the entry; this one compiles, as it would without it
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


def _tidy(place: Path) -> None:
    """Remove entries that are not whole, and the oldest ones beyond `BYTES_AT_MOST`."""
    newest_first = sorted(place.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
    kept = 0
    for path in newest_first:
        kept += path.stat().st_size
        if kept > BYTES_AT_MOST or not _is_whole(path.read_bytes()):
            path.unlink(missing_ok=True)


def _is_whole(entry: bytes) -> bool:
    """Whether an entry, which JAX compresses by zstandard, has its end."""
    import zstandard

    reader = zstandard.ZstdDecompressor().decompressobj()
    try:
        reader.decompress(entry)
    except zstandard.ZstdError:
        return False
    return reader.eof
