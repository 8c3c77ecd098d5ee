"""A directory is one process's at a time, and a killed process keeps nobody out."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from int_lm.errors import UserError
from int_lm.files import lock

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from int_lm.files import lock
with lock.hold(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(100)
"""


def assert_held_elsewhere(directory: Path, *words: str) -> None:
    with pytest.raises(UserError, match="another process") as caught, lock.hold(directory, "wait"):
        pass
    for word in (str(directory), "wait", *words):
        assert word in str(caught.value)


def test_a_second_process_is_told_which_one_is_first(tmp_path: Path) -> None:
    """The holder is named; SIGKILL frees the directory at once, and what it left is no obstacle."""
    directory = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert_held_elsewhere(directory, f"pid {process.pid} on {os.uname().nodename} since 20")
        finally:
            process.send_signal(signal.SIGKILL)
    assert (directory / lock.FILE).exists()
    with lock.hold(directory, "wait") as held:
        held.check()
        assert_held_elsewhere(directory, f"pid {os.getpid()} on")
    assert not (directory / lock.FILE).exists()


def test_nothing_empty_is_left_behind(tmp_path: Path) -> None:
    """Directories made for the lock go with it, unless something was written; others stay."""
    (tmp_path / "mine").mkdir()
    with lock.hold(tmp_path / "mine" / "runs" / "a", "wait"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []
    with lock.hold(tmp_path / "mine", "wait"):
        pass
    with lock.hold(tmp_path / "runs" / "b", "wait"):
        (tmp_path / "runs" / "b" / "file").touch()
    assert (tmp_path / "mine").is_dir()
    assert (tmp_path / "runs" / "b" / "file").exists()


def test_a_directory_that_changed_is_noticed(tmp_path: Path) -> None:
    """Moved away: an error; back again: fine; another one in its place: locked, or refused."""
    directory, away = tmp_path / "run", tmp_path / "away"
    with lock.hold(directory, "wait") as held:
        directory.rename(away)
        with pytest.raises(FileNotFoundError):
            held.check()
        away.rename(directory)
        held.check()
        directory.rename(away)
        directory.mkdir()
        with lock.hold(directory, "wait"), pytest.raises(UserError, match="another process"):
            held.check()
        with pytest.raises(UserError, match="not the directory it was, but is used from now on"):
            held.check()
        held.check()
        assert_held_elsewhere(directory)
        with lock.hold(away, "wait"):
            pass


def test_without_locks_in_the_file_system_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems know no locks; other errors are errors."""
    code = errno.ENOLCK

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.hold(tmp_path / "run", "wait") as held:
        held.check()
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"), lock.hold(tmp_path / "run", "wait"):
        pass
