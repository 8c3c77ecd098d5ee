"""Samples: the same ids from JAX and from an export, and a command that answers at once."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_run import export_tiny_run, tiny_run

import int_lm.run
from int_lm import runtime, sample
from int_lm.errors import UserError
from int_lm.run import Run
from int_lm.sample import __main__ as command
from tokenization import ByteTokenizer

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 0.7, "seed": 5, "top_k": 30, "top_p": 0.9},
]


@pytest.fixture(scope="module")
def run() -> Run:
    return tiny_run()


@pytest.fixture(scope="module")
def export(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(run, tmp_path_factory.mktemp("sample"))


@pytest.fixture
def without_jax(tmp_path: Path) -> dict[str, str]:
    """Environment in which importing jax fails."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "jax.py").write_text("raise ImportError('jax was imported')\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'poison'}{os.pathsep}{ROOT}"}


def command_line(
    environment: dict[str, str], *arguments: str | Path
) -> subprocess.CompletedProcess:
    """`python -m int_lm.sample` with bytes out."""
    return subprocess.run(
        [sys.executable, "-m", "int_lm.sample", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stop", [False, True])
def test_run_and_export_draw_the_same(run: Run, export: Path, settings: dict, stop: bool) -> None:
    """The same weights, prompt and seed give the same ids from JAX and from NumPy."""
    sampler, prompt = runtime.Sampler(**settings), b"prompt"
    ids = list(
        sample.generate(run.recipe.model, run.weights, prompt, sampler, tokens=120, stop=stop)
    )
    read = runtime.reader(runtime.load(export))
    assert list(runtime.generate(read, prompt, sampler, tokens=120, stop=stop)) == ids
    assert stop or len(ids) == 120
    assert not stop or 0 not in ids


def test_the_prompt_and_the_seed_matter(run: Run) -> None:
    """Another prompt, and another seed, give another text."""

    def ids(prompt: bytes, seed: int) -> list[int]:
        sampler = sample.Sampler(temperature=1.0, seed=seed)
        return list(sample.generate(run.recipe.model, run.weights, prompt, sampler, tokens=40))

    assert len({tuple(ids(b"a", 0)), tuple(ids(b"b", 0)), tuple(ids(b"a", 1))}) == 3
    assert ids(b"a", 0) == ids(b"a", 0)


def test_samples_share_one_compilation(run: Run, monkeypatch) -> None:
    """A second sample of a run compiles nothing."""
    sampler = sample.Sampler()
    list(sample.generate(run.recipe.model, run.weights, b"", sampler, tokens=2))
    step = sample._compiled_step(run.recipe.model)
    monkeypatch.setattr(step, "compile", lambda *_: pytest.fail("compiled again"))
    list(sample.generate(run.recipe.model, run.weights, b"x", sampler, tokens=2))
    assert sample._compiled_step(run.recipe.model) is step


def test_help_and_exports_need_no_jax(without_jax: dict[str, str], export: Path) -> None:
    """With a jax that cannot be imported, --help and --export work, and a run's mistake is told."""
    result = command_line(without_jax, "--help")
    assert result.returncode == 0, result.stderr
    for flag in ("run", "export", "step", "prompt", "tokens", "temperature", "top_k", "no_stop"):
        assert f"--{flag}" in result.stdout.decode()
    sampled = command_line(
        without_jax, "--export", export, "--prompt", "pröm", "--tokens", "30", "--temperature", "1"
    )
    assert sampled.returncode == 0, sampled.stderr
    sampler = runtime.Sampler(temperature=1.0)
    prompt = "pröm".encode()
    ids = runtime.generate(runtime.reader(runtime.load(export)), prompt, sampler, tokens=30)
    assert sampled.stdout == (prompt + bytes(ids)).decode(errors="replace").encode() + b"\n"


def test_the_command_samples_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """--run opens the checkpoint that --step names and prints what the library yields."""
    opened: list[tuple[str, int | None]] = []

    def open_run(root: str, step: int | None = None, *, say: object) -> Run:
        opened.append((root, step))
        return run

    monkeypatch.setattr(int_lm.run, "open_run", open_run)
    ByteTokenizer().save(tmp_path / "tokenizer")
    arguments = ["--run", str(tmp_path), "--step", "7", "--tokens", "20", "--seed", "3"]
    command.main([*arguments, "--no_stop"])
    ids = sample.generate(
        run.recipe.model, run.weights, b"", sample.Sampler(seed=3), tokens=20, stop=False
    )
    assert capsys.readouterr().out == bytes(ids).decode(errors="replace") + "\n"
    assert opened == [(str(tmp_path), 7)]


def test_a_run_without_its_tokenizer_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that nothing can spell are not printed as if they were bytes."""
    monkeypatch.setattr(int_lm.run, "open_run", lambda *_, **__: run)
    with pytest.raises(UserError, match="no tokenizer at"):
        command.main(["--run", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --run --export is required"),
        (["--run", "a", "--export", "b"], "not allowed with"),
        (["--export", "b", "--step", "3"], "--step chooses a checkpoint of --run"),
        (["--run", "nowhere"], "no run at nowhere; name the directory"),
        (["--export", "nowhere"], "nowhere is no export"),
        (["--run", ".", "--tokens", "0"], "--tokens is 0, must be at least 1"),
        (["--run", ".", "--tokens", "many"], "argument --tokens"),
        (["--run", ".", "--temperature", "-1"], "--temperature is -1.0, must be at least 0"),
        (["--run", ".", "--temperature", "nan"], "--temperature is nan, must be at least 0"),
        (["--run", ".", "--top_k", "-2"], "--top_k is -2, must be at least 0"),
        (["--run", ".", "--top_p", "0"], "--top_p is 0.0, must be above 0 and at most 1"),
        (["--run", ".", "--seed", "-1"], r"--seed is -1, must be between 0 and 2\^32 - 1"),
        (["--run", ".", "--temprature", "1"], "unknown argument --temprature; did you mean --temp"),
    ],
)
def test_mistakes_are_named(arguments: Sequence[str], message: str) -> None:
    """Every argument out of range, missing or misspelt is one sentence."""
    with pytest.raises(UserError, match=message):
        command.main(arguments)


def test_a_mistake_is_one_line_and_exit_code_2(without_jax: dict[str, str]) -> None:
    """From the shell, a mistake is one line on stderr, before jax is imported."""
    result = command_line(without_jax, "--run", "nowhere")
    assert result.returncode == 2
    assert result.stdout == b""
    assert re.fullmatch(r"int_lm\.sample: error: no run at nowhere; .*\n", result.stderr.decode())


class Recorder(io.StringIO):
    """A terminal, or none, that notes what was shown at every flush."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.shown = terminal, [""]

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.shown.append(self.getvalue())


def test_text_appears_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is shown before the next is asked for; characters wait for their last byte."""
    out = Recorder(terminal=False)
    monkeypatch.setattr(sys, "stdout", out)
    seen: list[str] = []

    def ids() -> object:
        for byte in "aé€".encode():
            seen.append(out.shown[-1])
            yield byte

    command.stream("ü".encode(), ids())  # type: ignore[arg-type]
    assert seen == ["ü", "üa", "üa", "üaé", "üaé", "üaé"]
    assert out.getvalue() == "üaé€\n"


def test_broken_utf8_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8, in the middle or at the end, become replacement characters."""
    out = Recorder(terminal=False)
    monkeypatch.setattr(sys, "stdout", out)
    command.stream(b"\xc3", [0x41, 0xFF, 0x42, 0xE2, 0x82])
    assert out.getvalue() == "\ufffdA\ufffdB\ufffd\n"


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal an escape sequence is spelt out; a pipe gets it as it is."""
    text = b"\x1b[2J\tx\n\x00"
    for terminal, expected in ((True, "\\x1b[2J\tx\n\\x00\n"), (False, "\x1b[2J\tx\n\x00\n")):
        out = Recorder(terminal)
        monkeypatch.setattr(sys, "stdout", out)
        command.stream(b"", text)
        assert out.getvalue() == expected


def test_an_ascii_stdout_is_no_reason_to_stop(export: Path, without_jax: dict[str, str]) -> None:
    """Where stdout cannot encode a character, a question mark stands for it."""
    environment = {**without_jax, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = command_line(environment, "--export", export, "--prompt", "", "--tokens", "60")
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
