"""How the time of a compiled function is divided among its parts, from the JAX profiler.

The compiled program has the source file and function of every operation. They tell the part that
the operation belongs to. A fused operation belongs to the part of its last operation.
"""

import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# (part, file, function), the first match wins; a match anywhere in the call stack counts for
# `OUTER`, one at its innermost frame of int_lm for the others
OUTER = (
    ("votes", "method/estimator/", ""),
    ("update", "method/update/", ""),
    ("update", "context_tables.py", "update"),
    ("noise", "noise.py", ""),
)
INNER = (
    ("segments in one kernel", "native/segment.py", ""),
    ("linears", "native/", "linear"),  # by kernels: base matmuls with their perturbation
    ("norms", "native/", "norm"),
    ("base matmuls", "fixed.py", "dot"),
    ("perturbation", "perturb.py", ""),
    ("norms", "layers.py", "norm"),
    ("norms", "layers.py", "_mean_magnitude"),
    ("likelihood", "likelihood.py", ""),
    ("context tables", "context_tables.py", ""),
    ("state", "layers.py", "plus"),
    ("state", "model/", ""),
)
CONTAINERS = ("while", "conditional", "call")  # their operations are counted, not they


def _tables(text: str) -> dict[str, dict[int, str]]:
    """The sections of a program's text that number files, functions, locations and frames."""
    tables: dict[str, dict[int, str]] = {}
    for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
        block = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        lines = block.group(1).splitlines() if block else []
        tables[name] = {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines}
    return tables


def _number(name: str, text: str) -> int:
    found = re.search(rf"{name}=(\d+)", text)
    return int(found.group(1)) if found else 0


def stacks(text: str) -> dict[str, list[tuple[str, str]]]:
    """For each instruction, by name: (file, function) of its call stack, innermost first."""
    tables = _tables(text)
    # the first frame has no parent: the number it gives means none, and others count from there
    none = _number("parent_frame_id", tables["StackFrames"].get(1, ""))

    def frames(frame: int) -> list[tuple[str, str]]:
        found = []
        while frame:
            entry = tables["StackFrames"][frame]
            place = tables["FileLocations"][_number("file_location_id", entry)]
            file = tables["FileNames"][_number("file_name_id", place)].strip('"')
            function = tables["FunctionNames"][_number("function_name_id", place)].strip('"')
            found.append((file, function))
            frame = _number("parent_frame_id", entry) - none
        return found

    line = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?stack_frame_id=(\d+)", re.MULTILINE)
    return {name: frames(int(frame)) for name, frame in line.findall(text)}


def part_of(stack: list[tuple[str, str]]) -> str:
    """The part that an operation of this call stack belongs to."""
    for part, file, function in OUTER:
        if any(file in where and function in what for where, what in stack):
            return part
    for where, what in stack:
        for part, file, function in INNER:
            if file in where and function in what:
                return part
    return "copies and the rest"


def of_call(function: Callable[[], Any], compiled_text: str) -> dict[str, float]:
    """Share of the time of one call by part, the largest first.

    Args:
      function: compiled, and called at least once.
      compiled_text: text of its program (`Compiled.as_text`).
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(function())
        (trace,) = Path(directory).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    known, spent = stacks(compiled_text), collections.Counter[str]()
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if operation and not operation.startswith(CONTAINERS):
            spent[part_of(known.get(operation, []))] += event["dur"]
    total = sum(spent.values())
    return {part: duration / total for part, duration in spent.most_common()}
