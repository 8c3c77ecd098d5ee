"""The wheel, installed far from the clone: every verb of `int-lm`, and the example of README.md."""

import json
import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_api import readme_example
from test_commands import train_arguments, write_text

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow

Command = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, built with the hatchling that is installed."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-index", "--no-build-isolation", "-w", place, ROOT], check=True
    )
    [wheel] = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which everything is run; it holds a text."""
    place = tmp_path_factory.mktemp("away")
    write_text(place / "book.txt")
    return place


@pytest.fixture(scope="module")
def command(wheel: Path, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run a program of a fresh environment that has the wheel, and return its stdout.

    The dependencies are those of this Python: its packages come last on the path, and an editable
    int_lm among them is not found by it.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    programs = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    options = ["install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, programs / "python", *options, wheel], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours))
    variables = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    variables |= {
        "PATH": f"{programs}{os.pathsep}{variables['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(environment / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(program: str, *arguments: object) -> str:
        done = subprocess.run(
            [programs / program, *map(str, arguments)],
            cwd=place,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(command: Command) -> str:
    """A tiny run in runs/tiny, on shards that `prepare` wrote; what training printed."""
    sizes = {"run_dot_steps": 40, "es_dot_population": 64, "model_dot_direct_bits": 10}
    arguments = train_arguments(Path("book.txt"), Path("runs/tiny"), **sizes)
    arguments = ["--config", "quickstart", *arguments]
    prepared = command("int-lm", "prepare", *arguments)
    assert re.search(r"text: shards/text-\w+, 1 shard, sound", prepared)
    printed = command("int-lm", "train", *arguments)
    assert "prepared" not in printed
    return printed


def test_the_wheel_puts_nothing_but_int_lm_among_packages(wheel: Path) -> None:
    """With the kernels' sources, the mark of types, and the programs inside."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert [top for top in tops if not top.endswith(".dist-info")] == ["int_lm"]
    assert not [name for name in names if re.search(r"__pycache__|\.so$|/tests/", name)]
    for folder, pattern in (("int_lm", "*.py"), ("int_lm/native", "*.cc"), ("int_lm", "*.inc")):
        files = (file.relative_to(ROOT) for file in (ROOT / folder).rglob(pattern))
        assert {file.as_posix() for file in files} <= set(names)
    for folder in ("data", "tokenization", "configs"):
        files = [file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".yaml")]
        assert files
        inside = {f"int_lm/_programs/{file.relative_to(ROOT).as_posix()}" for file in files}
        assert inside <= set(names)
    assert {"int_lm/py.typed", "int_lm/_programs/train.py", "int_lm/_programs/eval.py"} <= set(
        names
    )


def test_the_clone_is_out_of_sight(command: Command) -> None:
    """int_lm is the installed one, and its programs are no modules for others."""
    file = Path(command("python", "-c", "import int_lm; print(int_lm.__file__)").strip())
    assert not file.is_relative_to(ROOT) and "site-packages" in file.parts
    found = (
        "from importlib.util import find_spec\n"
        "print([n for n in ('data', 'tokenization', 'train', 'eval', 'configs') if find_spec(n)])"
    )
    assert command("python", "-c", found) == "[]\n"
    assert command("int-lm", "--version") == command("python", "-m", "int_lm", "--version")
    assert "  train-tokenizer  " in command("int-lm", "--help")


def test_a_shipped_configuration_is_found(command: Command) -> None:
    """In the package; `plan` reads it and trains nothing."""
    small = train_arguments(Path("no.txt"), Path("runs/no"), model_dot_direct_bits=10)
    planned = command("int-lm", "plan", "--config", "quickstart", *small)
    tables = 6 * 2**10 * 256  # of the six contexts that this configuration has
    assert f"{tables:,} of context tables" in planned.splitlines()[0]


def test_what_training_shows_next_can_be_run(command: Command, trained: str, place: Path) -> None:
    """The three commands after `next:` are run as they were printed."""
    shown = trained.split("next:\n")[1].splitlines()
    assert [line.split()[:2] for line in shown] == [
        ["int-lm", verb] for verb in ("eval", "sample", "export")
    ]
    evaluated, sampled, exported = (command(*shlex.split(line)) for line in shown)
    bits = json.loads((place / "runs/tiny/evaluation.json").read_text())["bits_per_byte"]
    assert f"{bits:.4f}" in evaluated
    assert sampled.startswith("def ")
    [line] = re.findall(r"next: (.*)", exported)
    assert command(*shlex.split(line)).startswith("def ")


def test_run_and_export_agree(command: Command, trained: str, place: Path) -> None:
    """Figures, text, and every logged hash."""
    command("int-lm", "export", "--run", "runs/tiny", "--out", "exports/tiny")
    results = []
    for source in (("--run", "runs/tiny"), ("--export", "exports/tiny")):
        figures = json.loads(command("int-lm", "eval", *source, "--json"))
        assert 0 < figures["bits_per_byte"] < figures["baselines"]["unigram"]
        assert figures["step"] == 40
        text = command("int-lm", "sample", *source, "--prompt", "et", "--tokens", 30, "--seed", 3)
        results.append((figures | {"model": None}, text))
    assert results[0] == results[1]
    kept = json.loads((place / "runs/tiny/evaluation.json").read_text())
    assert kept["bits_per_byte"] == results[0][0]["bits_per_byte"]
    assert f"{kept['bits_per_byte']:.4f}" in trained
    verdict = json.loads(command("int-lm", "verify", "runs/tiny", "--step", 0, "--json"))
    assert verdict["confirmed"] == [1, *range(5, 41, 5)] and verdict["differs"] is None


def test_a_tokenizer_is_trained_and_looked_at(command: Command) -> None:
    """And the command that is shown next is one that runs."""
    flags = ("--data.path", "book.txt", "--data.document_bytes", 1024, "--vocab_size", 512)
    trained = command("int-lm", "train-tokenizer", *flags, "--out", "tokenizers/book")
    assert "tokenizers/book: 512 pieces" in trained
    [line] = re.findall(r"next: (.*)", trained)
    assert line == "int-lm inspect-tokenizer --tokenizer tokenizers/book"
    looked = command(*shlex.split(line), *flags[:4])
    assert "sentencepiece, 512 ids" in looked and "all came back whole" in looked


def test_the_machine_is_examined(command: Command, wheel: Path) -> None:
    """By the package alone: what it needs is told by its metadata, JAX by a process of its own."""
    program = (
        "import json; from pathlib import Path; from int_lm import doctor;"
        "print(json.dumps(doctor.examined(Path('runs'), 'int-lm build-kernels')))"
    )
    found = json.loads(command("python", "-c", program))
    assert wheel.name.startswith(f"int_lm-{found['versions']['int-lm']}-")
    assert found["versions"]["jax"] and None not in found["versions"].values()
    assert found["jax"]["platform"] == "cpu" and found["jax_error"] is None


def test_curves_are_drawn(command: Command, trained: str, place: Path) -> None:
    """From a directory without a clone."""
    pytest.importorskip("matplotlib")
    said = command("int-lm", "plot", "runs/tiny", "--out", "curves.svg")
    assert said.startswith("wrote curves.svg: bits per byte, ")
    assert "bits per byte" in (place / "curves.svg").read_text()


def test_the_example_of_the_readme(command: Command, place: Path) -> None:
    """Exactly the code that README.md shows."""
    printed = command("python", "-c", readme_example())
    assert "int-lm eval --run runs/book" in printed
    assert (place / "exports/book/runtime.py").is_file()


def test_kernels_are_built_where_the_package_is(command: Command, trained: str) -> None:
    """With them the weights are the same; where nothing can be written, a sentence says so."""
    native = Path(
        command("python", "-c", "from int_lm.native import build; print(build.HERE)").strip()
    )
    if os.geteuid() != 0:  # root may write anywhere
        native.chmod(0o500)
        said = command("int-lm", "build-kernels")
        native.chmod(0o700)
        assert said == f"no kernels: {native} cannot be written to; JAX computes everything\n"
    said = command("int-lm", "build-kernels")
    built = list(native.glob("kernels-*.so"))
    assert said.startswith("kernels built with" if built else "no ")
    assert said.count("\n") == 1
    verdict = json.loads(command("int-lm", "verify", "runs/tiny", "--step", 0, "--json"))
    assert verdict["confirmed"][-1] == 40 and verdict["differs"] is None
