"""What the system says of this machine: processors, memory, disk, caches, the hub. Without JAX."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from int_lm import cache

WRITTEN = 1 << 26  # bytes that measure the speed of a disk
COUNTING_SECONDS = 5.0  # at most, that the files of a cache are counted
HUB_SECONDS = 5.0  # that the hub has to answer
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def processors() -> dict[str, Any]:
    """The processors.

    Returns:
      machine: kind of processor, such as x86_64.
      name: of the processor; None if the system does not say.
      cores: number of cores that this process may use, by its affinity.
      quota: number of cores that its control group allows it, or None.
      instructions: those of `INSTRUCTIONS` that the processor has.
    """
    text = _read(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    own = getattr(os, "sched_getaffinity", None)
    quota, period = ([*_read(Path("/sys/fs/cgroup/cpu.max")).split(), "", ""])[:2]
    return {
        "machine": platform.machine(),
        "name": name[1] if name else None,
        "cores": len(own(0)) if own else os.cpu_count(),
        "quota": int(quota) / int(period) if quota.isdigit() and period.isdigit() else None,
        "instructions": [flag for flag in INSTRUCTIONS if flags and flag in flags[1].split()],
    }


def memory() -> dict[str, int | None]:
    """Memory in bytes; None where the system does not say.

    Returns:
      total: of the machine.
      available: what processes can still get.
      limit: of this process's control group.
    """
    text = _read(Path("/proc/meminfo"))

    def entry(name: str) -> int | None:
        found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
        return 1024 * int(found[1]) if found else None

    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return {
        "total": entry("MemTotal"),
        "available": entry("MemAvailable"),
        "limit": int(limit) if limit.isdigit() else None,
    }


def disk(directory: Path) -> dict[str, Any]:
    """Space and speed where a run directory is, or would be made.

    Returns:
      path: the directory, or the nearest one above it that exists.
      missing: the directory, if it does not exist; otherwise None.
      free: bytes that can still be written there.
      written_per_second: bytes per second of a file that reaches the disk; None on an error.
      error: why nothing can be written there; None if that is no problem.
    """
    whole = directory.absolute()
    place = next(path for path in (whole, *whole.parents) if path.is_dir())
    block, speed, error = os.urandom(1 << 20), None, None
    free = shutil.disk_usage(place).free
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            size = min(WRITTEN, free // 4)
            start = time.perf_counter()
            for _ in range(0, size, len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            speed = size / max(time.perf_counter() - start, 1e-9)
    except OSError as failure:
        error = failure.strerror or str(failure)
    return {
        "path": str(place),
        "missing": None if place == whole else str(directory),
        "free": free,
        "written_per_second": speed,
        "error": error,
    }


def size(directory: Path) -> dict[str, Any]:
    """The size of all files below a directory: {path, bytes, complete}.

    `bytes` is None if there is no such directory. `complete` is False if counting took too long.
    """
    end, total = time.monotonic() + COUNTING_SECONDS, 0
    if not directory.is_dir():
        return {"path": str(directory), "bytes": None, "complete": True}
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
        if time.monotonic() > end:
            return {"path": str(directory), "bytes": total, "complete": False}
    return {"path": str(directory), "bytes": total, "complete": True}


def caches() -> dict[str, dict[str, Any] | None]:
    """The caches of libraries: `size` of each, by name.

    `compilation` is the cache of compiled programs (`cache`); None if it is switched off. `hub` and
    `datasets` are those of the Hugging Face hub.
    """
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false", "no", "off")
    compiled = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache.folder())
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    datasets = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    return {
        "compilation": None if off else size(compiled),
        "hub": size(hub),
        "datasets": size(datasets),
    }


def hub() -> dict[str, Any]:
    """Whether the Hugging Face hub answers: {endpoint, offline, answers, error}.

    `offline` is the name of the environment variable that forbids the network, or None; then it is
    not asked, and `answers` is None.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    flags = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    offline = next(
        (name for name in flags if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")),
        None,
    )
    found = {"endpoint": endpoint, "offline": offline, "answers": None, "error": None}
    if offline:
        return found
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:  # an answer
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return found | {"answers": False, "error": str(reason)}
    return found | {"answers": True}


def _read(path: Path) -> str:
    """The text of a file of the system; empty if there is none."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
