"""The trackers that `run.track` can name: TensorBoard, Trackio and Weights & Biases.

Each is a class that begins to track a `Subject`. Packages are imported when a tracker is started.
"""

import importlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from int_lm.training.metrics_file import flat

PROJECT = "int_lm"  # of runs, unless WANDB_PROJECT or TRACKIO_PROJECT names another
EVENT_VERSION = "brain.Event:2"  # TensorBoard's name of the format of its event files
Row = Mapping[str, Any]


class Subject(NamedTuple):
    """The run that is tracked.

    Attributes:
      root: the run directory.
      identifier: of the run in trackers, 8 hex digits; see `track.identifier`.
      first: the step at which this process goes on; 0 for a new run.
      rows: of `metrics.jsonl` so far.
      config: the configuration as nested plain values.
    """

    root: Path
    identifier: str
    first: int
    rows: Sequence[Row]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run: that of its directory."""
        return self.root.resolve().name


class Tracker(Protocol):
    """One tracker of one run. Every method may raise any exception.

    Attributes:
      where: where to look at the run, in words.
    """

    where: str

    def add(self, row: Row) -> None:
        """Hand over a row; its `step` is above that of the row before."""
        ...

    def close(self, failed: bool) -> None:
        """End; `failed` is whether the run ends with an exception."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run directory.

    They are derived from `metrics.jsonl` alone: every start of the run writes a file with all
    rows and empties the one before. A viewer that showed that one forgets it (see `purge`); it is
    not deleted yet, because a viewer that cannot open its file does not go on to the next.
    """

    def __init__(self, subject: Subject):
        protocol, records = map(
            importlib.import_module, ("tensorboardX.proto.event_pb2", "tensorboardX.record_writer")
        )
        self._event = protocol.Event
        self._summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        folder = subject.root / "tensorboard"
        folder.mkdir(exist_ok=True)
        older = list(folder.glob("events.out.tfevents.*"))
        now = time.time()
        spent = max((row.get("seconds", 0.0) for row in subject.rows), default=0.0)
        self._origin = now - spent  # so that the relative time is the time of training
        self.where = f"{folder} (tensorboard --logdir {subject.root.parent})"
        # viewers read the files of a folder in the order of their names
        self._writer = records.RecordWriter(str(folder / f"events.out.tfevents.{now:.6f}.int_lm"))
        self._write(protocol.Event(wall_time=self._origin, file_version=EVENT_VERSION))
        purge = protocol.SessionLog(status=protocol.SessionLog.START)
        self._write(protocol.Event(wall_time=self._origin, step=0, session_log=purge))
        self._write_text("config", subject.config)
        for row in subject.rows:
            self._write_row(row)
        self._writer.flush()
        for path in older:
            if path.stat().st_size:
                os.truncate(path, 0)
            else:
                path.unlink()

    def add(self, row: Row) -> None:
        """See `Tracker.add`."""
        self._write_row(row)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """See `Tracker.close`."""
        del failed
        self._writer.close()

    def _write_row(self, row: Row) -> None:
        numbers = {
            name: value for name, value in flat(row).items() if isinstance(value, int | float)
        }
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
            if name != "step"
        ]
        seconds = row.get("seconds", 0.0)
        self._write(
            self._event(
                wall_time=self._origin + seconds,
                step=row["step"],
                summary=self._summary(value=values),
            )
        )

    def _write_text(self, name: str, tree: Mapping[str, Any]) -> None:
        """Write values as a table of Markdown, which the viewer shows below `Text`."""
        summary = importlib.import_module("tensorboardX.summary")
        lines = [f"| {key} | {value} |" for key, value in flat(tree).items()]
        text = "\n".join(["| field | value |", "| --- | --- |", *lines])
        self._write(self._event(wall_time=self._origin, summary=summary.text(name, text)))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


class Trackio:
    """A run of Trackio, in its database on this machine."""

    def __init__(self, subject: Subject):
        self._trackio: Any = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        name = f"{subject.name}-{subject.identifier}"
        self._run = self._trackio.init(
            project=project,
            name=name,
            config=flat(subject.config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.where = f"run {name} (trackio show --project {project})"
        self._known = self._run._next_step - 1  # last step in its database; -1 for none
        for row in subject.rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """See `Tracker.add`; what the tracker has already is left out."""
        if row["step"] > self._known:
            values = flat(row)
            self._run.log(values, step=values.pop("step"))

    def close(self, failed: bool) -> None:
        """See `Tracker.close`."""
        del failed
        self._trackio.finish()


class WeightsAndBiases:
    """A run of Weights & Biases: in files below the run directory, or online for who is logged in.

    Its files are written with a delay of many seconds, so that a kill loses rows. Those that were
    not sent to a server yet are therefore replaced by new ones with all rows.
    """

    def __init__(self, subject: Subject):
        wandb: Any = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE")
        if not mode:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        pattern = f"wandb/offline-run-*-{subject.identifier}"
        own = list(subject.root.glob(pattern))
        sent = [path for path in own if list(path.glob("*.synced"))]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=subject.name,
            id=subject.identifier,
            dir=subject.root,
            mode=mode,
            resume="allow",
            config=subject.config,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=30,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        # `step` is the next one of an online run that is resumed, and 0 offline
        self._known = max(self._run.step - 1, subject.first if sent else -1)
        files = f"{subject.root}/{pattern}"
        offline = f"{files} (wandb sync {files} sends it)"
        self.where = (
            offline if self._run.offline else self._run.url or f"nowhere (WANDB_MODE is {mode})"
        )
        for row in subject.rows:
            self.add(row)
        for path in set(own) - set(sent):
            shutil.rmtree(path)

    def add(self, row: Row) -> None:
        """See `Tracker.add`; what the tracker has already is left out."""
        if row["step"] > self._known:
            values = flat(row)
            self._run.log(values, step=values.pop("step"))

    def close(self, failed: bool) -> None:
        """See `Tracker.close`."""
        self._run.finish(exit_code=int(failed))


class Kind(NamedTuple):
    """A kind of tracker: the package that it needs, and how it is started."""

    package: str
    start: Callable[[Subject], Tracker]


KINDS = {  # by name in `run.track`, which is also the name of the extra with the package
    "tensorboard": Kind("tensorboardX", TensorBoard),
    "trackio": Kind("trackio", Trackio),
    "wandb": Kind("wandb", WeightsAndBiases),
}
