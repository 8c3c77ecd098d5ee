"""Control in several processes, killed and resumed: the hashes of one run that nothing disturbed.

The environment is one of floats, so the programs are compiled as users have them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, USERS_FLAGS
from test_distributed import ended, kill_thrice, start_command
from tiny_command import rows as all_rows

from int_lm.files import checkpoint

STEPS = 40
CONTROL = ["-m", "int_lm.control", "--env", "CartPole", "--json"]
CONTROL += ["--model.width", "8", "--es.population", "32", "--control.episodes", "2"]
CONTROL += ["--control.heldout_episodes", "8", "--run.steps", str(STEPS), "--run.log_every", "1"]
CONTROL += ["--run.eval_every", "10", "--run.checkpoint_every", "3"]


def kept(run: Path) -> tuple[list[dict[str, object]], object]:
    """The rows without times, and statistics and figures of the newest checkpoint."""
    clock = "environment_steps_per_second"
    rows = [{name: row[name] for name in row if name != clock} for row in all_rows(run)]
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert len({row["weights_hash"] for row in rows}) > STEPS // 2
    return rows, checkpoint.read_host(run / "checkpoints")["control"]


@pytest.mark.slow
@pytest.mark.alone
def test_control_gives_the_same_bits_in_every_way(tmp_path: Path, command_environment) -> None:
    """On one device and two, in two processes, and killed three times."""
    environment = command_environment | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": USERS_FLAGS}
    del environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]

    def one(name: str, devices: int = 1) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *CONTROL, "--run.dir", tmp_path / name],
            env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def figures(process: "subprocess.Popen[str]", output: list[str]) -> dict[str, object]:
        assert process.returncode == 0, output
        assert output[0].count("\n") == 1, output
        return json.loads(output[0]) | {"seconds": None}

    alone = one("one")
    expected = figures(alone, ended([alone])[0])
    undisturbed = kept(tmp_path / "one")
    assert expected["steps"] == STEPS

    several = one("2 devices", 2)
    assert figures(several, ended([several])[0]) == expected
    assert kept(tmp_path / "2 devices") == undisturbed

    both = start_command(2, [*CONTROL, "--run.dir", str(tmp_path / "two")], environment)
    outputs = ended(both)
    assert figures(both[0], outputs[0]) == expected
    assert (both[1].returncode, outputs[1][0]) == (0, "")
    assert kept(tmp_path / "two") == undisturbed

    kill_thrice(lambda: one("killed"), tmp_path / "killed", STEPS)
    again = one("killed")
    assert figures(again, ended([again])[0]) == expected
    assert kept(tmp_path / "killed") == undisturbed
