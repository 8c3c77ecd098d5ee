"""`python -m int_lm.verify`: an honest run is confirmed, and whatever is not honest is found."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_command

from int_lm import runtime, verify
from int_lm.errors import UserError
from int_lm.verify import __main__ as command

pytestmark = pytest.mark.slow  # all of them need a finished run


@pytest.fixture
def run(whole: tuple[Path, str]) -> Path:
    """A finished run of 60 steps; its text and its shards are still there."""
    return whole[0]


def test_a_run_is_confirmed_from_any_checkpoint_and_from_its_beginning(run, capsys) -> None:
    """Every logged hash after the checkpoint is found again."""
    command.main([str(run), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["from"] > 0 and figures["confirmed"][-1] == 60 and figures["differs"] is None
    command.main([str(run), "--step", "0"])
    assert "steps 1 to 60 computed again; all 13 logged hashes are right" in capsys.readouterr().out
    command.main([str(run), "--step", "0", "--steps", "7", "--json"])
    assert json.loads(capsys.readouterr().out)["confirmed"] == [1, 5]


def test_a_run_of_one_checkpoint_is_computed_from_its_beginning(run, tmp_path, capsys) -> None:
    """Nothing was logged after it; said on stderr, with how to compute less."""
    copy = shutil.copytree(run, tmp_path / "copy")
    for folder in (copy / "checkpoints").iterdir():
        if folder.is_dir() and folder.name != "60":
            shutil.rmtree(folder)
    command.main([str(copy), "--steps", "7"])
    printed = capsys.readouterr()
    assert "steps 1 to 5 computed again; all 2 logged hashes are right" in printed.out
    assert "after the checkpoint of step 60; computing all from the beginning" in printed.err


def test_a_hash_that_was_changed_is_found(run: Path, tmp_path: Path, capsys) -> None:
    """The first step that differs is named, with both hashes, and the exit code is 1."""
    metrics = run / "metrics.jsonl"
    honest = metrics.read_bytes()
    try:
        changed = re.sub(rb'("step": 30,.*?"weights_hash": ")\w', rb"\1g", honest)
        assert changed != honest
        metrics.write_bytes(changed)
        with pytest.raises(SystemExit) as stopped:
            command.main([str(run), "--step", "0", "--json"])
        assert stopped.value.code == 1
        figures = json.loads(capsys.readouterr().out)
        step, logged, found = figures["differs"]
        assert step == 30 and logged[0] == "g" and logged[1:] == found[1:]
        assert figures["confirmed"][-1] == 25
    finally:
        metrics.write_bytes(honest)


def test_a_run_that_was_made_longer_is_confirmed(tmp_path: Path, run_command, capsys) -> None:
    """Twice, at steps whose checkpoints are gone by now; its rates depend on the length."""
    text, longer = tiny_command.write_text(tmp_path / "text"), tmp_path / "longer"
    for steps in (20, 30, 45):
        done = run_command(
            "train.py",
            *tiny_command.train_arguments(
                text,
                longer,
                run_dot_steps=steps,
                run_dot_keep=1,
                es_dot_update="adaptive",
                es_dot_schedule="cosine",
            ),
        )
        assert done.returncode == 0, done.stderr
    command.main([str(longer), "--step", "0"])
    assert "steps 1 to 45 computed again; all" in capsys.readouterr().out


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    """No run, no such checkpoint, nothing logged after it, a log that is none."""
    with pytest.raises(UserError, match="no run at"):
        command.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="holds no checkpoint"):
        command.main([str(tmp_path)])
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / runtime.WEIGHTS_FILE).touch()
    with pytest.raises(UserError, match="is an export; name the run directory"):
        command.main([str(tmp_path / "export")])
    with pytest.raises(UserError, match="no checkpoint 3 in"):
        command.main([str(run), "--step", "3"])
    with pytest.raises(UserError, match="no step after 60"):
        command.main([str(run), "--step", "60"])
    with pytest.raises(UserError, match="no hash of steps 57 to 57; make --steps at least 4"):
        command.main([str(run), "--step", "56", "--steps", "1"])
    with pytest.raises(UserError, match="--steps is -1"):
        command.main([str(run), "--steps", "-1"])
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "weights_hash": "a"}\n[]\n')
    with pytest.raises(UserError, match="line 2 is no row"):
        verify.logged_hashes(path)
    path.write_text('{"step": 1, "weights_hash": "a"}\n{"step": 2, "wei')
    assert verify.logged_hashes(path) == {1: "a"}
