"""What a run reports: a complete metrics file without duplicates, and readable lines."""

import io
import json
import os
import pty
import resource
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from int_lm import progress
from int_lm.errors import UserError
from int_lm.progress import shown
from int_lm.training.metrics_file import MetricsFile
from int_lm.training.runlog import Console, Report, clock

ROOT = Path(__file__).resolve().parent.parent


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *steps: int) -> None:
    with MetricsFile(path) as metrics:
        for step in steps:
            metrics.append({"step": step, "value": step / 4})


def test_rows_are_appended_across_processes(tmp_path: Path) -> None:
    """A file that is opened again keeps its rows."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 10)
    write(path, 20)
    assert rows_of(path) == [{"step": s, "value": s / 4} for s in (0, 10, 20)]


def test_a_row_is_visible_at_once(tmp_path: Path) -> None:
    """Whoever follows the file, or finds it after a kill, sees every row."""
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.append({"step": 1})
        assert rows_of(tmp_path / "metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize(("resumed", "kept"), [(25, [0, 10, 20]), (20, [0, 10, 20]), (-1, [])])
def test_rows_after_the_resumed_step_are_dropped(
    tmp_path: Path, resumed: int, kept: list[int]
) -> None:
    """The resumed run writes them again, so that every step occurs once."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 10, 20, 30, 40)
    with MetricsFile(path) as metrics:
        metrics.truncate_after(resumed)
        assert [row["step"] for row in rows_of(path)] == kept
        metrics.append({"step": 30})
    assert [row["step"] for row in rows_of(path)] == [*kept, 30]


def test_a_step_never_occurs_twice(tmp_path: Path) -> None:
    """Also when the rows before come from another process."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 10)
    for step in (5, 10):
        with MetricsFile(path) as metrics, pytest.raises(ValueError, match="after step 10"):
            metrics.append({"step": step})
    with MetricsFile(path) as metrics, pytest.raises(ValueError, match="not JSON compliant"):
        metrics.append({"step": 20, "value": float("nan")})
    assert [row["step"] for row in rows_of(path)] == [0, 10]


@pytest.mark.parametrize("tail", [b'{"step": 20, "val', b'{"step": 20}', b"\0" * 700, b"\0\n\0\n"])
def test_a_torn_end_is_dropped(tmp_path: Path, tail: bytes) -> None:
    """What a kill or a power cut left of the last rows does not spoil the file."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 10)
    path.write_bytes(path.read_bytes() + tail)
    write(path, 20)
    assert [row["step"] for row in rows_of(path)] == [0, 10, 20]


def test_a_damaged_middle_is_refused(tmp_path: Path) -> None:
    """Rows that follow a line that is none of ours are not thrown away."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 10, 20)
    before = path.read_bytes().replace(b'{"step": 10', b'{"stop": 10')
    path.write_bytes(before)
    with pytest.raises(UserError, match="metrics.jsonl line 2 is not a row"):
        MetricsFile(path)
    assert path.read_bytes() == before


def test_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flush` waits for the disk: a checkpoint is never ahead of the metrics."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.append({"step": 1})
        metrics.flush()
        assert len(synced) == 1


def test_rows_that_the_file_system_refuses_are_written_later(tmp_path: Path) -> None:
    """In order, each once and whole, also the one of which a part fitted."""
    path = tmp_path / "metrics.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsFile(path) as metrics:
        metrics.append({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
        try:
            for step in (2, 3):
                with pytest.raises(OSError, match="File too large"):
                    metrics.append({"step": step})
            with pytest.raises(OSError, match="File too large"):
                metrics.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == len(b'{"step": 1}\n') + 5
        metrics.append({"step": 4})
        metrics.flush()
        assert [row["step"] for row in rows_of(path)] == [1, 2, 3, 4]


def test_an_error_on_the_way_out_does_not_hide_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full when training fails, the failure of training is what is raised."""
    with pytest.raises(KeyError), MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.append({"step": 1})
        monkeypatch.setattr(metrics, "flush", lambda: os.listdir(tmp_path / "nothing"))
        raise KeyError


def report(step: int, **values: Any) -> Report:
    return Report(
        **{
            "step": step,
            "train_bits_per_byte": 4.25,
            "train_score": None,
            "valid_bits_per_byte": None,
            "changed": 0.0123,
            "saturated": 0.0004,
            "tokens_per_second": 1234567.8,
            "seconds": 2.0 * step,
            "weights_hash": "0123456789abcdef0123",
            **values,
        }
    )


def test_lines_are_aligned_below_their_header(capsys: pytest.CaptureFixture[str]) -> None:
    """Every value ends where its column's name ends; what was not evaluated is blank."""
    with Console(steps=100, seconds=0) as console:
        console.advance(1, 2.0)
        console.report(report(10))
        console.report(report(20, valid_bits_per_byte=4.5))
    captured = capsys.readouterr()
    header, first, second = captured.out.splitlines()
    assert captured.err == ""
    assert len(header) == len(first) == len(second) <= 100
    assert " ".join(first.split()) == (
        "10 4.2500 1.230% 0.040% 1,234,568 0:20 3:00 0123456789abcdef"
    )
    assert second.split()[:3] == ["20", "4.2500", "4.5000"]
    for name, value in (("train bpb", "4.2500"), ("changed", "1.230%"), ("left", "3:00")):
        assert header.index(name) + len(name) == first.index(value) + len(value)


def test_the_header_is_repeated_when_it_has_scrolled_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After twenty lines, and after anything else that was printed between."""
    with Console(steps=100, seconds=0) as console:
        for step in range(1, 23):
            console.report(report(step))
        console.note("something else")
        console.report(report(23))
    lines = capsys.readouterr().out.splitlines()
    headers = [number for number, line in enumerate(lines) if line.split()[0] == "step"]
    assert headers == [0, 21, 25]


@pytest.mark.parametrize(
    ("steps", "seconds", "left"), [(100, 0.0, "1:30"), (100, 50.0, "0:30"), (20, 500.0, "0:10")]
)
def test_the_time_left_is_that_of_the_first_limit(
    capsys: pytest.CaptureFixture[str], steps: int, seconds: float, left: str
) -> None:
    """Steps or seconds, whichever ends first; compiling (the first step) is no measure of speed."""
    with Console(steps=steps, seconds=seconds) as console:
        console.advance(5, 15.0)
        console.report(report(10))
    assert capsys.readouterr().out.splitlines()[1].split()[6] == left


def test_before_the_speed_is_known_no_time_left_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of one step alone nothing follows."""
    with Console(steps=100, seconds=0.0) as console:
        console.report(report(1))
    assert len(capsys.readouterr().out.splitlines()[1].split()) == 7


def test_table_and_sample_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The table names every value, the sample shows prompt and text."""
    with Console(steps=1, seconds=0) as console:
        console.table("held-out text", {"unigram": 4.5, "gzip -9": 2.25})
        console.sample(10, b"def ", b"f\x1b[31m():\n\tpass\xff")
    out = capsys.readouterr().out
    assert "held-out text\n  unigram   4.5000\n  gzip -9   2.2500\n" in out
    assert "step 10" in out
    assert "\ndef f\\x1b[31m():\n\tpass\\xff\n" in out


def test_text_is_made_safe_for_a_terminal() -> None:
    """Control characters, direction overrides and invalid UTF-8 are escaped, the rest is as is."""
    assert shown("naïve 語 😀\n\ta b".encode()) == "naïve 語 😀\n\ta b"
    assert shown(b"\x00\x07\x1b\r\x7f\xc3") == r"\x00\x07\x1b\r\x7f\xc3"
    assert shown("\u202e\u2028\x9b".encode()) == r"\u202e\u2028\x9b"


def test_output_that_cannot_show_a_character_gets_an_escape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A terminal or file in ASCII does not end the run."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with Console(steps=1, seconds=0) as console:
        console.note("é")
    assert raw.getvalue() == b"\\xe9\n"


def test_without_a_terminal_there_are_no_bars(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing but lines reaches a file or a pipe."""
    with progress.bar("evaluating", 100) as update, Console(steps=2, seconds=0) as console:
        update(100)
        console.advance(1, 1.0)
    assert capfd.readouterr() == ("", "")


def test_clock() -> None:
    """Minutes and seconds, and hours where there are any."""
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 36061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "10:01:01",
    ]


TERMINAL = """
from int_lm.progress import bar
from int_lm.training.runlog import Console
with bar("evaluating", 100) as update:
    update(100)
with Console(steps=10, seconds=0) as console:
    for step in range(1, 11):
        console.advance(step, float(step))
        if step == 5:
            console.note("a line between")
"""


def test_bar_and_lines_share_a_terminal() -> None:
    """On a terminal the bars move on stderr; lines still go to stdout, whole."""
    terminal, end = pty.openpty()
    os.set_blocking(terminal, False)
    termios.tcsetwinsize(end, (24, 80))
    process = subprocess.run(
        [sys.executable, "-c", TERMINAL],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=end,
        check=True,
    )
    drawn = os.read(terminal, 100_000).decode()
    os.close(end)
    os.close(terminal)
    assert process.stdout == b"a line between\n"
    assert "evaluating:" in drawn
    assert "step 5/10, 0:05 left" in drawn


def test_a_full_disk_behind_the_output_stops_nothing(tmp_path: Path) -> None:
    """Lines that cannot be written are lost, and the program goes on; warnings go to stderr."""
    program = (
        "import os\nfrom int_lm.training.runlog import Console\n"
        "with Console(steps=1, seconds=0) as console:\n"
        "    console.note('lost')\n    console.warn('a warning')\n"
        "open('alive', 'w').close()\nos._exit(7)"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (7, "a warning\n")
    assert (tmp_path / "alive").exists()


def test_a_reader_of_the_output_that_goes_away_stops_nothing(tmp_path: Path) -> None:
    """As when a `tee` is killed: the log is in metrics.jsonl, and the program ends as it would."""
    program = (
        "import time\nfrom pathlib import Path\nfrom int_lm.training.runlog import Console\n"
        "with Console(steps=1, seconds=0) as console:\n"
        "    console.note('read')\n"
        "    while not Path('gone').exists(): time.sleep(0.01)\n"
        "    console.note('lost')\n    console.note('as well')\n    console.warn('a warning')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},  # what is lost is kept
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "read\n"
    process.stdout.close()
    (tmp_path / "gone").touch()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == "a warning\n"
    process.stderr.close()
