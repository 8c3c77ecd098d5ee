"""The commands as a user runs them: train, resume, evaluate, sample, export, and every mistake."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_command import assert_same_run, rows, train_arguments, wait_for_rows, write_text

import data.baselines
import eval as eval_command
import train
from int_lm import errors, run as run_module
from int_lm.config import Config
from int_lm.export import __main__ as export_command
from int_lm.files import checkpoint
from int_lm.method import evolve
from int_lm.sample import __main__ as sample_command
from int_lm.training import trainer
from int_lm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


def start(text: Path, run: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start (or resume) the tiny run."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *train_arguments(text, run)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parsed(text: Path, run: Path, **changes: object) -> Config:
    """The configuration of the tiny run. One device: what `whole` compiled is used again."""
    return train.parse(train_arguments(text, run, distributed_dot_devices=1, **changes))[1]


def test_a_run_reports_learns_and_says_what_comes_next(whole: tuple[Path, str]) -> None:
    """The console has the baselines, one line per interval, a sample and the next commands."""
    run, output = whole
    for name in ("unigram", "bigram", "gzip", "xz", "this model", "--- sample", "python eval.py"):
        assert name in output
    steps = [row["step"] for row in rows(run)]
    assert steps == [1, *range(5, 61, 5)]
    evaluated = [row["step"] for row in rows(run) if "valid_bits_per_byte" in row]
    assert evaluated == [20, 40, 60]
    first, last = rows(run)[0], rows(run)[-1]
    assert last["train_bits_per_byte"] < first["train_bits_per_byte"] - 0.5
    assert last["tokens"] == 60 * 16 * 8
    assert re.search(rf"\b{last['weights_hash']}\b", output)


def test_speed_is_that_of_steps_alone(text: Path, tmp_path: Path, monkeypatch) -> None:
    """By a clock of our own: a step takes 2 seconds, each evaluation, hash and save 1000."""
    now = 0.0

    def slowed(function, seconds: float):
        def slow(*arguments: object, **options: object) -> object:
            nonlocal now
            now += seconds
            return function(*arguments, **options)

        return slow

    compiled_step = evolve.compiled_step
    monkeypatch.setattr(
        evolve, "compiled_step", lambda *arguments: slowed(compiled_step(*arguments), 2)
    )
    for name in ("evaluate", "hash_weights", "save"):
        monkeypatch.setattr(Trainer, name, slowed(getattr(Trainer, name), 1000))
    monkeypatch.setattr(trainer, "time", types.SimpleNamespace(monotonic=lambda: now))
    run = tmp_path / "run"
    train.train(parsed(text, run, run_dot_steps=21))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["tokens_per_second"] for line in lines} == {16 * 8 / 2}
    seconds = {line["step"]: line["seconds"] for line in lines}
    # each to the end of its step; between 5 and 10 a hash and a save, between 10 and 20 two of each
    assert seconds[10] - seconds[5] == 5 * 2 + 2000
    assert seconds[20] - seconds[10] == 10 * 2 + 3000
    assert seconds[21] - seconds[20] == 1 * 2 + 2000


def test_the_last_save_knows_an_evaluation_of_its_step(text, tmp_path: Path, monkeypatch) -> None:
    """The time is over while step 10 is evaluated: its checkpoint has the figure all the same."""
    settings = parsed(
        text,
        tmp_path / "run",
        run_dot_eval_every=10,
        run_dot_checkpoint_every=0,
        run_dot_seconds=10_000,
    )
    evaluated, evaluate = [], Trainer.evaluate

    def slow(self: Trainer, documents: trainer.Documents) -> object:
        evaluated.append(self.step)
        self._started -= 10_000
        return evaluate(self, documents)

    monkeypatch.setattr(Trainer, "evaluate", slow)
    train.train(settings)
    assert evaluated == [10, 10]  # the second time all that is held out
    [(step, value)] = checkpoint.evaluations(tmp_path / "run" / "checkpoints").items()
    assert step == 10 and value is not None


def test_ctrl_c_in_the_final_evaluation_ends_it(text, tmp_path: Path, monkeypatch) -> None:
    """All is saved by then; the same command evaluates, and trains nothing."""
    run, evaluate = tmp_path / "run", Trainer.evaluate
    settings = parsed(text, run, run_dot_steps=10, run_dot_eval_every=0)
    pressed: list[int] = []

    def interrupted(self: Trainer, documents: trainer.Documents) -> object:
        if documents is self.text.heldout and not pressed:
            pressed.append(self.step)
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, documents)

    monkeypatch.setattr(Trainer, "evaluate", interrupted)
    # as in a terminal; a program that a shell starts in the background is told to ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train(settings)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [10] and not (run / "evaluation.json").exists()
    assert checkpoint.latest_step(run / "checkpoints") == 10
    logged = rows(run)
    train.train(settings)
    assert (run / "evaluation.json").exists() and rows(run) == logged


def test_a_signal_while_the_last_step_is_reported_is_obeyed(
    text, tmp_path: Path, monkeypatch, capsys
) -> None:
    """It is saved, as was said, and not evaluated at length."""
    run, save = tmp_path / "run", Trainer.save
    settings = parsed(text, run, run_dot_steps=10, run_dot_eval_every=0)

    def signalled(self: Trainer, valid: float | None) -> None:
        if self.step == 10:
            signal.raise_signal(signal.SIGTERM)
        save(self, valid)

    monkeypatch.setattr(Trainer, "save", signalled)
    train.train(settings)
    assert "saved step 10; the same command goes on" in capsys.readouterr().out
    assert checkpoint.latest_step(run / "checkpoints") == 10
    assert not (run / "evaluation.json").exists()


@pytest.mark.slow
def test_other_steps_of_a_rate_that_ends_with_them_are_told(
    text, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer run is another one; it goes on, and says so."""
    flags = {"es_dot_schedule": "inverse_sqrt_to_zero", "run_dot_eval_every": 0}
    for steps in (6, 6, 9):
        flags["run_dot_steps"] = steps
        train.train(parsed(text, tmp_path / "run", **flags))
        told = "ends at run.steps, which was 6 and is 9" in capsys.readouterr().err
        assert told == (steps == 9)


def test_figures_that_cannot_be_kept_are_shown(
    whole: tuple[Path, str], monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that may not be written to."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(run_module, "write_evaluation", refuse)
    eval_command.main(["--run", str(whole[0])])
    output = capsys.readouterr()
    assert "bits per byte" in output.out
    assert "not kept" in output.err and "Permission denied" in output.err


def test_a_finished_run_started_again_says_so(whole: tuple[Path, str], text: Path, answer) -> None:
    """The same command on a finished run changes nothing and exits with 4, for wrappers to stop."""
    run, _ = whole
    before = rows(run)
    again = answer(train.main, *train_arguments(text, run))
    assert again.returncode == 4, again.stderr
    assert "nothing to train" in again.stderr
    shorter = answer(train.main, *train_arguments(text, run, run_dot_steps=5))
    assert shorter.returncode == 4, shorter.stderr
    assert "raise --run.steps above 60" in shorter.stderr and "rates" not in shorter.stderr
    assert rows(run) == before


def test_eval_sample_and_export_agree(
    whole: tuple[Path, str], tmp_path: Path, run_command, answer
) -> None:
    """JAX and the NumPy runtime print the same figures and the same text.

    The export is read by programs of their own, the run in this process, where JAX has started.
    """
    run, _ = whole
    export = tmp_path / "export"
    done = answer(export_command.main, "--run", run, "--out", export)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"--export {export} --prompt 'The '\n")
    results = []
    for source in (("--run", run), ("--export", export)):
        own = source[0] == "--run"
        done = (
            answer(eval_command.main, *source, "--json")
            if own
            else run_command("eval.py", *source, "--json")
        )
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        assert figures["baselines"].keys() == {"unigram", "bigram", "gzip", "xz", "zstd"} | (
            {"ppmd"} if data.baselines.pyppmd else set()
        )
        words = (*source, "--prompt", "et", "--tokens", "40", "--seed", "3")
        sample = (
            answer(sample_command.main, *words)
            if own
            else run_command("-m", "int_lm.sample", *words)
        )
        assert sample.returncode == 0, sample.stderr
        results.append((figures | {"model": None}, sample.stdout))
    assert results[0] == results[1]
    saved = json.loads((run / "evaluation.json").read_text())
    assert saved["bits_per_byte"] == results[0][0]["bits_per_byte"]
    table = answer(eval_command.main, "--run", run)
    assert f"{saved['bits_per_byte']:.4f}" in table.stdout


def test_evaluating_other_text_is_by_raw_bytes(whole, tmp_path: Path, answer) -> None:
    """`--text` measures the bytes of that text and leaves the run's own evaluation alone."""
    run, _ = whole
    kept = (run / "evaluation.json").read_bytes()
    other = write_text(tmp_path / "other.txt", seed=1)
    figures = json.loads(answer(eval_command.main, "--run", run, "--text", other, "--json").stdout)
    assert figures["bytes"] == other.stat().st_size
    assert figures["tokens"] == figures["bytes"] + figures["documents"]
    assert figures["bits_per_byte"] == pytest.approx(np.log2(figures["byte_perplexity"]), abs=1e-12)
    assert (run / "evaluation.json").read_bytes() == kept


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=[pytest.mark.slow, pytest.mark.alone])],
)
def test_a_signal_saves_and_stops(
    whole, text, tmp_path: Path, command_environment, answer, number
) -> None:
    """SIGTERM or SIGINT saves at the next step, exits with 0, and the run goes on from there."""
    run = tmp_path / "run"
    process = start(text, run, command_environment)
    wait_for_rows(run, 1, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    stopped = re.search(r"saved step (\d+)", stdout)
    assert stopped, stdout
    assert checkpoint.latest_step(run / "checkpoints") == int(stopped[1])
    # on one device, for which this process has compiled already
    done = answer(train.main, *train_arguments(text, run, distributed_dot_devices=1))
    assert done.returncode == 0, done.stderr
    assert f"at step {stopped[1]}" in done.stdout
    assert_same_run(run, whole[0])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.slow
def test_a_scheduler_may_ask_to_save_and_go_on(
    text, tmp_path: Path, monkeypatch, capsys, number: signal.Signals
) -> None:
    """A checkpoint of that very step, and a run that ends as if nothing had happened; or, of a
    signal that is not named, a stop at that step."""
    run = tmp_path / "run"
    changes = {"run_dot_steps": 6, "run_dot_eval_every": 0, "run_dot_checkpoint_every": 0}
    arguments = train_arguments(text, run, run_dot_saving_signals="USR1", **changes)
    _, settings = train.parse(arguments)
    saved: list[int] = []
    log, save = Trainer.log, Trainer.save

    def signalled(self: Trainer, *arguments: object) -> float | None:
        if self.step == 1:
            signal.raise_signal(number)
            while not (self.stop.requested or self.stop.save_requested):
                time.sleep(0.01)
        return log(self, *arguments)

    def noted(self: Trainer, valid: float | None) -> None:
        saved.append(self.step)
        save(self, valid)

    monkeypatch.setattr(Trainer, "log", signalled)
    monkeypatch.setattr(Trainer, "save", noted)
    train.train(settings)
    assert saved == ([2, 6] if number == signal.SIGUSR1 else [2])
    stopped = "saved step 2; the same command goes on" in capsys.readouterr().out
    assert stopped == (number == signal.SIGHUP)


Answer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """`answer(train.main, "--flag", value)`: what the program would answer, from this process."""

    def answer(main: Callable[[list[str]], None], *arguments: object):
        code = 0
        capsys.readouterr()
        try:
            with errors.reported("program"):
                main(list(map(str, arguments)))
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess([], code, *capsys.readouterr())

    return answer


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on stderr that names `words`."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


MISTAKES = {
    "unknown flag": (["--es.populaton", "8"], ["--es.population"]),
    "wrong type": (["--es.population", "many"], ["--es.population", "many"]),
    "unknown choice": (["--model.architecture", "eggs"], ["egg"]),
    "odd population": (["--es.population", "7"], ["es.population", "7", "even"]),
    "impossible width": (["--model.width", "0"], ["model.width", "0"]),
    "overflow": (["--es.segment_length", "100000"], ["100000", "int32"]),
    "no credit": (
        ["--es.votes", "deep", "--es.readout", "exact", "--model.architecture", "egg"],
        ["es.votes deep", "Architecture.credit", "--es.votes local"],
    ),
    "missing text": (["--data.path", "nowhere.txt"], ["nowhere.txt"]),
    "empty text": (["--data.path", "empty.txt"], ["empty.txt"]),
    "binary text": (["--data.path", "binary.bin"], ["binary.bin"]),
    "short text": (["--data.path", "short.txt"], ["short.txt"]),
    "missing config": (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    "unknown key": (["--config", "unknown.yaml"], ["es.populatoin", "population"]),
    "broken YAML": (["--config", "broken.yaml"], ["broken.yaml", "line"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(
    mistake: str, tmp_path: Path, monkeypatch, answer, run_command
) -> None:
    """Exit code 2, one line that names the culprit, and nothing written.

    Two as programs, the others in this process: each kind of mistake once, that of parsing and that
    of what is read later.
    """
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "short.txt").write_text("a few words\n")
    (tmp_path / "unknown.yaml").write_text("es:\n  populatoin: 8\n")
    (tmp_path / "broken.yaml").write_text("es: [1\nmodel: }\n")
    before = sorted(tmp_path.rglob("*"))
    flags, words = MISTAKES[mistake]
    if mistake == "short text":
        words = ["text"]
    if mistake in ("unknown flag", "missing text"):
        done = run_command("train.py", *flags)
    else:
        monkeypatch.chdir(tmp_path)
        done = answer(train.main, *flags)
    assert_refused(done, *words)
    written = set(tmp_path.rglob("*")) - set(before)
    assert not written or mistake == "short text"  # whose shards are sound, for smaller runs
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_dot_width": 24}, ["16", "24", "width"]),
        ({"run_dot_seed": 5}, ["run.seed", "0", "5"]),
        ({"es_dot_sigma_shift": 4}, ["es.sigma_shift", "3", "4"]),
    ],
)
def test_another_configuration_is_refused(whole, text, answer, changes, words) -> None:
    """A run directory of another model or method is left as it is, and the field is named."""
    run, _ = whole
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert_refused(answer(train.main, *train_arguments(text, run, **changes)), *words)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_another_text_is_refused(whole, tmp_path: Path, answer) -> None:
    """A run does not go on with other text than it began with."""
    other = write_text(tmp_path / "words.txt", seed=2)
    arguments = train_arguments(other, whole[0])
    assert_refused(answer(train.main, *arguments), "data.path")


def test_changed_text_is_refused(whole, text: Path, answer) -> None:
    """A file that was edited between a run and its resumption is noticed."""
    honest, times = text.read_bytes(), text.stat()
    try:
        text.write_bytes(honest.replace(b"e", b"a"))
        assert_refused(answer(train.main, *train_arguments(text, whole[0])), "text", "sha256")
    finally:
        text.write_bytes(honest)
        os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_damaged_checkpoint_is_named_and_passed_over(whole, tmp_path: Path, answer) -> None:
    """A flipped bit in the newest step: eval falls back and says which file; never silently."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    before, newest = checkpoint.steps(run / "checkpoints")[-2:]
    assert newest == 60
    files = [p for p in (run / "checkpoints" / "60" / "state").rglob("*") if p.is_file()]
    victim = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = answer(eval_command.main, "--run", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == before == 56
    assert victim.name in done.stderr
    assert_refused(answer(eval_command.main, "--run", run, "--step", "60"), victim.name)


@pytest.mark.parametrize(
    "command", [("eval.py",), ("-m", "int_lm.sample"), ("-m", "int_lm.export", "--out", "x")]
)
def test_a_directory_that_holds_no_run_is_named(command, tmp_path: Path, run_command) -> None:
    """Every command that opens a run says so where there is none, and writes nothing."""
    assert_refused(run_command(*command, "--run", "nothing"), "nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_named(text: Path, tmp_path: Path, run_command) -> None:
    """A run directory that cannot be made is one sentence."""
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run_command("train.py", *train_arguments(text, tmp_path / "locked" / "run"))
    assert_refused(done, "locked")


def test_a_file_in_the_way_of_the_run_directory_is_named(text, tmp_path, answer) -> None:
    """The run directory is a file: one sentence, and the file stays."""
    (tmp_path / "taken").write_text("dear to me")
    assert_refused(answer(train.main, *train_arguments(text, tmp_path / "taken")), "taken")
    assert (tmp_path / "taken").read_text() == "dear to me"


def test_an_export_in_the_way_of_the_run_directory_is_named(text, tmp_path, answer) -> None:
    """The run directory holds an export, which a run would destroy; nothing is written there."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export/model.safetensors").write_bytes(b"weights")
    done = answer(train.main, *train_arguments(text, tmp_path / "export"))
    assert_refused(done, "holds an export, which training would destroy; choose another --run.dir")
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help_does_not_import_jax(program: str, run_command) -> None:
    """`--help` and a wrong flag answer without importing jax."""
    spy = "import sys, runpy\nsys.argv = sys.argv[1:]\n"
    spy += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    spy += "except SystemExit: pass\nassert 'jax' not in sys.modules"
    for flag in ("--help", "--wrong"):
        done = run_command("-c", spy, ROOT / program, flag)
        assert done.returncode == 0, done.stderr
