"""Read mutated files, one after another, in a process with limits; `harness` starts it.

    python -m tests.fuzz.child ROOM FIRST COUNT FORMAT:damage FORMAT:forge ...

ROOM/FORMAT/honest holds an honest example. Of each format and mode, mutations FIRST to
FIRST + COUNT - 1 are read. ROOM/at says which is being read and what came of those before, and
outlives a crash.
"""

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from int_lm import runtime
from int_lm.errors import UserError
from tests.fuzz.formats import FORMATS, OUTSIDE, Format, damage, files_of

MEMORY = 1 << 30  # bytes of address space that native code may ask for
SECONDS = 120  # a reading that takes longer hangs, however busy the machine is
HARMFUL = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
INSTALLED = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, *sys.path)} - {""})


class Watch:
    """Notes, by an audit hook, what a reader opens outside its directory, and what it runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self._on:
            return
        if event in HARMFUL:
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self._on = False
            path = os.path.realpath(os.fsdecode(arguments[0]))
            self._on = True
            if not path.startswith(
                (str(self.directory), *INSTALLED, "/proc/", "/sys/", "/dev/null")
            ):
                self.seen.append(f"opened {path}")

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self.seen, self._on = [], True
        try:
            yield
        finally:
            self._on = False


def fill(directory: Path, honest: dict[str, bytes]) -> None:
    """Write the honest files anew, beside the file that nobody may open."""
    shutil.rmtree(directory.parent)
    for name, data in honest.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (directory.parent / OUTSIDE).parent.mkdir(parents=True)
    (directory.parent / OUTSIDE).write_bytes(b"secret")


def attempt(case: Format, directory: Path, watch: Watch, expected: str | None) -> tuple[str, int]:
    """(what came of reading: refused, same, valid, or a fault; bytes above twice the files' size).

    Args:
      expected: the summary that alone may come of it; None where any value within bounds may.
    """
    size = sum(path.stat().st_size for path in files_of(directory))
    verdict, value = "valid", None
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with watch.on():
            value = case.read(directory)
    except (UserError, runtime.ExportError) as error:
        verdict = "refused" if str(error).strip() else "fault: an error without a sentence"
    except BaseException:
        verdict = f"fault: {traceback.format_exc(limit=-4)}"
    excess = tracemalloc.get_traced_memory()[1] - before - 2 * size
    if watch.seen:
        verdict = f"fault: {watch.seen[0]}"
    elif excess > case.spare:
        verdict = f"fault: {excess} bytes above twice the {size} of the files"
    elif verdict == "valid":
        try:
            case.inspect(value)
            if case.summary(value) == expected:
                verdict = "same"
            elif expected is not None:
                verdict = "fault: other values than were written, without a word"
        except UserError:  # a tokenizer is refused at the first text that it would change
            verdict = "refused"
        except BaseException:
            verdict = f"fault: afterwards, {traceback.format_exc(limit=-4)}"
    return verdict, excess


def read_all(
    label: str, honest: dict[str, bytes], numbers: range, watch: Watch, at: Path
) -> dict[str, Any]:
    """What came of mutations of one format in one mode, as `harness.Outcome` has it."""
    name, mode = label.split(":")
    case, directory = FORMATS[name], watch.directory
    at.write_text(json.dumps([label, None, None]))
    # a library that is read for the first time may start as many threads as it likes
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    fill(directory, honest)
    case.inspect(case.read(directory))
    summary = case.summary(case.read(directory))
    damage(Random(0), directory, case)
    with contextlib.suppress(UserError, runtime.ExportError):
        case.read(directory)  # imports what errors need
    found: dict[str, Any] = {"counts": {}, "faults": [], "seconds": 0.0, "excess": 0}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    tracemalloc.start()
    expected = summary if mode == "damage" and case.forge else None

    def mutate(number: int) -> None:
        fill(directory, honest)
        rng = Random(f"{label} {number}")
        if mode == "forge" and case.forge:
            case.forge(rng, directory)
        else:
            damage(rng, directory, case)

    for number in numbers:
        at.write_text(json.dumps([label, number, found]))
        mutate(number)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        began = time.monotonic()
        verdict, excess = attempt(case, directory, watch, expected)
        if excess > case.spare:  # again: what is imported for the first time is not the file's
            mutate(number)
            verdict, excess = attempt(case, directory, watch, expected)
        faulthandler.cancel_dump_traceback_later()
        found["seconds"] = max(found["seconds"], time.monotonic() - began)
        found["excess"] = max(found["excess"], excess)
        kind = verdict.partition(":")[0]
        found["counts"][kind] = found["counts"].get(kind, 0) + 1
        if kind == "fault":
            found["faults"].append((number, verdict))
    tracemalloc.stop()
    return found


def main(arguments: list[str]) -> None:
    room, numbers = Path(arguments[0]), range(int(arguments[1]), sum(map(int, arguments[1:3])))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        directory = Path(os.path.realpath(scratch)) / "parts" / "files"
        directory.parent.mkdir()
        watch = Watch(directory)
        for label in arguments[3:]:
            origin = room / label.split(":")[0] / "honest"
            honest = {
                path.relative_to(origin).as_posix(): path.read_bytes() for path in files_of(origin)
            }
            found = read_all(label, honest, numbers, watch, room / "at")
            print(json.dumps({"label": label, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
