"""What JAX compiles is kept for the next start, whole and bounded."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from int_lm import cache

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys, warnings, jax, jax.numpy as jnp
from int_lm import cache
warnings.simplefilter("error")
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
cache._SECONDS = 0
cache.keep()
print(int(jax.jit(lambda x: (x * x + 3).sum())(jnp.arange(9))))
print(events.count("/jax/compilation_cache/cache_hits"))
"""


def start(place: Path, **environment: str) -> tuple[int, int]:
    """The result of a program that is compiled, and how many programs JAX found in its cache."""
    own = {"XDG_CACHE_HOME": str(place), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    others = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**others, **own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    result, hits = done.stdout.split()
    return int(result), int(hits)


def entries(place: Path) -> list[Path]:
    """The files that JAX has written."""
    return sorted(path for path in place.rglob("*-cache") if path.is_file())


def test_the_second_start_compiles_nothing_that_is_kept(tmp_path: Path) -> None:
    """Also after a kill that left a part of an entry, of which nobody is told."""
    assert start(tmp_path) == (231, 0)
    kept = entries(tmp_path)
    assert kept and kept[0].parent == tmp_path / "int_lm" / cache.directory().name
    assert start(tmp_path) == (231, len(kept))
    kept[0].write_bytes(kept[0].read_bytes()[:-7])
    assert start(tmp_path) == (231, len(kept) - 1)
    assert start(tmp_path) == (231, len(kept))


def test_what_the_user_said_holds(tmp_path: Path) -> None:
    """A folder of the user's own is used, and a cache that is switched off stays so."""
    start(tmp_path / "a", JAX_ENABLE_COMPILATION_CACHE="0")
    start(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    """A file stands where the folder would be."""
    (tmp_path / "int_lm").write_text("in the way")
    assert start(tmp_path) == (231, 0)


def test_the_oldest_entries_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound; each of these is a whole frame of zstandard."""
    import zstandard

    frame = zstandard.ZstdCompressor().compress(os.urandom(1000))
    monkeypatch.setattr(cache, "BYTES_AT_MOST", 3 * len(frame))
    for age, name in enumerate(["newest", "second", "third", "fourth"]):
        (tmp_path / name).write_bytes(frame)
        moment = time.time() - 60 * age
        os.utime(tmp_path / name, (moment, moment))
    cache._tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "second", "third"]
