"""Trackers get the rows of `metrics.jsonl`, each once, and never disturb a run."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_command import assert_same_run, rows, train_arguments, wait_for_rows

from int_lm import config, resume
from int_lm.errors import UserError
from int_lm.training import track
from int_lm.training.metrics_file import MetricsFile, flat
from int_lm.training.track import Trackers
from int_lm.training.track_kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
# Rows of a process that is killed, or ends; it goes on from a step if one is named.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from int_lm.training.metrics_file import MetricsFile, flat
from int_lm.training.track import Trackers
root, name, resumed, last, end, pause = Path(sys.argv[1]), *sys.argv[2:]
first = int(resumed or 0)
with MetricsFile(root / "metrics.jsonl") as metrics, Trackers([name], print, print) as trackers:
    metrics.truncate_after(first if resumed else -1)
    known = first if resumed else None
    trackers.start(root, known, metrics.rows(), {"run": {"steps": 60, "dir": str(root)}})
    metrics.follow(trackers.add)
    for step in range(first + 5, int(last) + 1, 5):
        metrics.append({"step": step, "seconds": step / 8, "valid": 1 / step, "weights_hash": "ab",
                        "vote_agreement": {"head": 0.5, "norm": None}, "entropy": {"mix": [1, 2]}})
    if end == "killed":
        time.sleep(float(pause))  # Trackio writes every half second
        os.kill(os.getpid(), signal.SIGKILL)
"""


def records(data: bytes) -> list[bytes]:
    """The records of a TensorBoard event file: length, its check sum, data, their check sum."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        found.append(data[at + 12 : at + 12 + size])
        at += 16 + size
    return found


def tensorboard_rows(root: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of every row in all event files of a run."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted((root / "tensorboard").iterdir()):
        for record in records(path.read_bytes()):
            event = event_pb2.Event.FromString(record)
            numbers = {v.tag: v.simple_value for v in event.summary.value if v.tag[:6] != "config"}
            if numbers:
                found.append((event.step, numbers))
    return found


def trackio_rows(root: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of every row in Trackio's database; a process of its own reads it."""
    name = f"{root.name}-{json.loads((root / 'trackers.json').read_text())['identifier']}"
    program = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage;"
        "print(json.dumps(SQLiteStorage.get_logs('int_lm', sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, check=True)
    found = json.loads(done.stdout)
    return [(row.pop("step"), row) for row in found]


def wandb_rows(root: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, values) of every row in all files of Weights & Biases.

    A file is a head of 7 bytes, then blocks of 32 KiB with pieces of records, each behind 7 bytes:
    check sum, length, and whether it is whole (1), the first, a middle or the last piece.
    """
    record_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found, block = [], 1 << 15
    for path in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        data, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if at % block > block - 7:
                at += block - at % block
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            record += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                history = record_pb2.Record.FromString(record).history
                values = {
                    i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item
                }
                if values:
                    found.append((values.pop("_step"), values))
                record = b""
    return found


READERS: dict[str, Callable[[Path], list[tuple[int, dict[str, Any]]]]] = {
    "tensorboard": tensorboard_rows,
    "trackio": trackio_rows,
    "wandb": wandb_rows,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory; trackers keep what is theirs beside it, and know of no account."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "run"
    root.mkdir()
    return root


def rows_of(
    place: Path, name: str, resumed: int | None, last: int, end: str = "", pause: float = 0
) -> str:
    """Run `PROGRAM`; returns what it said."""
    first = "" if resumed is None else str(resumed)
    arguments = [sys.executable, "-c", PROGRAM, str(place), name, first, str(last), end, str(pause)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "end", "pause"),
    [
        ("tensorboard", "killed", 0),
        pytest.param("trackio", "killed", 0, marks=pytest.mark.slow),
        pytest.param("trackio", "killed", 1.2, marks=pytest.mark.slow),
        ("wandb", "killed", 0),
        pytest.param("wandb", "", 0, marks=pytest.mark.slow),
    ],
)
def test_no_step_is_lost_or_doubled(place: Path, name: str, end: str, pause: float) -> None:
    """By a kill, and by a run that goes on from a checkpoint before its last rows."""
    pytest.importorskip(KINDS[name].package)
    rows_of(place, name, None, 45, end, pause)
    identifier = json.loads((place / "trackers.json").read_text())["identifier"]
    said = rows_of(place, name, 20, 60)
    assert said.startswith(f"tracked by {name}: ") and said.count("\n") == 1, said
    assert json.loads((place / "trackers.json").read_text()) == {"identifier": identifier}
    read = READERS[name](place)
    kept = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in read] == [row["step"] for row in kept] == list(range(5, 65, 5))
    for (_, values), row in zip(read, kept, strict=True):
        assert values["vote_agreement/head"] == 0.5 and "vote_agreement/norm" not in values
        assert (values["entropy/mix/0"], values["entropy/mix/1"]) == (1, 2)
        assert values["valid"] == pytest.approx(row["valid"], rel=1e-6)
        assert values["seconds"] == row["seconds"]


@pytest.mark.parametrize(
    "name",
    [
        "tensorboard",
        pytest.param("trackio", marks=pytest.mark.slow),
        pytest.param("wandb", marks=pytest.mark.slow),
    ],
)
def test_a_new_run_in_the_same_directory_is_another_one(place: Path, name: str) -> None:
    """It has another identifier, and no row of the old one."""
    pytest.importorskip(KINDS[name].package)
    rows_of(place, name, None, 10)
    before = json.loads((place / "trackers.json").read_text())
    rows_of(place, name, None, 15)
    assert json.loads((place / "trackers.json").read_text()) != before
    own = [step for step, _ in READERS[name](place)]
    assert own == ([5, 10] if name == "wandb" else []) + [5, 10, 15]


def test_a_viewer_forgets_the_event_files_of_before(place: Path) -> None:
    """TensorBoard, which reads while the run is killed and goes on, shows every step once."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip(module).EventAccumulator(str(place / "tensorboard"))
    rows_of(place, "tensorboard", None, 45, "killed")
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("valid")] == list(range(5, 50, 5))
    rows_of(place, "tensorboard", 20, 60)
    accumulator.Reload()
    shown = accumulator.Scalars("valid")
    assert [event.step for event in shown] == list(range(5, 65, 5))
    seconds = [event.wall_time - shown[0].wall_time for event in shown]
    assert seconds == pytest.approx([(step - 5) / 8 for step in range(5, 65, 5)], abs=3)
    assert (
        "steps | 60"
        in accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_a_tracker_that_cannot_start_is_said_once(place: Path) -> None:
    """The others go on, and no exception reaches the run."""
    pytest.importorskip("tensorboardX")
    (place / "tensorboard").write_text("in the way")
    said: list[str] = []
    warned: list[str] = []
    with Trackers(["tensorboard", "tensorboard"], said.append, warned.append) as trackers:
        trackers.start(place, None, [], {})
        trackers.add({"step": 1})
        trackers.add({"step": 2})
    assert said == [] and len(warned) == 1
    assert warned[0].startswith("run.track tensorboard failed: [Errno 17] File exists")
    assert "training goes on without it" in warned[0]


def test_a_full_disk_ends_the_tracker_alone(place: Path) -> None:
    """One sentence; the rows of the file go on, and a later start hands over what is missing."""
    pytest.importorskip("tensorboardX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    warned: list[str] = []
    nothing: list[str] = []
    with MetricsFile(place / "metrics.jsonl") as metrics:
        with Trackers(["tensorboard"], nothing.append, warned.append) as trackers:
            trackers.start(place, None, [], {})
            metrics.follow(trackers.add)
            metrics.append({"step": 1, "valid": 0.5})
            [path] = (place / "tensorboard").iterdir()
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
            try:
                for step in (2, 3):
                    metrics.append({"step": step, "valid": 0.5})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            metrics.append({"step": 4, "valid": 0.5})
        assert len(warned) == 1 and "File too large" in warned[0]
        assert [row["step"] for row in metrics.rows()] == [1, 2, 3, 4]
        with Trackers(["tensorboard"], nothing.append, warned.append) as trackers:
            trackers.start(place, 4, metrics.rows(), {})
    assert [step for step, _ in tensorboard_rows(place)] == [1, 2, 3, 4]
    assert len(warned) == 1


def test_names_of_nested_values() -> None:
    """They are joined by slashes; what is not known is left out."""
    row = {"step": 3, "a": {"b": [1, None, 2.5], "c": {"d": "e"}}, "none": None}
    assert flat(row) == {"step": 3, "a/b/0": 1, "a/b/2": 2.5, "a/c/d": "e"}


@pytest.mark.parametrize(
    "words", [["tensorboard", "wandb"], ["tensorboard,wandb"], "tensorboard,wandb"]
)
def test_trackers_in_a_configuration(words: Any) -> None:
    """One after the other, or with commas; an unknown one is refused with the nearest name."""
    settings = config.from_dict({"run": {"track": words}})
    assert settings.run.track == ("tensorboard", "wandb")
    with pytest.raises(UserError, match="run.track in .*'tensorbord'.*did you mean tensorboard"):
        config.from_dict({"run": {"track": ["tensorbord"]}})


def test_processes_may_differ_in_trackers() -> None:
    """Only the first one has them; the rest of the configuration must be the same."""
    tracked, other = (
        config.from_dict({"run": run}) for run in ({"track": ["wandb"]}, {"dir": "elsewhere"})
    )
    assert resume.shared_configuration(tracked) == resume.shared_configuration(other)
    longer = config.from_dict({"run": {"steps": 7}})
    assert resume.shared_configuration(tracked) != resume.shared_configuration(longer)


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_missing_package_is_said_before_anything_is_prepared(
    command: str, run_command, tmp_path: Path, text: Path
) -> None:
    """Exit code 2, one sentence with the extra, and nothing written."""
    hiding, run = tmp_path / "hiding", tmp_path / "run"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboardX'] = None\n")
    flags = ["--run.dir", str(run), "--run.track", "tensorboard"]
    if command == "train":
        flags += ["--data.path", str(text), "--data.shards", str(tmp_path / "shards")]
    else:
        flags += ["--export", str(tmp_path / "nothing"), "--reward", "digit_sums"]
    done = run_command(
        "-m", "int_lm", command, *flags, env={"PYTHONPATH": f"{hiding}{os.pathsep}{ROOT}"}
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith(
        "error: run.track names tensorboard, which needs the package tensorboardX: pip install "
        "'int-lm[tensorboard]', or leave tensorboard out of run.track\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["hiding"]


@pytest.mark.slow
def test_a_tracked_run_that_is_killed_has_the_same_bits(
    place: Path, text: Path, whole: tuple[Path, str], command_environment: dict[str, str]
) -> None:
    """Those of an untracked one that nothing disturbed, and every row in every tracker, once."""
    names = [name for name in READERS if _installed(name)]
    environment = {**command_environment, "TRACKIO_DIR": os.environ["TRACKIO_DIR"]}
    first = train_arguments(text, place)
    command = [sys.executable, str(ROOT / "train.py"), *first]
    tracked = [*command, "--run.track", ",".join(names)]
    # not tracked at first: a tracker that is named later gets the rows before, too
    for arguments, count in ((command, 4), (tracked, 9)):
        process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.DEVNULL, text=True, cwd=place.parent
        )
        wait_for_rows(place, count, process)
        process.kill()
        process.wait()
    done = subprocess.run(tracked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_run(place, whole[0])
    for name in names:
        read = [step for step, _ in READERS[name](place)]
        assert (name, read) == (name, [row["step"] for row in rows(place)])


def _installed(name: str) -> bool:
    try:
        track.check([name])
    except UserError:
        return False
    return True
