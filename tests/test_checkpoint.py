"""Checkpoints: what is saved comes back bit for bit, and nothing else ever does."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from int_lm.errors import UserError
from int_lm.files import atomic, checkpoint, checkpointer, digest, lock, storage
from int_lm.files.checkpointer import Checkpointer

ROOT = Path(__file__).resolve().parent.parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    weights: Any
    members: Any


def state_of(step: int) -> State:
    """Arrays of several dtypes and ranks that differ from step to step."""
    rng = np.random.default_rng(step)
    return State(
        weights={
            "head": jnp.asarray(rng.integers(-127, 128, (40, 30)), jnp.int8),
            "blocks": {"gate": rng.integers(-127, 128, (2, 3, 3)).astype(np.int8)},
        },
        members={
            "hidden": rng.integers(-127, 128, (2, 8, 30)).astype(np.int8),
            "remainder": jnp.asarray(rng.integers(-999, 999, (5,)), jnp.int16),
            "count": jnp.int32(step),
        },
    )


def host_of(step: int) -> dict[str, Any]:
    return {"config": {"model": {"width": 64}}, "position": [step, 1.5], "tokenizer": {"id": "x"}}


def assert_equal(restored: checkpoint.Restored | None, step: int) -> None:
    assert restored is not None
    assert restored.step == step
    assert restored.host == host_of(step)
    expected = state_of(step)
    assert jax.tree.structure(restored.state) == jax.tree.structure(expected)
    for found, wanted in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(expected), strict=True
    ):
        assert isinstance(found, np.ndarray)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, np.asarray(wanted), strict=True)


def save(writer: Checkpointer, step: int, bits_per_byte: float | None = None) -> None:
    writer.save(step, state_of(step), host_of(step), valid_bits_per_byte=bits_per_byte)


def files_of(step_directory: Path) -> list[Path]:
    return sorted(
        path.relative_to(step_directory) for path in step_directory.rglob("*") if path.is_file()
    )


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def wait_for_failure(writer: Checkpointer) -> str:
    """Poll as the training loop does until the background save has failed; its message."""
    for _ in range(1000):
        if failure := writer.poll():
            return str(failure)
        time.sleep(0.01)
    pytest.fail("no failure was reported")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with sound checkpoints of steps 1, 2 and 3; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("sound") / "checkpoints"
    with Checkpointer(directory, keep=3) as writer:
        for step in (1, 2, 3):
            save(writer, step, 5.0 - step)
    return directory


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoints"))


def test_what_is_saved_comes_back(sound: Path) -> None:
    """The newest step by default, any step by number, with dtypes, shapes, values and host data."""
    assert checkpoint.steps(sound) == [1, 2, 3]
    assert_equal(checkpoint.restore(sound, state_of(0)), 3)
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state_of(0)))
    assert_equal(checkpoint.restore(sound, abstract, step=1), 1)
    assert checkpoint.read_host(sound) == host_of(3)
    assert checkpoint.read_host(sound, 2) == host_of(2)
    assert checkpoint.latest_step(sound) == 3
    assert checkpoint.best_of(checkpoint.evaluations(sound)) == 3


@pytest.fixture(params=["copied", "waited for"])
def arrays_may_change(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the same arrays as small ones, which are copied, and as large ones, which are not."""
    if request.param == "waited for":
        monkeypatch.setattr(checkpointer, "COPIED_BYTES", 0)


@pytest.mark.usefixtures("arrays_may_change")
def test_later_changes_of_an_array_do_not_reach_the_checkpoint(tmp_path: Path) -> None:
    """What is saved is the value at the call: the training step may reuse the memory."""
    array = np.zeros((300, 1000), np.int8)
    with Checkpointer(tmp_path, keep=1) as writer:
        writer.save(1, {"w": array}, {}, valid_bits_per_byte=None)
        array[:] = 7
    restored = checkpoint.restore(tmp_path, {"w": array})
    assert restored is not None
    assert not restored.state["w"].any()


def test_lasting_arrays_are_written_behind_the_callers_back(tmp_path: Path) -> None:
    """However large, they are neither copied nor waited for, and come back."""
    with Checkpointer(tmp_path, keep=1) as writer:
        writer.save(1, state_of(1), host_of(1), valid_bits_per_byte=None, lasting=True)
        assert writer.wait()
    assert_equal(checkpoint.restore(tmp_path, state_of(0)), 1)


SAVES_TABLES = """
import re, sys
from pathlib import Path
import numpy as np
from int_lm.files.checkpointer import Checkpointer

def of_process(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def save(tables):
    step = writer._saving_step + 1
    writer.save(max(1, step), tables, {}, valid_bits_per_byte=None)
    assert writer.wait()

rng, count, rows = np.random.default_rng(0), 6, 1 << 17
tables = {f"t{i}": np.zeros((rows, 256), np.int8) for i in range(count)}
for table in tables.values():
    table[:: 8] = rng.integers(-3, 4, (rows // 8, 256))
    table += 0  # every page is there
with Checkpointer(sys.argv[1], keep=1) as writer:
    save({"t": tables["t0"][:9]})  # what a first save imports does not count
    before = of_process("VmRSS")
    save(tables)
    print((of_process("VmHWM") - before) / sum(table.nbytes for table in tables.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_saving_large_tables_takes_little_memory(tmp_path: Path) -> None:
    """Two hundred megabytes of tables, saved in less than a third of that besides."""
    done = subprocess.run(
        [sys.executable, "-c", SAVES_TABLES, tmp_path],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert float(done.stdout) < 0.33


def test_reading_changes_nothing(copy: Path) -> None:
    """Readers leave the directory as it is, half-written steps of a running process included."""
    (copy / "4.orbax-checkpoint-tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    checkpoint.read_host(copy)
    assert_equal(checkpoint.restore(copy, state_of(0)), 3)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_every_file_is_listed_as_sha256sum_reads_it(sound: Path) -> None:
    """`sha256sum -c files.sha256` accepts the list, and no file is missing from it."""
    text = (sound / "3" / digest.FILE_DIGESTS).read_text()
    listed = [line.split("  ")[1] for line in text.splitlines() if not line.startswith("#")]
    assert sorted([*listed, digest.FILE_DIGESTS]) == sorted(map(str, files_of(sound / "3")))
    if program := shutil.which("sha256sum"):
        subprocess.run(
            [program, "--check", "--quiet", digest.FILE_DIGESTS], cwd=sound / "3", check=True
        )


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_to_any_file_is_caught_and_named(copy: Path, damage: str) -> None:
    """One flipped bit, a lost tail or a lost file: the file is named, the step before is used."""
    chance = random.Random(0)
    names = files_of(copy / "3")
    assert len(names) >= 10
    for name in names:
        path = copy / "3" / name
        data = path.read_bytes()
        assert data, name
        if damage == "flip":
            flip_bit(path, chance.randrange(8 * len(data)))
        elif damage == "truncate":
            path.write_bytes(data[: len(data) // 2])
        elif name.name != digest.FILE_DIGESTS:  # without that one the arrays are still verified
            path.unlink()
        else:
            continue
        said: list[str] = []
        assert_equal(checkpoint.restore(copy, state_of(0), say=said.append), 2)
        assert len(said) == 1
        assert f"3/{name} " in said[0]
        with pytest.raises(UserError, match=f"3/{name} "):
            checkpoint.restore(copy, state_of(0), step=3)
        assert checkpoint.read_host(copy) == host_of(2)
        path.write_bytes(data)


# Orbax gives up on a damaged file while its other reads go on, and these find no event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_the_list_of_files_no_bit_yields_other_weights(copy: Path) -> None:
    """A step killed before `files.sha256` counts, but only with exactly the values saved."""
    (copy / "3" / digest.FILE_DIGESTS).unlink()
    assert_equal(checkpoint.restore(copy, state_of(0)), 3)
    chance = random.Random(1)
    caught = 0
    for name in files_of(copy / "3"):
        path = copy / "3" / name
        data = path.read_bytes()
        for _ in range(1 if name.parts[0] != "state" else 3):
            flip_bit(path, chance.randrange(8 * len(data)))
            said: list[str] = []
            restored = checkpoint.restore(copy, state_of(0), say=said.append)
            assert_equal(restored, 2 if said else 3)
            caught += len(said)
            path.write_bytes(data)
    assert caught > 10


def test_what_orbax_writes_by_default_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays in the files of one key-value store, as checkpoints once were."""
    handler = storage.orbax_module().PyTreeCheckpointHandler
    with monkeypatch.context() as patched:
        patched.setattr(
            storage,
            "tree_handler",
            lambda: handler(multiprocessing_options=storage.processes_of_orbax()),
        )
        with Checkpointer(tmp_path, keep=1) as writer:
            save(writer, 1)
    assert (tmp_path / "1" / "state" / "manifest.ocdbt").exists()
    assert_equal(checkpoint.restore(tmp_path, state_of(0)), 1)


def test_large_arrays_are_divided_among_files(tmp_path: Path) -> None:
    """Files of 2 MB, but not more than some 64 of an array; all of it comes back."""
    rng = np.random.default_rng(3)
    arrays = {
        "deep/rows": rng.integers(-9, 9, (5, 1 << 20)).astype(np.int8),
        "small": np.arange(9, dtype=np.int32),
    }
    with Checkpointer(tmp_path, keep=1) as writer:
        writer.save(1, arrays, host_of(1), valid_bits_per_byte=None)
    written = [name for name in files_of(tmp_path / "1" / "state") if name.name[0].isdigit()]
    assert sorted({name.parent.as_posix() for name in written}) == ["deep/rows", "small"]
    assert 3 <= len(written) - 1 <= 6
    restored = checkpoint.restore(tmp_path, jax.tree.map(np.zeros_like, arrays))
    assert restored is not None
    for name, array in arrays.items():
        np.testing.assert_array_equal(restored.state[name], array, strict=True)
    many = storage.arguments({"many": np.broadcast_to(np.int8(0), (1 << 30,))}).save_args["many"]
    assert many.chunk_byte_size == 1 << 24


READ_ALL = """
import sys
import numpy as np
from int_lm import errors
from int_lm.files import checkpoint
target = {f"array_{i}": np.empty((32, 32), np.int8) for i in range(24)}
for directory in sys.argv[1:]:
    try:
        checkpoint.restore(directory, target)
        print("read")
    except errors.UserError as error:
        print(error)
"""


def test_of_many_arrays_that_cannot_be_read_nothing_goes_on_behind(tmp_path: Path) -> None:
    """Where one fails, the others are still being opened: Orbax would close the loop under them."""
    rng = np.random.default_rng(1)
    arrays = {f"array_{i}": rng.integers(-127, 128, (32, 32)).astype(np.int8) for i in range(24)}
    with Checkpointer(tmp_path / "sound", keep=1) as writer:
        writer.save(1, arrays, host_of(1), valid_bits_per_byte=None)
    (tmp_path / "sound" / "1" / digest.FILE_DIGESTS).unlink()
    directories = []
    for place, path in enumerate(files_of(tmp_path / "sound")):
        if path.parent.name.startswith("array_") and path.name != ".zarray":
            copy = shutil.copytree(tmp_path / "sound", tmp_path / f"flipped_{place}")
            changed = copy / path
            flip_bit(changed, 0)  # of what says that it is compressed
            directories.append(str(copy))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *directories], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) == len(directories) == 24
    assert all("1/state cannot be read" in sentence for sentence in told)


def test_host_data_that_differs_from_its_own_digest_is_damage(copy: Path) -> None:
    """One digit of host.json changed, with no list of files to tell: the step does not count."""
    (copy / "3" / digest.FILE_DIGESTS).unlink()
    path = copy / "3" / "host" / "host.json"
    path.write_text(path.read_text().replace('"width": 64', '"width": 65'))
    said: list[str] = []
    assert_equal(checkpoint.restore(copy, state_of(0), say=said.append), 2)
    assert "3/host/host.json has changed" in said[0]
    assert checkpoint.read_host(copy) == host_of(2)


def test_an_array_that_differs_from_its_own_digest_is_damage(copy: Path) -> None:
    """A damaged block of data inside sound files (a bit lost before they were hashed) is caught."""
    step = copy / "3"
    shutil.rmtree(step / "state")
    shutil.copytree(copy / "2" / "state", step / "state")
    digest.seal(step)
    said: list[str] = []
    assert_equal(checkpoint.restore(copy, state_of(0), say=said.append), 2)
    assert "3/state holds other values of members/count" in said[0]


def test_a_renamed_step_is_refused(copy: Path) -> None:
    """A step's data does not pass for that of another step."""
    (copy / "3").rename(copy / "7")
    said: list[str] = []
    assert_equal(checkpoint.restore(copy, state_of(0), say=said.append), 2)
    assert "7/host/host.json belongs to step 3" in said[0]


def test_if_every_step_is_damaged_it_says_so(copy: Path) -> None:
    """The error names the newest damaged file and nothing is deleted."""
    for step in (1, 2, 3):
        flip_bit(copy / str(step) / "host" / "host.json", 100)
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged \(3/host/host.json"):
        checkpoint.restore(copy, state_of(0))
    assert checkpoint.steps(copy) == [1, 2, 3]


def test_a_run_that_fell_back_writes_the_later_steps_again(copy: Path) -> None:
    """After `discard_after` the damaged step is gone and saved anew; before, that is an error."""
    flip_bit(copy / "3" / "host" / "host.json", 100)
    with Checkpointer(copy, keep=3) as writer:
        for _ in range(2):  # another one's does not become ours by trying again
            save(writer, 3)
            assert "the directory holds the newer checkpoint 3" in wait_for_failure(writer)
        writer.discard_after(2)
        assert checkpoint.steps(copy) == [1, 2]
        save(writer, 3, 9.0)
        writer.discard_after(2)
        save(writer, 3, 9.0)
    assert_equal(checkpoint.restore(copy, state_of(0)), 3)
    assert checkpoint.best_of(checkpoint.evaluations(copy)) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int) -> None:
    """The best step stays, however old, across restarts and steps that were not evaluated."""
    with Checkpointer(tmp_path, keep=keep) as writer:
        for step, bits_per_byte in enumerate((3.0, 1.0, 2.0, 5.0), start=1):
            save(writer, step, bits_per_byte)
    assert checkpoint.steps(tmp_path) == {1: [2, 4], 2: [2, 3, 4]}[keep]
    with Checkpointer(tmp_path, keep=keep) as writer:
        for step in (5, 6, 7):
            save(writer, step)
    assert checkpoint.steps(tmp_path) == {1: [2, 7], 2: [2, 6, 7]}[keep]
    assert checkpoint.best_of(checkpoint.evaluations(tmp_path)) == 2
    with Checkpointer(tmp_path, keep=keep) as writer:
        save(writer, 8, 1.0)
        save(writer, 9, None)
    assert checkpoint.steps(tmp_path) == [8, 9]


def test_without_any_evaluation_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Steps without a metric are not kept for ever, and there is no best one."""
    with Checkpointer(tmp_path, keep=2) as writer:
        for step in (1, 2, 3, 4):
            save(writer, step)
    assert checkpoint.steps(tmp_path) == [3, 4]
    assert checkpoint.best_of(checkpoint.evaluations(tmp_path)) is None


def test_what_killed_saves_left_behind_is_removed(copy: Path) -> None:
    """Temporary directories go when the next run starts, and never count as steps."""
    for name in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-123"):
        shutil.copytree(copy / "3", copy / name)
    assert checkpoint.steps(copy) == [1, 2, 3]
    with Checkpointer(copy, keep=3):
        assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]


KILLED = """
import os, random, signal, sys, time
sys.path[:0] = sys.argv[2:]
import orbax.checkpoint  # before the fork, so that every child starts at once
from int_lm.files import checkpoint
from int_lm.files.checkpointer import Checkpointer
from test_checkpoint import assert_equal, save, state_of
directory, chance = sys.argv[1], random.Random(0)

def keep_saving(ready):
    with Checkpointer(directory, keep=2) as writer:
        restored = checkpoint.restore(directory, state_of(0), say=sys.exit)
        step = restored.step if restored else 0
        assert restored is None or assert_equal(restored, step) is None
        assert checkpoint.latest_step(directory) in (None, step)
        while True:
            step += 1
            save(writer, step)
            os.write(ready, b".")
            writer.poll()

for _ in range(6):
    watch, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            keep_saving(ready)
        finally:
            os._exit(1)
    os.close(ready)
    for _ in range(2):  # saves begun, so at least one is complete
        os.read(watch, 1)
    time.sleep(chance.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(watch)
"""


def test_a_kill_at_any_moment_leaves_a_whole_newest_step(tmp_path: Path) -> None:
    """SIGKILL while saving, again and again: the newest step is whole and its values are right."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path, ROOT, ROOT / "tests"],
        check=True,
        timeout=600,
    )
    newest = checkpoint.latest_step(tmp_path)
    assert newest is not None
    assert newest >= 6
    assert_equal(checkpoint.restore(tmp_path, state_of(0), say=pytest.fail), newest)


def changed(**members: Any) -> State:
    state = state_of(0)
    return State(state.weights, {**state.members, **members})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            changed(hidden=np.zeros((2, 8, 30), np.int16)),
            r"holds int8\[2, 8, 30\] at members/hidden, expected int16\[2, 8, 30\]",
        ),
        (
            changed(hidden=np.zeros((2, 4, 30), np.int8)),
            r"holds int8\[2, 8, 30\] at members/hidden, expected int8\[2, 4, 30\]",
        ),
        (
            changed(momentum=np.zeros(3, np.int8)),
            r"holds nothing at members/momentum, expected int8\[3\]",
        ),
        (
            State(
                state_of(0).weights, {"count": np.int32(0), "hidden": state_of(0).members["hidden"]}
            ),
            r"holds int16\[5\] at members/remainder, expected nothing",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(sound: Path, expected: State, message: str) -> None:
    """Another dtype, shape, a missing or an extra leaf: refused with its path and both sides."""
    with pytest.raises(UserError, match=message):
        checkpoint.restore(sound, expected)


def test_another_format_version_is_refused(copy: Path) -> None:
    """A checkpoint of a later program is not read, and not taken for a damaged one either."""
    path = copy / "3" / "host" / "host.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    document["format"] += 1
    path.write_text(json.dumps({**document, "sha256": digest.of_json(document)}))
    digest.seal(copy / "3")
    with pytest.raises(UserError, match="has format version 2, this program reads version 1"):
        checkpoint.restore(copy, state_of(0))


def test_no_checkpoint_is_told_apart_from_a_bad_one(tmp_path: Path, sound: Path) -> None:
    """A run without checkpoints starts anew; asking for one that is not there is an error."""
    for empty in (tmp_path, tmp_path / "missing"):
        assert checkpoint.restore(empty, state_of(0)) is None
        assert checkpoint.latest_step(empty) is None
        assert checkpoint.best_of(checkpoint.evaluations(empty)) is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoint.read_host(empty)
    with pytest.raises(UserError, match="no checkpoint 9 in .*; it holds 1, 2, 3"):
        checkpoint.restore(sound, state_of(0), step=9)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no write make a file larger than `size` bytes: stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("arrays_may_change")
def test_a_save_that_fails_is_reported_and_spares_the_steps_before(tmp_path: Path) -> None:
    """`poll` says what and why, once; the step before is intact and a later save succeeds."""
    large = {"w": np.random.default_rng(0).integers(0, 255, 400_000).astype(np.uint8)}
    with Checkpointer(tmp_path, keep=1) as writer:
        writer.save(1, large, {}, valid_bits_per_byte=1.0)
        assert writer.wait()
        with largest_file(100_000):
            writer.save(2, large, {}, valid_bits_per_byte=0.5)
            message = wait_for_failure(writer)
        assert f"checkpoint 2 could not be written to {tmp_path}: File too large;" in message
        assert "the newest there is 1" in message
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert checkpoint.restore(tmp_path, large) is not None
        assert writer.poll() is None
        assert not writer.wait()
        writer.save(3, large, {}, valid_bits_per_byte=None)
        assert writer.wait()
    assert checkpoint.steps(tmp_path) == [1, 3]
    assert checkpoint.best_of(checkpoint.evaluations(tmp_path)) == 1


SAVES_IN_VAIN = """
import gc, resource, sys, threading
import numpy as np
from int_lm.files.checkpointer import Checkpointer

beginning = getattr(threading, "_maintain_shutdown_locks", lambda: None)  # not from Python 3.13 on

def beginning_with_garbage():
    gc.collect()
    beginning()

arrays = {f"a{i}": np.random.default_rng(i).bytes(40_000) for i in range(8)}
arrays = {name: np.frombuffer(data, np.uint8) for name, data in arrays.items()}
writer = Checkpointer(sys.argv[1], keep=1)
writer.save(1, arrays, {}, valid_bits_per_byte=None)
assert writer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
threading._maintain_shutdown_locks = beginning_with_garbage
gc.freeze()  # what is there already: collecting takes less time
for step in range(2, 6):
    writer.save(step, arrays, {}, valid_bits_per_byte=None)
    assert not writer.wait()
    assert writer.poll()
"""


@pytest.mark.parametrize("largest", [0, 1_000, 10_000])
def test_saves_that_fail_leave_nothing_that_blocks_or_prints(tmp_path: Path, largest: int) -> None:
    """Whatever fails, metadata or arrays: garbage may be collected while a thread is started.

    Python up to 3.12 holds a lock then, which asking a thread whether it lives takes as well.
    """
    done = subprocess.run(
        [sys.executable, "-c", SAVES_IN_VAIN, tmp_path, str(largest)],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""


def test_a_failed_save_is_due_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 1 s, 2 s, 4 s ... 300 s, after a success not at all; `close` raises the last one."""
    now = 1000.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(checkpointer, "time", clock)
    with Checkpointer(tmp_path, keep=1) as writer:
        assert not writer.retry_due()
        for wait in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
            writer.failed(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            now += wait - 0.5
            assert not writer.retry_due()
            now += 0.5
            assert writer.retry_due()
        save(writer, 1)
        assert writer.wait()
        assert not writer.retry_due()
        assert writer.poll() is None
        writer.failed(2, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        now += 1
        assert writer.retry_due()
        with pytest.raises(UserError, match="No space left on device.* newest there is 1; mend"):
            writer.close()


def test_a_full_disk_at_the_last_moment_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of digests cannot be written: an error, yet the step is whole; listed later."""

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with Checkpointer(tmp_path, keep=1) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write", full)
            save(writer, 1)
            assert not writer.wait()
        assert "No space left on device; the newest there is 1" in str(writer.poll())
        assert_equal(checkpoint.restore(tmp_path, state_of(0), say=pytest.fail), 1)
        assert not digest.check(tmp_path / "1")
        save(writer, 1)
    assert digest.check(tmp_path / "1")


def test_an_old_step_that_cannot_be_removed_does_not_undo_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax has written the new step by then: the next try lists its digests, and is no failure."""
    manager = storage.orbax_module().CheckpointManager
    whole = manager.save

    def cannot_remove(self: Any, step: int, **more: Any) -> bool:
        whole(self, step, **more)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "1"))

    with Checkpointer(tmp_path, keep=2) as writer:
        save(writer, 1)
        assert writer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(manager, "save", cannot_remove)
            save(writer, 2)
            assert not writer.wait()
        assert "Read-only file system; the newest there is 2" in str(writer.poll())
        save(writer, 2)
        assert writer.wait()
    assert digest.check(tmp_path / "2")
    assert_equal(checkpoint.restore(tmp_path, state_of(0), say=pytest.fail), 2)


def test_a_directory_of_another_process_is_not_written_to(tmp_path: Path) -> None:
    """The run directory is gone, or another run's: nothing is written; back again, it is."""
    run, away = tmp_path / "run", tmp_path / "away"
    with (
        lock.hold(run, "wait") as held,
        Checkpointer(run / "checkpoints", keep=1, lock=held) as writer,
    ):
        run.rename(away)
        save(writer, 1)
        assert "No such file or directory; no checkpoint is there" in str(writer.poll())
        assert not run.exists()
        with lock.hold(run, "wait"):
            save(writer, 2)
            assert "another process" in str(writer.poll())
            assert [path.name for path in run.iterdir()] == [lock.FILE]
        away.rename(run)
        save(writer, 3)
    assert checkpoint.steps(run / "checkpoints") == [3]


def test_an_error_on_the_way_out_does_not_hide_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If training fails and then the last save too, the failure of training is what is raised."""
    monkeypatch.setattr(digest, "seal", lambda directory: 1 / 0)
    with pytest.raises(KeyError), Checkpointer(tmp_path, keep=1) as writer:
        save(writer, 1)
        raise KeyError


def test_a_directory_that_went_away_is_reported(tmp_path: Path) -> None:
    """A file in place of the directory: a clear error from `save` or the next `poll`."""
    directory = tmp_path / "checkpoints"
    with Checkpointer(directory, keep=1) as writer:
        save(writer, 1)
        assert writer.wait()
        directory.rename(tmp_path / "moved")
        directory.touch()
        save(writer, 2)
        assert "checkpoint 2 could not be written" in wait_for_failure(writer)
        with pytest.raises(UserError, match="checkpoint 2 could not be written"):
            writer.close()
        directory.unlink()
        (tmp_path / "moved").rename(directory)
    assert_equal(checkpoint.restore(directory, state_of(0)), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_reported(copy: Path) -> None:
    """Without permission to write, the error says so and the steps stay readable."""
    with Checkpointer(copy, keep=3) as writer:
        copy.chmod(0o555)
        try:
            save(writer, 4)
            with pytest.raises(UserError, match="Permission denied"):
                writer.close()
        finally:
            copy.chmod(0o755)
    assert_equal(checkpoint.restore(copy, state_of(0)), 3)


def test_importing_does_not_import_jax() -> None:
    """Arguments are checked before anything slow is imported."""
    program = (
        "import sys, int_lm.files.checkpointer, int_lm.resume;"
        "import int_lm.training.interrupt, int_lm.training.runlog;"
        "sys.exit(bool({'jax', 'orbax'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
