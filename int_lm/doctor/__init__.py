"""What this machine offers int_lm, and what its user should mend.

`examined` asks the machine; JAX is asked in another process (`probe`), because it may not start.
`findings` are plain sentences about the answers.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from int_lm import programs
from int_lm.doctor import machine

PROBE_SECONDS = 180  # that JAX has to start and to answer
FREE_BYTES = 1 << 30  # of a disk or of memory; less is a finding
GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl")
Answers = Mapping[str, Any]


class Finding(NamedTuple):
    """One sentence of the diagnosis.

    Attributes:
      sentence: what it is, and what to do.
      needs_you: whether the user should do something.
    """

    sentence: str
    needs_you: bool


def examined(run: Path, program: str) -> dict[str, Any]:
    """All that is found out, by topic: values that JSON can hold.

    Args:
      run: a run directory, whose disk is examined.
      program: the command that builds kernels.

    Returns:
      versions: see `versions`.
      python: version and path of this Python.
      processors, memory, disk, caches, hub: see the functions of `machine`.
      jax: what `probe.found` returns; None if JAX does not start.
      jax_error: why JAX does not start; None if it does.
      gpu: whether the system has an NVIDIA GPU.
      build: the command that builds kernels.
    """
    found, error = probed()
    return {
        "versions": versions(),
        "python": {"version": sys.version.split()[0], "path": sys.executable},
        "processors": machine.processors(),
        "memory": machine.memory(),
        "disk": machine.disk(run),
        "caches": machine.caches(),
        "hub": machine.hub(),
        "jax": found,
        "jax_error": error,
        "gpu": any(os.path.exists(path) for path in GPU_FILES),
        "build": program,
    }


def versions() -> dict[str, str | None]:
    """Versions of int_lm, of what it needs and of its extras; None for what is not installed.

    What is not needed and not installed is left out.
    """
    if programs.installed():
        required = metadata.requires("int-lm") or []
    else:
        text = (programs.folder() / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        required = list(project["dependencies"])
        for extra in project["optional-dependencies"].values():
            required += [f"{name}; extra" for name in extra]
    found: dict[str, str | None] = {"int-lm": programs.version()}
    for requirement in required:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        needed = "extra" not in requirement.partition(";")[2]
        try:
            found.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            if needed:
                found[name] = None
    return found


def probed() -> tuple[dict[str, Any] | None, str | None]:
    """What JAX says (`probe.found`), or why it does not start; the other one is None."""
    command = [sys.executable, "-m", "int_lm.doctor.probe"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=programs.environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not answer in {PROBE_SECONDS} seconds"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return None, f"its process was ended by signal {-done.returncode}"
    if done.returncode:
        return None, lines[-1] if lines else f"its process ended with {done.returncode}"
    return json.loads(done.stdout), None


def findings(answers: Answers) -> list[Finding]:
    """The diagnosis: sentences about the answers of `examined`, those that need the user first."""
    found = [
        *_of_packages(answers),
        *_of_jax(answers),
        *_of_kernels(answers),
        *_of_space(answers),
        *_of_network(answers),
    ]
    return sorted(found, key=lambda finding: not finding.needs_you)


def _of_packages(answers: Answers) -> list[Finding]:
    missing = [name for name, version in answers["versions"].items() if version is None]
    sentence = f"not installed: {', '.join(missing)}; run: {sys.executable} -m pip install int-lm"
    return [Finding(f"{sentence} (in a clone: make train)", True)] if missing else []


def _of_jax(answers: Answers) -> list[Finding]:
    if answers["jax"] is None:
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f" (JAX_PLATFORMS is {platforms})" if platforms else ""
        return [
            Finding(
                f"JAX does not start: {answers['jax_error']}{hint}; exports still work without "
                "it, everything else needs it",
                True,
            )
        ]
    if answers["gpu"] and answers["jax"]["platform"] == "cpu":
        return [
            Finding(
                "there is an NVIDIA GPU, but JAX computes on the processor; run: "
                f"{sys.executable} -m pip install 'int-lm[cuda12]' (or cuda13)",
                True,
            )
        ]
    return []


def _of_kernels(answers: Answers) -> list[Finding]:
    jax = answers["jax"]
    if jax is None or jax["platform"] != "cpu":
        return []
    level, compilers = jax["kernels"]["level"], jax["compilers"]
    slower = "JAX computes the same bits, more slowly"
    if not jax["kernels"]["possible"]:
        kind = answers["processors"]["machine"]
        return [Finding(f"there are no kernels for {kind} processors here: {slower}", False)]
    if level == "switched off":
        return [Finding(f"INT_LM_NATIVE=0 switches the kernels off: {slower}", False)]
    if level == "unsupported":
        return [Finding(f"this processor lacks AVX2, which kernels need: {slower}", False)]
    if level == "not built" and not compilers:
        sentence = "kernels are not built, and there is no C++ compiler; install one (g++), then"
        return [Finding(f"{sentence} run: {answers['build']}; until then {slower}", True)]
    if level == "not built":
        return [
            Finding(f"kernels are not built; run: {answers['build']}; until then {slower}", True)
        ]
    return []


def _of_space(answers: Answers) -> list[Finding]:
    disk, memory, found = answers["disk"], answers["memory"], []
    if disk["error"]:
        found.append(
            Finding(
                f"{disk['path']} cannot be written to ({disk['error']}); choose another --run.dir",
                True,
            )
        )
    elif disk["free"] < FREE_BYTES:
        found.append(
            Finding(f"{disk['path']} has {in_bytes(disk['free'])} left; free some space", True)
        )
    sizes = [value for key in ("available", "limit") if (value := memory[key]) is not None]
    if sizes and min(sizes) < FREE_BYTES:
        found.append(
            Finding(
                f"{in_bytes(min(sizes))} of memory are left, and configs/quickstart.yaml needs "
                "0.9 GB; end other programs, or see train.py --plan for what a run needs",
                True,
            )
        )
    if answers["caches"]["compilation"] is None:
        found.append(
            Finding(
                "JAX_ENABLE_COMPILATION_CACHE switches JAX's cache off: every start of a run "
                "compiles anew",
                False,
            )
        )
    return found


def _of_network(answers: Answers) -> list[Finding]:
    hub = answers["hub"]
    if hub["offline"]:
        sentence = f"{hub['offline']} forbids the network: data.source hub cannot read"
        return [Finding(sentence, False)]
    if not hub["answers"]:
        sentence = f"{hub['endpoint']} does not answer ({hub['error']}): data.source hub cannot"
        return [Finding(f"{sentence} read; all other text needs no network", False)]
    return []


def in_bytes(count: float | None) -> str:
    """A number of bytes for readers, such as 3.2 GB; `unknown` for None."""
    if count is None:
        return "unknown"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def lines(answers: Answers) -> list[str]:
    """The answers of `examined` for readers: one topic a line."""
    cpu, memory, disk, jax = (answers[key] for key in ("processors", "memory", "disk", "jax"))
    quota = f", {cpu['quota']:g} of them by its control group" if cpu["quota"] else ""
    limit = f", {in_bytes(memory['limit'])} by its control group" if memory["limit"] else ""
    speed = disk["written_per_second"]
    written = f", {in_bytes(speed)}/s written" if speed else ""
    missing = f" ({disk['missing']} is not there yet)" if disk["missing"] else ""
    found = {
        "python": f"{answers['python']['version']}, {answers['python']['path']}",
        "packages": ", ".join(
            f"{name} {version or 'missing'}" for name, version in answers["versions"].items()
        ),
        "processor": f"{cpu['machine']} {cpu['name'] or ''} ({' '.join(cpu['instructions'])})",
        "cores": f"{cpu['cores']}{quota}",
        "memory": f"{in_bytes(memory['total'])}, {in_bytes(memory['available'])} free{limit}",
        "disk": f"{disk['path']}{missing}: {in_bytes(disk['free'])} free{written}",
    }
    if jax is None:
        found["JAX"] = f"does not start: {answers['jax_error']}"
    else:
        kernels, devices = jax["kernels"], jax["devices"]
        found["devices"] = f"{len(devices)} x {devices[0]}, platform {jax['platform']}"
        found["int8"] = f"{jax['int8_gops']:,.0f} x 10^9 operations/s (XLA's best dot)"
        found["kernels"] = (
            f"{', '.join(filter(None, (kernels['file'], kernels['level'])))}; used for: "
            f"{', '.join(kernels['used']) or 'nothing'}"
        )
        found["compilers"] = "; ".join(jax["compilers"].values()) or "none"
    for name, cache in answers["caches"].items():
        more = "" if cache is None or cache["complete"] else " or more"
        shown = "none" if cache is None else f"{cache['path']}: {in_bytes(cache['bytes'])}{more}"
        found[f"{name} cache"] = shown.replace("unknown", "none")
    hub = answers["hub"]
    state = {None: f"not asked ({hub['offline']})", True: "answers", False: "does not answer"}
    found["hub"] = f"{hub['endpoint']}: {state[hub['answers']]}"
    width = max(map(len, found))
    return [f"{name:<{width}}  {text}" for name, text in found.items()]
