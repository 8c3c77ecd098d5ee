"""`int-lm`: its verbs, their help, mistakes, shipped configurations and the commands it shows."""

import os
import sys
import tomllib
from pathlib import Path

import pytest

from int_lm import __main__ as int_lm_command, config, programs
from int_lm.config import command_line
from int_lm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = {
    ("train.py",): "train.py",
    ("eval.py",): "eval.py",
    ("-m", "data.prepare"): "python -m data.prepare",
    ("-m", "data.gather"): "python -m data.gather",
    ("-m", "tokenization.train"): "python -m tokenization.train",
    ("-m", "tokenization.inspect"): "python -m tokenization.inspect",
    ("-m", "int_lm.sample"): "python -m int_lm.sample",
    ("-m", "int_lm.export"): "python -m int_lm.export",
    ("-m", "int_lm.verify"): "python -m int_lm.verify",
    ("-m", "int_lm.tasks"): "python -m int_lm.tasks",
    ("-m", "int_lm.plot"): "python -m int_lm.plot",
    ("-m", "int_lm.doctor"): "python -m int_lm.doctor",
    ("-m", "int_lm"): "int-lm",
    **{("-m", "int_lm", verb): f"int-lm {verb}" for verb in int_lm_command.VERBS},
}


@pytest.mark.parametrize("entry", ENTRIES, ids=" ".join)
def test_every_entry_has_its_help(entry: tuple[str, ...], run_command) -> None:
    """The usage begins with the command, and so do the examples of `int-lm`."""
    done = run_command(*entry, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {ENTRIES[entry]} ")
    if "int_lm" in entry:
        examples = [line.strip() for line in done.stdout.splitlines()]
        assert not [line for line in examples if line.startswith("python ")]


def test_help_lists_the_verbs_and_imports_next_to_nothing(run_command) -> None:
    """One line for each verb; what takes long to import is not imported."""
    spy = (
        "import sys\nfrom int_lm.__main__ import main\nmain(['--help'])\n"
        "assert not {'jax', 'numpy', 'yaml', 'argparse'} & set(sys.modules)"
    )
    done = run_command("-c", spy)
    assert done.returncode == 0, done.stderr
    for verb, (_, _, does) in int_lm_command.VERBS.items():
        assert [line.split(maxsplit=1) for line in done.stdout.splitlines()].count([verb, does])


def test_import_of_int_lm_imports_nothing(run_command) -> None:
    """The names are there all the same, and an unknown one is an AttributeError."""
    program = (
        "import sys, int_lm\n"
        "assert not {'jax', 'numpy', 'yaml'} & set(sys.modules)\n"
        "assert set(int_lm.__all__) < set(dir(int_lm))\n"
        "assert all(getattr(int_lm, name) for name in int_lm.__all__)\n"
        "assert 'jax' not in sys.modules\n"
        "print(int_lm.__version__, int_lm.nothing)"
    )
    done = run_command("-c", program)
    assert done.stderr.endswith("AttributeError: module 'int_lm' has no attribute 'nothing'\n")


def test_version(run_command) -> None:
    """That of pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run_command("-m", "int_lm", "--version").stdout == f"int_lm {version}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "int-lm: error: unknown verb trian; did you mean train? (int-lm --help"),
        (["inspect"], "unknown verb inspect; did you mean inspect-tokenizer?"),
        (["zzz"], "unknown verb zzz (int-lm --help lists them)"),
        ([], "int-lm: error: no verb is given; int-lm --help lists the verbs"),
        (["--config", "a"], "--config stands before a verb"),
        (["benchmarks"], "benchmarks needs a clone of the repository; run there: python bench"),
        (["train", "--es.populaton", "8"], "int-lm train: error: unknown argument --es.populaton"),
        (["plan", "--model.width", "0"], "int-lm plan: error: model.width is 0"),
        (["eval", "--run", "nothing"], "int-lm eval: error: nothing holds no run"),
        (["build-kernels", "now"], "int-lm build-kernels: error: unknown argument now"),
        (["train", "--config", "nowhere"], "cannot read configuration nowhere: No such file"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence: str, run_command, tmp_path: Path) -> None:
    """Exit code 2, one line on stderr, and nothing written."""
    done = run_command("-m", "int_lm", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bare_name_is_a_shipped_configuration(tmp_path: Path, monkeypatch, capsys) -> None:
    """It says which file it took; a file of that name comes first, and a path is only a path."""
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "quickstart.yaml"
    for name in ("quickstart", "quickstart.yaml"):
        assert command_line.configuration(name) == config.load(shipped)
        assert capsys.readouterr().err == f"configuration: {shipped}\n"
    (tmp_path / "quickstart").write_text("run: {steps: 7}\n")
    assert command_line.configuration("quickstart").run.steps == 7
    assert capsys.readouterr().err == ""
    for name in ("elsewhere/quickstart.yaml", "slowstart", ".."):
        with pytest.raises(UserError, match="cannot read configuration"):
            command_line.configuration(name)


def test_commands_that_are_shown_can_be_run_there(tmp_path: Path, monkeypatch) -> None:
    """In the clone its own programs; elsewhere `int-lm` where it is on the path, or the module."""
    monkeypatch.setenv("PATH", str(tmp_path))  # no int-lm, no python
    monkeypatch.chdir(ROOT)
    assert command_line.command("eval").endswith("python eval.py")
    assert command_line.command("sample").endswith("python -m int_lm.sample")
    monkeypatch.chdir(tmp_path)
    assert command_line.command("eval") == f"{command_line.interpreter()} -m int_lm eval"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    (tmp_path / "int-lm").touch(mode=0o755)
    assert command_line.command("eval") == "int-lm eval"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(programs, "installed", lambda: True)
    assert command_line.command("export") == "int-lm export"


def test_a_module_of_the_same_name_is_told_apart(tmp_path: Path, run_command) -> None:
    """One that lies there does not come first; one that was imported already is refused."""
    (tmp_path / "data.py").write_text("raise SystemExit('mine')\n")
    done = run_command("-m", "int_lm", "prepare", "--data.path", "nowhere.txt")
    assert done.returncode == 2 and "nowhere.txt" in done.stderr
    (tmp_path / "data.py").write_text("")
    program = "import sys; sys.path.insert(0, ''); import data, int_lm; int_lm.load('nowhere')"
    done = run_command("-c", program)
    assert "UserError: a module named data is imported already, from " in done.stderr
    assert f"{tmp_path}{os.sep}data.py" in done.stderr


def test_a_package_that_is_missing_is_named(run_command) -> None:
    """The harness is an extra; without it, one sentence says how to install it."""
    program = (
        "import sys\nsys.modules['lm_eval'] = None\nfrom int_lm.__main__ import main\n"
        "main(['harness', '--export', 'x', '--tasks', 'y'])"
    )
    done = run_command("-c", program)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'int-lm[harness]'" in done.stderr
