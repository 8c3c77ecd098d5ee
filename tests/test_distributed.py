"""Several processes: the bits of one, one decision, and no waiting for the dead."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tiny_command import assert_same_run, train_arguments

from int_lm import config
from int_lm.config import Config, DistributedConfig
from int_lm.errors import UserError
from int_lm.files import checkpoint
from int_lm.training import distributed, launchers

TUNING = ["--es.population", "8", "--es.members_per_stream", "4", "--es.sigma_shift", "1"]
TUNING += ["--reward.tokens", "4", "--reward.heldout_prompts", "4", "--run.steps", "2"]
TUNING += ["--es.schedule", "constant", "--es.learning_rate", "2", "--run.log_every", "1"]


def free_port() -> int:
    """A port of this machine that nothing uses just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    count: int,
    text: Path,
    run: Path,
    environment: dict[str, str],
    **changes,
) -> list[subprocess.Popen[str]]:
    """Start a run of so many processes on this machine."""
    arguments = train_arguments(text, run, data_dot_shards=run.parent / "shards", **changes)
    return start_command(count, [ROOT / "train.py", *arguments], environment)


def start_command(
    count: int, arguments: Sequence[str | Path], environment: dict[str, str]
) -> list[subprocess.Popen[str]]:
    """Start so many processes of a Python program that meet on this machine."""
    meeting = ["--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    meeting += ["--distributed.processes", str(count)]
    return [
        subprocess.Popen(
            [sys.executable, *arguments, *meeting, "--distributed.process_id", str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def kill_thrice(start: Callable[[], "subprocess.Popen[str]"], run: Path, last: int) -> None:
    """Start a run three times, and kill it after each new checkpoint; all before its last step."""
    saves, reached = run / "checkpoints", 0
    for _ in range(3):
        killed = start()
        while (checkpoint.latest_step(saves) or 0) <= reached:
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.01)
        killed.kill()
        killed.communicate()
        reached = checkpoint.latest_step(saves) or 0
    assert 0 < reached < last


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = 300) -> list[list[str]]:
    """[stdout, stderr] of every process, which must end in time."""
    return [list(process.communicate(timeout=seconds)) for process in processes]


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_give_the_bits_of_one(
    whole, text, tmp_path: Path, command_environment
) -> None:
    """The same weights, states and log; the first process alone speaks and writes."""
    run = tmp_path / "run"
    processes = start(2, text, run, command_environment)
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same_run(run, whole[0])
    assert "devices: 2 (cpu) of 2 processes" in outputs[0][0]
    assert "steps" not in outputs[1][0]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("devices", [1, 2])
def test_four_processes_give_the_bits_of_one(
    whole, text, tmp_path: Path, command_environment, devices: int
) -> None:
    """With one and with two devices each."""
    run = tmp_path / "run"
    processes = start(4, text, run, command_environment | {"JAX_NUM_CPU_DEVICES": str(devices)})
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert_same_run(run, whole[0])


@pytest.mark.slow
@pytest.mark.alone
def test_tuning_gives_the_same_bits_in_every_way(
    whole, tmp_path: Path, command_environment
) -> None:
    """Twenty steps on one device, two and four, in two processes, and killed three times.

    Two processes read the weights of the run before they meet; the first one alone prints figures.
    """
    tuning = ["-m", "int_lm.tune", "--run", whole[0], "--reward", "sorting", "--json", *TUNING]
    tuning += ["--run.steps", "20", "--run.checkpoint_every", "3"]
    environment = command_environment | {"PYTHONPATH": str(ROOT)}

    def one(name: str, devices: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *tuning, "--run.dir", tmp_path / name],
            env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def figures(process: subprocess.Popen[str], output: list[str]) -> dict[str, Any]:
        assert process.returncode == 0, output
        assert output[0].count("\n") == 1, output
        return json.loads(output[0]) | {"seconds": None}

    alone = one("one")
    expected = figures(alone, ended([alone])[0])
    assert expected["steps"] == 20
    for devices in (2, 4):
        several = one(f"{devices} devices", devices)
        assert figures(several, ended([several])[0]) == expected
        assert_same_run(tmp_path / f"{devices} devices", tmp_path / "one")

    both = start_command(2, [*tuning, "--run.dir", tmp_path / "two"], environment)
    outputs = ended(both)
    assert figures(both[0], outputs[0]) == expected
    assert (both[1].returncode, outputs[1][0]) == (0, "")
    assert_same_run(tmp_path / "two", tmp_path / "one")

    kill_thrice(lambda: one("killed"), tmp_path / "killed", 20)
    again = one("killed")
    assert figures(again, ended([again])[0]) == expected
    assert_same_run(tmp_path / "killed", tmp_path / "one")


# -- In one process --------------------------------------------------------------------------------

STEP = {
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
OPEN_MPI_4 = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}


@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        (DistributedConfig(), {}, None),
        (DistributedConfig(), {"SLURM_NTASKS": "1"}, None),
        (DistributedConfig(), {"SLURM_NTASKS": ""}, None),
        (DistributedConfig(), STEP, 4),
        (DistributedConfig(), STEP | {"SLURM_STEP_NUM_TASKS": "4"}, 4),
        (DistributedConfig(), OPEN_MPI_4, 2),
        (DistributedConfig(), OPEN_MPI_4 | {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17"}, 2),
        (DistributedConfig(), {"WORLD_SIZE": "1", "RANK": "0"}, None),
        (DistributedConfig(), {"WORLD_SIZE": "8"}, None),  # a container's, of no launcher
        (DistributedConfig(coordinator="none"), {"SLURM_NTASKS": "4"}, None),
        (DistributedConfig(coordinator="a:1", processes=2, process_id=0), {}, 2),
        (DistributedConfig(coordinator="a:1", processes=2, process_id=0), OPEN_MPI, 2),
        (DistributedConfig(coordinator="a:1", processes=1, process_id=0), {}, None),
    ],
)
def test_launchers_are_recognised(
    settings, variables: dict[str, str], expected: int | None
) -> None:
    """A run of several processes is one that a launcher or the configuration says is one."""
    found = distributed.expected(settings, variables)
    assert (found and found.processes) == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SLURM_NTASKS": "4"}, "SLURM job of 4 tasks .* wait for 3 others: .* with srun, or"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, "SLURM job of 4 tasks"),  # a shell of salloc
        (OPEN_MPI, "mpirun started 2 processes .*process_id \\$OMPI_COMM_WORLD_RANK"),
        ({"PMI_SIZE": "3", "PMI_RANK": "1"}, "mpiexec started 3 .*distributed.processes 3"),
        ({"WORLD_SIZE": "8", "RANK": "0"}, "torchrun started 8 processes"),
    ],
)
def test_an_allocation_without_its_launcher_is_refused_at_once(
    variables: dict[str, str], words: str
) -> None:
    """With the launcher's name, and the way to train in one process."""
    with pytest.raises(UserError, match=f"{words}.*--distributed.coordinator none"):
        distributed.expected(DistributedConfig(), variables)


def test_a_process_that_waits_says_for_whom(monkeypatch, capsys) -> None:
    """Within seconds, and where; not when the others are there."""
    monkeypatch.setattr(distributed, "SILENT_SECONDS", 0.01)
    others = launchers.Launched(4, "2", "node7:1234")
    with distributed._told("train.py", others):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert said.startswith("process 2 of 4 waits for the others at node7:1234") and "none" in said
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(distributed, "CONNECTING_SECONDS", 0.05)
    with distributed._told("train.py", others):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert left and "train.py: error: process 2 of 4 did not meet the others at node7" in said
    monkeypatch.setattr(distributed, "SILENT_SECONDS", 60)
    with distributed._told("train.py", others):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coordinator": "somewhere"}, "must be host:port, auto or none"),
        ({"coordinator": "a:1"}, "go together"),
        ({"processes": 2}, "go together"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "must be below"),
        ({"timeout": 0.0}, "must be >= 1"),
    ],
)
def test_processes_that_cannot_meet_are_refused(fields, words: str) -> None:
    """Half a description of the processes is none."""
    with pytest.raises(UserError, match=words):
        config.validate(Config(distributed=DistributedConfig(**fields)))


def test_a_copy_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes of two devices; one device's weights have come apart."""
    of_all = np.zeros((3, 2, 2), np.uint32)
    monkeypatch.setattr(distributed, "everyones", lambda value: of_all)
    distributed.require_equal_weights(7, of_all[0])
    of_all[1, 0, 1] = 1
    with pytest.raises(UserError, match="device 0 of process 1 differ .* after step 7"):
        distributed.require_equal_weights(7, of_all[0])


def test_the_watchdog_ends_a_process_that_waits(tmp_path: Path) -> None:
    """It leaves in time those who come back in time."""
    program = (
        "import sys, time, jax; from int_lm.training import distributed\n"
        "jax.process_count = lambda: 2\n"
        "with distributed.Watchdog('train.py', 5): pass\n"
        "print('back', flush=True)\n"
        "with distributed.Watchdog('train.py', 0.2): time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 3 and done.stdout == "back\n", done
    assert "waited 0 seconds" in done.stderr and "start them again" in done.stderr
