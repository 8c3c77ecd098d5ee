"""SIGINT and SIGTERM ask for a stop; a second one stops at once, whatever the program is doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from int_lm import errors
from int_lm.training.interrupt import SIGNALS, StopFlag

ROOT = Path(__file__).resolve().parent.parent


def wait_until_requested(flag: StopFlag) -> str:
    for _ in range(500):
        if flag.requested:
            return flag.requested
        time.sleep(0.01)
    pytest.fail("the signal was not noticed")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """The program goes on, knows which signal came, and tells the user so."""
    with StopFlag() as flag:
        assert flag.requested is None
        os.kill(os.getpid(), number)
        assert wait_until_requested(flag) == number.name
    assert f"{number.name}: saving and stopping" in capfd.readouterr().err


def test_the_handlers_before_are_restored() -> None:
    """After the block, also one that fails, signals do what they did before it."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyError), StopFlag():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise KeyError
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_other_signals_are_left_alone() -> None:
    """A signal with a handler of its own does not ask for a stop."""
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with StopFlag() as flag:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert flag.requested is None
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_outside_the_main_thread_it_does_nothing() -> None:
    """Only the main thread may set handlers; elsewhere the block still works."""
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def enter() -> None:
        with StopFlag() as flag:
            seen.append(flag.requested)
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None, before]


BUSY = """
import hashlib, signal
from int_lm import errors
from int_lm.training.interrupt import StopFlag
with StopFlag():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # one long call, as a compilation is
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_stops_at_once(number: signal.Signals) -> None:
    """Even within one long call of C code, where Python runs no handler; exit code 128 + signal."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stderr.readline() == "\n"
            assert process.stderr.readline().startswith(f"{number.name}: saving and stopping")
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(timeout=120) == 128 + number
        finally:
            process.kill()


def test_ctrl_c_where_no_flag_is_up_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Before training, while text is prepared: no traceback, and the exit code of the shell."""
    with pytest.raises(SystemExit) as ended, errors.reported("train.py"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "train.py: error: interrupted; what is finished is kept\n"
