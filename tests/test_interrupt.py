"""Signals ask for a stop or a save; a second SIGINT or SIGTERM stops at once, whatever happens."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from int_lm import __main__ as int_lm_command, errors, programs, signals
from int_lm.signals import ANNOUNCING, STOPPING
from int_lm.training.interrupt import HURRYING, StopFlag

ROOT = Path(__file__).resolve().parent.parent


def wait_until_requested(flag: StopFlag) -> str:
    for _ in range(500):
        if flag.requested:
            return flag.requested
        time.sleep(0.01)
    pytest.fail("the signal was not noticed")


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_the_flag(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """The program goes on, knows which signal came, and tells the user so."""
    with StopFlag() as flag:
        assert flag.requested is None
        os.kill(os.getpid(), number)
        assert wait_until_requested(flag) == number.name
    assert f"{number.name}: saving and stopping" in capfd.readouterr().err


def test_the_handlers_before_are_restored() -> None:
    """After the block, also one that fails, signals do what they did before it."""
    before = [signal.getsignal(number) for number in STOPPING]
    assert set(ANNOUNCING) == {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    with pytest.raises(KeyError), StopFlag():
        assert [signal.getsignal(number) for number in STOPPING] != before
        raise KeyError
    assert [signal.getsignal(number) for number in STOPPING] == before
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
    before = [signal.getsignal(number) for number in STOPPING]
    seen: list[object] = []

    def enter() -> None:
        with StopFlag() as flag:
            seen.append(flag.requested)
            seen.append([signal.getsignal(number) for number in STOPPING])

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


@pytest.mark.parametrize("number", HURRYING)
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


def test_signals_that_are_announced_twice_still_save(capfd: pytest.CaptureFixture[str]) -> None:
    """A closed terminal sends SIGHUP twice, a scheduler SIGTERM after SIGUSR1: the save is done."""
    with StopFlag() as flag:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert wait_until_requested(flag) == "SIGHUP"
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.05)
    told = capfd.readouterr().err
    assert "SIGHUP: saving and stopping" in told and "SIGTERM: saving and stopping" in told


def test_a_signal_may_ask_to_save_and_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    """`run.saving_signals`: the others still ask for a stop."""
    with StopFlag(["USR1"]) as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(500):
            if flag.save_requested:
                break
            time.sleep(0.01)
        assert flag.save_requested and flag.requested is None
        os.kill(os.getpid(), signal.SIGUSR2)
        assert wait_until_requested(flag) == "SIGUSR2"
    assert "SIGUSR1: saving after this step, and going on" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_be_ignored_stays_ignored(number: signal.Signals) -> None:
    """As `nohup` has it for SIGHUP: also while a run trains."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.Ending(print), StopFlag(["USR1"]) as flag:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            assert flag.requested is None and not flag.save_requested
    finally:
        signal.signal(number, before)


WAITS = """
import signal, time
from int_lm import errors
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
with errors.reported("eval.py"):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_command_that_has_nothing_to_save_ends(number: signal.Signals) -> None:
    """One sentence, and the exit code of a shell; a second of the same signal changes nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.wait(timeout=60) == 128 + number
            said = "interrupted" if number == signal.SIGINT else f"{number.name}: stopped"
            sentence = f"eval.py: error: {said}; what is finished is kept\n"
            assert process.stderr.read() == sentence
        finally:
            process.kill()


def test_a_command_in_a_long_call_of_native_code_ends(monkeypatch, capfd) -> None:
    """As the training of a vocabulary is: the thread ends the process, after some seconds; also
    where other signals are spared meanwhile."""
    left: list[int] = []
    monkeypatch.setattr(signals, "leave", left.append)
    monkeypatch.setattr(signals, "LEAVING_SECONDS", 0.01)
    monkeypatch.setattr(signals.Ending, "_raise", lambda self, number: None)  # as if busy
    with signals.Ending(signals.tell), signals.Spared([]), signals.Spared(["USR2"]):
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(500):
            if left:
                break
            time.sleep(0.01)
    assert left == [signal.SIGUSR1]
    assert capfd.readouterr().err.startswith("SIGUSR1: stopped; what is finished is kept")


def test_every_command_answers_signals() -> None:
    """Each verb's program is started within `errors.reported`, also by itself."""
    for module, *_ in int_lm_command.VERBS.values():
        path = programs.folder() / f"{module.replace('.', '/')}.py"
        if "native" not in module:
            started = path.read_text().split('if __name__ == "__main__":')[1]
            assert "reported(" in started, path


def test_signals_are_answered_where_there_is_nothing_to_save(capfd) -> None:
    """Text is prepared, or all is saved: a run that is to go on goes on."""
    with signals.Ending(print), signals.Spared(["USR1"]):
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(500):
            if "SIGUSR1: nothing to save at present; going on" in capfd.readouterr().err:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the signal was not answered")
        with pytest.raises(signals.Stopped, match="SIGUSR2: stopped"):
            signal.raise_signal(signal.SIGUSR2)


def test_a_signal_that_a_callback_swallows_comes_again() -> None:
    """JAX has callbacks of the garbage collector; what is raised in them reaches nobody."""
    program = (
        "import gc, os, signal, time\n"
        "from int_lm import errors\n"
        "def callback(phase, info):\n"
        "    if not told:\n"
        "        told.append(phase)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.1)\n"
        "told = []\n"
        "gc.callbacks.append(callback)\n"
        "with errors.reported('program'):\n"
        "    gc.collect()\n"
        "    for _ in range(300):\n"
        "        time.sleep(0.01)\n"
        "    print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert done.stderr == "program: error: SIGTERM: stopped; what is finished is kept\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-m", "int_lm.tasks"], "int_lm.tasks"),
        ([str(ROOT / "eval.py")], "eval.py"),
        (["-m", "data.prepare"], "prepare.py"),
    ],
)
def test_a_signal_during_the_imports_is_one_line(
    words: list[str], name: str, tmp_path: Path
) -> None:
    """Before the command has begun; a package that it imports is interrupted."""
    (tmp_path / "yaml.py").write_text("import os\nos.kill(os.getpid(), 2)\nraise SystemExit(9)\n")
    done = interrupted(words, tmp_path)
    assert done.returncode == 130
    assert done.stderr == f"{name}: error: interrupted; nothing was begun\n"


def test_other_programs_have_their_own_answer_to_signals(tmp_path: Path) -> None:
    """That they import int_lm changes nothing for them."""
    (tmp_path / "yaml.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    (tmp_path / "mine.py").write_text("import int_lm.config\n")
    done = interrupted([str(tmp_path / "mine.py")], tmp_path)
    assert done.returncode == -2 and "KeyboardInterrupt" in done.stderr


def interrupted(words: list[str], first: Path) -> subprocess.CompletedProcess[str]:
    """A program that finds modules in `first` before all others."""
    path = {"PYTHONPATH": f"{first}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, **path}, capture_output=True, text=True
    )
