"""`python -m int_lm.control` as a user runs it: figures, resumption, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand
from tiny_command import rows as all_rows

from int_lm.control import __main__ as command
from int_lm.errors import UserError
from int_lm.files import checkpoint

TINY = {
    "--env": "plugins.chase:CHASE",
    "--model.width": "8",
    "--es.population": "16",
    "--es.learning_rate": "2",
    "--es.schedule": "constant",
    "--control.episodes": "2",
    "--control.heldout_episodes": "4",
    "--run.steps": "4",
    "--run.log_every": "1",
    "--run.eval_every": "2",
    "--run.checkpoint_every": "1",
}


def control(*arguments: str, **flags: str) -> None:
    """Run the command in this process; flags as in `run_dir="a"`."""
    named = TINY | {f"--{name.replace('_dot_', '.')}": value for name, value in flags.items()}
    command.main([*(text for pair in named.items() for text in pair), *arguments])


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of the metrics, without times."""
    return [
        {name: value for name, value in row.items() if name != "environment_steps_per_second"}
        for row in all_rows(run)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_is_the_same_broken_off_or_not(
    folder: Path, capsys: pytest.CaptureFixture[str], run_command: RunCommand
) -> None:
    """Its figures are those of its rows, and its directory is no language model's."""
    control("--json", run_dot_dir="a")
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    logged = rows(folder / "a")
    assert [row["step"] for row in logged] == [0, 1, 2, 3, 4]
    assert figures.keys() == {
        *("env", "steps", "population", "seconds"),
        *("return_before", "return_after", "random_return"),
    }
    assert (figures["env"], figures["steps"], figures["population"]) == (TINY["--env"], 4, 16)
    assert figures["return_before"] == logged[0]["heldout_return"]
    assert figures["random_return"] == logged[0]["random_return"]
    assert figures["return_after"] == logged[-1]["heldout_return"]
    assert len({row["weights_hash"] for row in logged}) == 5
    assert [("heldout_return" in row) for row in logged] == [True, False, True, False, True]
    assert "steps/s" in captured.err and "held out" in captured.err

    control("--distributed.devices", "1", run_dot_dir="b", run_dot_steps="2")
    control("--distributed.devices", "1", run_dot_dir="b")
    assert rows(folder / "b") == logged
    hosts = [checkpoint.read_host(folder / name / "checkpoints") for name in "ab"]
    assert hosts[0]["control"] == hosts[1]["control"]
    assert hosts[0]["control"]["statistics"]["count"] > 100
    capsys.readouterr()
    with pytest.raises(SystemExit) as nothing_left:
        control("--json", run_dot_dir="a")
    assert nothing_left.value.code == 4
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}

    for flags, expected in (
        ({"control_dot_episodes": "3"}, "control.episodes 2, now 3"),
        ({"env": "CartPole"}, "control.env 'plugins.chase:CHASE', now 'CartPole'"),
        ({"es_dot_fitness": "sign"}, "es.fitness 'standard', now 'sign'"),
    ):
        with pytest.raises(UserError, match=expected) as refused:
            control(run_dot_dir="b", **flags)
        assert str(refused.value).endswith("or start a new run with another --run.dir")
    done = run_command("eval.py", "--run", "a")
    assert done.returncode == 2 and "a holds a policy, which is no language model" in done.stderr


def test_a_policy_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From chance, or worse, to near the target most of the time."""
    control(
        "--json",
        run_dot_dir="a",
        run_dot_steps="30",
        run_dot_log_every="30",
        run_dot_eval_every="0",
        run_dot_checkpoint_every="0",
        es_dot_population="64",
        control_dot_heldout_episodes="32",
    )
    figures = json.loads(capsys.readouterr().out)
    assert figures["return_after"] > max(figures["random_return"], figures["return_before"]) + 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", ""], "no environment is named; give --env"),
        (["--env", "Acrobat"], "or module:NAME; did you mean Acrobot?"),
        (["--es.population", "15"], "es.population is 15, must be even"),
        (["--es.objective", "log_likelihood"], "needs the one of rewards: reward"),
        (["--es.votes", "unit", "--es.readout", "exact"], "log-likelihood"),
        (["--model.direct", "1"], "model.direct has context tables, which a policy has not"),
        (["--model.cache", "3"], "model.cache has a document cache, which a policy has not"),
        (["--run.init_from", "x"], "run.init_from is of language models"),
        (["--control.max_steps", "99999999"], "make es.chunk, control.heldout_episodes"),
        (["--control.episode", "1"], "did you mean --control.episodes?"),
        (["--control.episodes", "0"], "control.episodes is 0, must be >= 1"),
        (["--run.steps", "-1"], "run.steps is -1, must be >= 0"),
        (["--env", "gymnax:MountainCar-v0"], "needs the package gymnax, which cannot be imported"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    folder: Path, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gymnax", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "int_lm.control.from_gymnax", raising=False)
    with pytest.raises(UserError) as caught:
        control("--run.dir", "new", *arguments)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "new").exists()


def test_the_command_needs_a_name_and_nothing_else(run_command: RunCommand) -> None:
    """Of the directory there is a default, and mistakes are one sentence."""
    assert (
        command.settings_of(command.parse(["--env", "gymnax:A-v1"])).run.dir == "runs/gymnax-A-v1"
    )
    done: subprocess.CompletedProcess[str] = run_command("-m", "int_lm", "control", "--env", "X")
    assert done.returncode == 2 and done.stderr.count("\n") == 2  # with the configuration's path
    assert "int-lm control: error: there is no environment 'X'" in done.stderr
