"""`int_lm` from Python: the example of README.md, the commands' figures and text, and mistakes."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import USERS_FLAGS
from test_commands import write_text
from tiny_command import wait_for_rows

import int_lm
from int_lm import UserError, config
from int_lm.files import checkpoint

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["etaoin shrdlu\n" * 30, "something quite different: ß, 山\n", "x"]
TINY = {
    "model": {"width": 16, "layers": 1},
    "es": {"population": 16, "segment_length": 8, "schedule": "inverse"},  # at any run.steps
    "run": {"steps": 6, "eval_every": 0, "checkpoint_every": 3, "sample_tokens": 0, "keep": 9},
    "data": {"document_bytes": 1024},
    "distributed": {"devices": 1},
}


def readme_example() -> str:
    """The Python code of README.md's section "From Python"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n### From Python\n")[1].split("\n## ")[0]
    [code] = re.findall(r"^```python\n(.*?)^```$", section, flags=re.M | re.S)
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, in which the example of README.md was run: a run and its export."""
    place = tmp_path_factory.mktemp("example")
    write_text(place / "book.txt")
    done = subprocess.run(
        [sys.executable, "-c", readme_example()],
        cwd=place,
        env={  # compiled as a user's program
            **{**os.environ, "XLA_FLAGS": USERS_FLAGS},
            **{"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return place


def test_the_example_of_the_readme_trains_and_exports(place: Path, monkeypatch) -> None:
    """It learns, and leaves a run and an export behind."""
    monkeypatch.chdir(place)  # where the run's text is
    figures = json.loads((place / "runs" / "book" / "evaluation.json").read_text())
    assert figures["step"] == 100
    assert figures["bits_per_byte"] < figures["baselines"]["bigram"]
    for name, step in (("runs/book", 100), ("exports/book", 100)):
        model = int_lm.load(place / name)
        assert (model.path, model.step) == (place / name, step)
        assert f"{name} at step {step}" in repr(model)


@pytest.mark.parametrize(("kind", "name"), [("--run", "runs/book"), ("--export", "exports/book")])
def test_figures_and_text_are_those_of_the_commands(place, run_command, kind, name) -> None:
    """Of the same texts, and of the same prompt, to the last bit."""
    for number, text in enumerate(TEXTS):
        (place / f"{number}.txt").write_text(text, encoding="utf-8")
    files = [f"{number}.txt" for number in range(len(TEXTS))]
    done = run_command("eval.py", kind, name, "--json", "--text", *files, cwd=place)
    assert done.returncode == 0, done.stderr
    model = int_lm.load(place / name)
    figures = model.evaluate([text.encode() for text in TEXTS])
    expected = json.loads(done.stdout)
    assert expected.pop("model") == name and expected.pop("step") == 100
    assert expected["text"].pop("source") == " ".join(files)
    expected["text"].pop("trained_on")  # the command alone looks for the run's shards
    assert figures["text"].pop("source") == "texts given"
    assert json.loads(json.dumps(figures)) == expected
    likelihoods = model.log2_likelihoods(TEXTS)
    assert likelihoods.dtype == np.int64 and likelihoods.shape == (3,)
    assert likelihoods.sum() == figures["log2_likelihood_units"]
    flags = ["--prompt", "et", "--tokens", "30", "--seed", "3", "--temperature", "0.5"]
    done = run_command("-m", "int_lm.sample", kind, name, *flags, cwd=place)
    written = model.sample("et", tokens=30, seed=3, temperature=0.5)
    assert done.stdout == f"et{written}\n" and written
    assert model.sample(b"et", tokens=30, seed=3, temperature=0.5).decode() == written


def test_an_export_is_loaded_without_jax(place: Path, run_command) -> None:
    """And measured, and sampled."""
    program = (
        "import int_lm, sys\nmodel = int_lm.load('exports/book')\n"
        "model.evaluate(['abc'])\nmodel.sample('a', tokens=3)\nassert 'jax' not in sys.modules"
    )
    done = run_command("-c", program, cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_goes_on_as_with_train_py(tmp_path: Path, run_command) -> None:
    """Nested values, then a YAML file with overrides, in two parts: the bits of train.py."""
    text = str(write_text(tmp_path / "words.txt"))
    files = {"path": text, "shards": str(tmp_path / "shards")}
    run = {"dir": str(tmp_path / "run")}
    first = int_lm.train(TINY, data=files, run=run | {"steps": 3})
    assert first.step == 3
    settings = config.from_dict(TINY)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml(settings))
    whole = int_lm.train(tmp_path / "tiny.yaml", data=files, run=run)
    assert whole.step == 6
    data = dataclasses.replace(settings.data, source="text", path=(text,), shards=files["shards"])
    again = dataclasses.replace(settings, data=data)
    assert int_lm.train(again, run=run).step == 6  # only evaluated
    other = ["--data.path", text, "--data.shards", files["shards"], "--run.dir", "other"]
    done = run_command("train.py", "--config", tmp_path / "tiny.yaml", *other)
    assert done.returncode == 0, done.stderr
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [3, 6]
    for model in (whole, int_lm.load(tmp_path / "run", step=6)):
        theirs = int_lm.load(tmp_path / "other")
        assert (model.log2_likelihoods(TEXTS) == theirs.log2_likelihoods(TEXTS)).all()
    before = int_lm.load(tmp_path / "run", step=3)
    assert (before.log2_likelihoods(TEXTS) == first.log2_likelihoods(TEXTS)).all()
    assert (before.log2_likelihoods(TEXTS) != whole.log2_likelihoods(TEXTS)).any()


def test_mistakes_are_user_errors(place: Path, tmp_path: Path, monkeypatch) -> None:
    """One sentence each, and nothing written."""
    monkeypatch.chdir(tmp_path)
    exported, run = int_lm.load(place / "exports/book"), int_lm.load(place / "runs/book")
    for words, call in {
        "nowhere holds neither a run nor an export": lambda: int_lm.load("nowhere"),
        "which holds one step": lambda: int_lm.load(place / "exports/book", step=1),
        "no checkpoint 7 in": lambda: int_lm.load(place / "runs/book", step=7),
        "is an export already": lambda: exported.export("out"),
        "already holds an export": lambda: run.export(place / "exports/book"),
        "there is no text": lambda: run.evaluate([]),
        "text 1 is empty": lambda: run.evaluate(["a", ""]),
        "give a list of texts": lambda: run.log2_likelihoods("a text"),
        "text 0 is not UTF-8": lambda: run.evaluate([b"\xff"]),
        "text 0 has a zero byte": lambda: run.evaluate(["a\0b"]),
        "the prompt is not UTF-8": lambda: run.sample("\ud800"),
        "tokens is 0, must be at least 1": lambda: run.sample(tokens=0),
        "seed is -1, must be between": lambda: run.sample(seed=-1),
        "replace it with overwrite=True": lambda: run.export(place / "exports/book"),
        "text 0 is 5, which is no text": lambda: run.evaluate([5]),  # pyright: ignore
        "texts is None; give a list": lambda: run.evaluate(None),  # pyright: ignore
        "the prompt is 5, which is no text": lambda: run.sample(5),  # pyright: ignore
        "the path is 5, must be": lambda: int_lm.load(5),  # pyright: ignore
        "temperature is 'x', must": lambda: run.sample(temperature="x"),  # pyright: ignore
        "tokens is 2.5, must be an integer": lambda: run.sample(tokens=2.5),  # pyright: ignore
        "tokens is True, must be an integer": lambda: run.sample(tokens=True),
        "top_p is True, must be a number": lambda: run.sample(top_p=True),
        "stop is [1], must be True or False": lambda: run.sample(stop=[1]),  # pyright: ignore
        "the configuration is 5; give": lambda: int_lm.train(5),  # pyright: ignore
        "trusted is 'a:B'; give a list": lambda: int_lm.load("x", trusted="a:B"),
        "unknown section 'runs' in the arguments of train; did you mean run?": lambda: int_lm.train(
            runs={}
        ),
        "run is 3; give fields by section": lambda: int_lm.train(run=3),  # pyright: ignore
        "unknown key run.step in the arguments": lambda: int_lm.train(run={"step": 3}),
        "run.steps in the arguments of train is 'many'": lambda: int_lm.train(
            run={"steps": "many"}
        ),
        "es.population is 7, must be even": lambda: int_lm.train({"es": {"population": 7}}),
        "cannot read configuration quick": lambda: int_lm.train("quick"),
        "nowhere.txt": lambda: int_lm.train(data={"path": "nowhere.txt"}),
    }.items():
        with pytest.raises(UserError) as caught:
            call()
        assert words in str(caught.value), str(caught.value)
        assert "--" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stop_is_told_to_the_caller(tmp_path: Path, command_environment) -> None:
    """Ctrl-C saves; what follows the call is not done with a model that is not trained yet."""
    text = str(write_text(tmp_path / "words.txt"))
    program = (
        "import int_lm\n"
        f"int_lm.train({TINY!r}, data={{'path': {text!r}, 'shards': 'shards'}}, "
        f"run={{'dir': 'run', 'steps': 100000, 'log_every': 1}})\n"
        "print('AFTER')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=command_environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_rows(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert "saved step" in out + err and "AFTER" not in out
    assert "KeyboardInterrupt: training stopped after step" in err
