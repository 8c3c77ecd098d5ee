"""Faults of a run of one process: each function brings one about and checks what survives it."""

import json
import os
import shutil
import signal
from pathlib import Path

from int_lm.files import checkpoint

from .bench import FLAGS, Bench, Fault, Outcome, Training, fill, read_only, without_privileges

SAME = "the same command goes on to the weights and the log of the undisturbed run"
GOES_ON = "the run goes on to the weights and the log of the undisturbed run"


def wait_for_failed_save(training: Training) -> None:
    training.until(lambda: "could not be written" in training.stderr(), "report of a failed save")


def second_run(bench: Bench) -> Outcome:
    """Two runs in one directory."""
    with bench.training("second_run") as first:
        first.until_checkpoint()
        with first.paused(), bench.training("second_run") as second:
            assert second.end() == 2
            assert f"pid {first.process.pid} on" in second.stderr()
        first.assert_ends_as_undisturbed()
    return Outcome(f"exit code 2: `{second.sentence()}`", f"the first: {GOES_ON}")


def full_for_a_while(bench: Bench) -> Outcome:
    """A disk that gets full, and free again."""
    with bench.small_disk("for_a_while") as disk, bench.training(disk / "run") as training:
        training.until_checkpoint()
        with training.paused():
            filler = fill(disk)
        wait_for_failed_save(training)
        with training.paused():
            seen = training.sentence()
            filler.unlink()
            kept = training.newest()
            assert 0 < kept < FLAGS["--run.steps"]
        training.until(lambda: training.newest() > kept, "later checkpoint")
        training.assert_ends_as_undisturbed()
    return Outcome(f"`{seen}`", f"the checkpoint before; {GOES_ON}")


def _goes_on_on(bench: Bench, training: Training, filler: Path) -> None:
    """The checkpoint before is sound; with space again, the same command ends as ever."""
    kept = training.newest()
    assert 0 < kept < FLAGS["--run.steps"]
    assert checkpoint.read_host(training.directory / "checkpoints", kept)
    filler.unlink()
    assert "damaged" not in bench.assert_goes_on(training.directory)


def full_to_the_end(bench: Bench) -> Outcome:
    """A disk that is full until the run is over."""
    with bench.small_disk("to_the_end") as disk, bench.training(disk / "run") as training:
        training.until_checkpoint()
        with training.paused():
            filler = fill(disk)
        assert training.end() == 2
        assert "bits per byte of all" in training.stdout()
        seen = training.sentence()
        _goes_on_on(bench, training, filler)
    return Outcome(
        f"the final evaluation, then exit code 2: `{seen}`", f"the checkpoint before; {SAME}"
    )


def full_and_told_to_stop(bench: Bench) -> Outcome:
    """A disk that is full when SIGTERM comes."""
    with bench.small_disk("told_to_stop") as disk, bench.training(disk / "run") as training:
        training.until_checkpoint()
        with training.paused():
            filler = fill(disk)
        training.process.terminate()
        assert training.end() == 2
        seen = training.sentence()
        _goes_on_on(bench, training, filler)
    return Outcome(f"exit code 2: `{seen}`", f"the checkpoint before; {SAME}")


def full_from_the_start(bench: Bench) -> Outcome:
    """A full disk, and a run that wants to begin there."""
    with bench.small_disk("from_the_start") as disk:
        filler = fill(disk)
        with bench.training(disk / "run") as training:
            assert training.end() == 2
        filler.unlink()
        bench.assert_goes_on(training.directory)
    return Outcome(f"exit code 2: `{training.sentence()}`", SAME)


def full_while_preparing(bench: Bench) -> Outcome:
    """No space for the token shards."""
    with bench.small_disk("preparing") as disk:
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - (64 << 10))
        flags = ["--data.shards", disk / "shards"]
        with bench.training("preparing/run", flags) as training:
            assert training.end() == 2
            finished = len(list(disk.glob("shards/*/[0-9]????")))
            assert finished > 0
        filler.unlink()
        with bench.training("preparing/run", flags) as training_again:
            training_again.assert_ends_as_undisturbed()
        assert f"after {finished} finished shards" in training_again.stdout()
    return Outcome(f"exit code 2: `{training.sentence()}`", f"the finished shards; {SAME}")


def full_disk_behind_the_output(bench: Bench) -> Outcome:
    """The disk that the console's lines are redirected to gets full."""
    with bench.small_disk("output") as disk:
        log = disk / "log"
        log.write_bytes(b"\n" * 2048)  # half of its last page
        with bench.training("output_run", (), (), log) as training:
            training.until_checkpoint()
            with training.paused():
                fill(disk)
            code = training.end()
            assert training.rows() == bench.undisturbed, (code, training.stderr())
            assert training.newest() == FLAGS["--run.steps"], (code, training.stderr())
        assert "bits per byte of all" not in log.read_text()
    return Outcome(f"the log ends; exit code {code}", GOES_ON)


def read_only_disk(bench: Bench) -> Outcome:
    """The file system of the checkpoints turns read-only, and writable again."""
    with bench.training_at_rest("read_only") as training:
        with read_only(training.directory / "checkpoints"):
            training.go_on()
            wait_for_failed_save(training)
            seen, kept = training.sentence(), training.newest()
            training.process.send_signal(signal.SIGSTOP)
        training.go_on()
        training.until(lambda: training.newest() > kept, "later checkpoint")
        training.assert_ends_as_undisturbed()
    return Outcome(f"`{seen}`", f"the checkpoint before; {GOES_ON}")


def permission_lost(bench: Bench) -> Outcome:
    """The permission to write checkpoints is taken away, and given back."""
    with bench.training("permission", (), without_privileges()) as training:
        training.until_checkpoint()
        checkpoints = training.directory / "checkpoints"
        checkpoints.chmod(0o555)
        wait_for_failed_save(training)
        with training.paused():
            seen, kept = training.sentence(), training.newest()
            checkpoints.chmod(0o755)
        training.until(lambda: training.newest() > kept, "later checkpoint")
        training.assert_ends_as_undisturbed()
    return Outcome(f"`{seen}`", f"the checkpoint before; {GOES_ON}")


def directory_moved(bench: Bench) -> Outcome:
    """The run directory is moved away, and back."""
    with bench.training_at_rest("moved") as training:
        away = bench.directory / "away"
        training.directory.rename(away)
        training.go_on()
        wait_for_failed_save(training)
        with training.paused():
            seen = training.sentence()
            assert not training.directory.exists()
            away.rename(training.directory)
            kept = training.newest()
        training.until(lambda: training.newest() > kept, "later checkpoint")
        training.assert_ends_as_undisturbed()
    return Outcome(f"`{seen}`", f"the checkpoint before; {GOES_ON}")


def directory_moved_during_a_save(bench: Bench) -> Outcome:
    """The run directory is moved away while a checkpoint is written: the writer makes it again.

    Late in a save nothing is left that would make it again: then it is put back at the end.
    """
    with bench.training("moved_saving") as training:
        training.until_checkpoint()
        training.pause_when(lambda: bool(training.unfinished()))
        away, kept = bench.directory / "away_saving", training.newest()
        training.directory.rename(away)
        training.go_on()
        code = training.end()
    seen = training.stderr().splitlines()[0].replace(f"{bench.directory}/", "")
    assert "could not be written" in seen
    assert checkpoint.read_host(away / "checkpoints", kept)
    if not training.directory.exists():
        assert code == 2, (code, training.stderr())
        away.rename(training.directory)
        bench.assert_goes_on("moved_saving")
        return Outcome(f"at the end, exit code 2: `{seen}`", f"the checkpoint before; {SAME}")
    assert code == 0, (code, training.stderr())
    assert training.newest() == FLAGS["--run.steps"]
    evaluation = json.loads((training.directory / "evaluation.json").read_text())
    assert evaluation["weights_hash"] == bench.undisturbed[-1]["weights_hash"]
    return Outcome(
        f"`{seen}`", "what was moved; later checkpoints, with the weights of the undisturbed run"
    )


def directory_deleted(bench: Bench) -> Outcome:
    """The run directory is deleted."""
    with bench.training_at_rest("deleted") as training:
        shutil.rmtree(training.directory)
        training.go_on()
        assert training.end() == 2, training.stderr()
        assert "bits per byte of all" in training.stdout()
        seen = training.sentence()
        bench.assert_goes_on("deleted")
    return Outcome(
        f"the final evaluation, then exit code 2: `{seen}`",
        "nothing; the same command begins again, and ends with the same weights and log",
    )


def directory_replaced(bench: Bench) -> Outcome:
    """The run directory is deleted, and an empty one put in its place."""
    with bench.training_at_rest("replaced") as training:
        shutil.rmtree(training.directory)
        training.directory.mkdir()
        training.go_on()
        assert training.end() == 0, training.stderr()
        assert training.newest() == FLAGS["--run.steps"]
        evaluation = json.loads((training.directory / "evaluation.json").read_text())
        assert evaluation["weights_hash"] == bench.undisturbed[-1]["weights_hash"]
        seen = training.sentence()
        assert "is used from now on" in seen
        with bench.training("replaced") as again:  # brings config.yaml and tokenizer/ back
            assert again.end() == 0
        assert {"config.yaml", "tokenizer"} <= {file.name for file in again.directory.iterdir()}
    return Outcome(
        f"`{seen}`",
        "later checkpoints, with the weights of the undisturbed run; not the log",
    )


def newest_damaged(bench: Bench) -> Outcome:
    """A bit of the newest checkpoint is flipped."""
    with bench.training("damaged") as training:
        training.until_checkpoint(2)
        training.kill()
        state = training.directory / "checkpoints" / str(training.newest()) / "state"
        files = [path for path in state.rglob("*") if path.is_file()]
        victim = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    with bench.training("damaged") as again:
        again.assert_ends_as_undisturbed()
    assert f"checkpoint {state.parent.name} is damaged" in again.stderr()
    return Outcome(f"`{again.sentence()}`", f"the checkpoint before; {GOES_ON}")


def leftovers(bench: Bench) -> Outcome:
    """Saves that were killed left temporary directories."""
    with bench.training("leftovers") as training:
        training.until_checkpoint()
        training.kill()
    checkpoints = training.directory / "checkpoints"
    for name in ("30.orbax-checkpoint-tmp", "390.orbax-checkpoint-tmp-1"):
        shutil.copytree(checkpoints / str(training.newest()), checkpoints / name)
    assert bench.assert_goes_on("leftovers") == ""
    assert list(checkpoints.glob("*tmp*")) == []
    return Outcome("nothing", f"they are removed; {SAME}")


def _killed(bench: Bench, training: Training) -> Outcome:
    """After SIGKILL nobody is kept out, and nothing is lost but steps since the checkpoint."""
    training.kill()
    kept = training.newest()
    assert "damaged" not in bench.assert_goes_on(training.directory)
    files = [path.name for path in training.directory.rglob("*")]
    assert [name for name in files if "tmp" in name or name == "lock"] == []
    return Outcome("nothing", f"{'the newest checkpoint; ' if kept else ''}{SAME}")


def killed_while_preparing(bench: Bench) -> Outcome:
    """SIGKILL while text is prepared."""
    shards, flags = bench.directory / "unprepared", ["--data.shards", "unprepared"]
    with bench.training("killed_preparing", flags) as training:
        training.until(lambda: list(shards.glob("*/00002")), "shard")
        training.kill()
    assert not list(shards.glob("*/manifest.json"))
    with bench.training("killed_preparing", flags) as again:
        again.assert_ends_as_undisturbed()
    assert "finished shards" in again.stdout()
    return Outcome("nothing", f"the finished shards; {SAME}")


def killed_while_compiling(bench: Bench) -> Outcome:
    """SIGKILL while the first step compiles."""
    cold = {"JAX_COMPILATION_CACHE_DIR": str(bench.directory / "cold")}
    with bench.training("killed_compiling", **cold) as training:
        training.until(lambda: "gzip" in training.stdout(), "table of baselines")
        with training.paused():
            assert not training.rows()
        return _killed(bench, training)


def killed_while_saving(bench: Bench) -> Outcome:
    """SIGKILL while a checkpoint is written."""
    with bench.training("killed_saving") as training:
        training.until_checkpoint()
        training.pause_when(lambda: bool(training.unfinished()))
        return _killed(bench, training)


def killed_while_evaluating(bench: Bench) -> Outcome:
    """SIGKILL in the final evaluation."""
    with bench.training("killed_evaluating") as training:
        last = len(bench.undisturbed)
        training.until(lambda: len(training.rows()) == last, "last row")
        training.kill()
        assert "bits per byte of all" not in training.stdout()
        return _killed(bench, training)


def told_to_stop(bench: Bench) -> Outcome:
    """SIGTERM, as before a machine is taken away."""
    with bench.training("told") as training:
        training.until_checkpoint()
        training.process.terminate()
        assert training.end() == 0
        last = training.stdout().strip().splitlines()[-1]
        assert last.startswith(f"saved step {training.newest()}")
    bench.assert_goes_on("told")
    return Outcome(f"exit code 0: `{last}`", f"every step; {SAME}")


FAULTS = [
    Fault("a second run is started in the same directory", second_run),
    Fault("the disk gets full, and free again", full_for_a_while),
    Fault("the disk is full until the run ends", full_to_the_end),
    Fault("the disk is full, and SIGTERM comes", full_and_told_to_stop),
    Fault("the disk is full when the run starts", full_from_the_start),
    Fault("the disk gets full while text is prepared", full_while_preparing),
    Fault("the output goes to a full disk", full_disk_behind_the_output),
    Fault("the file system turns read-only for a while", read_only_disk),
    Fault("the permission to write is lost for a while", permission_lost),
    Fault("the run directory is moved away, and back", directory_moved),
    Fault("the run directory is moved away during a save", directory_moved_during_a_save),
    Fault("the run directory is deleted", directory_deleted),
    Fault("the run directory is replaced by an empty one", directory_replaced),
    Fault("a bit of the newest checkpoint flips", newest_damaged),
    Fault("killed saves left temporary directories", leftovers),
    Fault("SIGKILL while text is prepared", killed_while_preparing),
    Fault("SIGKILL while the step compiles", killed_while_compiling),
    Fault("SIGKILL during a save", killed_while_saving),
    Fault("SIGKILL during the final evaluation", killed_while_evaluating),
    Fault("SIGTERM", told_to_stop),
]
