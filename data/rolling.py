"""A source larger than the disk: stages of shards; each is prepared while the one before is read.

A stage is a run of consecutive documents whose tokens take a quarter of `data.window_bytes`. At
most four stages are held: the first, whose held-out documents are evaluated; the one before; the
one that is read; and the next, which a thread prepares. Windows are permuted within a stage. Stages
follow the order of the source, and begin again after its end. The tokens of a step depend on the
step alone. For this the manifest of every stage is kept: if a run is resumed in a stage that was
deleted, the stage is made again with the same tokens.
"""

import contextlib
import functools
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import make, manifest, shards
from data.corpus import Corpus, Phases
from data.documents import Notice
from data.manifest import Prepared
from data.sources import open_source
from data.streams import Mixture, Part, Streams
from int_lm import config
from int_lm.config import Config, DataConfig
from int_lm.errors import UserError, counted
from int_lm.files.lock import HeldError
from tokenization.interface import Tokenizer

STAGES_HELD = 4
LOOK_AGAIN = 0.2  # seconds between two checks of whether another process has made a stage


class Stages:
    """Finds, makes and deletes the stages of a source.

    Asking for a stage raises the errors of `make.prepare`.
    """

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, say: Notice) -> None:
        [self.source] = config.sources_of(data)
        self._data, self._tokenizer, self._say = data, tokenizer, say
        opened = open_source(self.source, data.document_bytes, notice=say)
        self.directory = make.directory_of(data, self.source, tokenizer, opened)
        self._making = threading.Lock()
        self._failure: tuple[int, BaseException] | None = None
        self._thread: threading.Thread | None = None

    def _path(self, number: int) -> Path:
        return self.directory / f"stage-{number:05}"

    def facts(self, number: int) -> dict[str, Any]:
        """The manifest of a stage: counts, `after`, `last`. It is kept if the stage is deleted."""
        if not (self._path(number) / manifest.FILE).exists():
            self._make(number)
        return manifest.read(self._path(number))

    def __getitem__(self, number: int) -> Prepared:
        """A stage, checked and memory-mapped. It is made if it does not exist."""
        self._make(number)
        return manifest.open_prepared(self._path(number), self.source, self._tokenizer)

    def _make(self, number: int) -> None:
        """Make a stage if it is not there, or wait for the thread or process that makes it."""
        with self._making:
            told = False
            while not manifest.is_complete(self._path(number)):
                if self._failure and self._failure[0] == number:
                    failure, self._failure = self._failure[1], None
                    raise failure
                try:
                    self._make_alone(number)
                except HeldError as error:
                    if not told:
                        self._say(str(error))
                    told = True
                    time.sleep(LOOK_AGAIN)

    def _make_alone(self, number: int) -> None:
        """Make a stage that is not there.

        Raises:
          HeldError: another process is making it.
          UserError: the errors of `make.make_shards`.
        """
        path = self._path(number)
        with make.writing(path):
            if manifest.is_complete(path):
                return
            start, first = None, 0
            if number > 0:
                before = manifest.read(self._path(number - 1))
                start = None if before["last"] else before["after"]
                first = 0 if before["last"] else before["first"] + before["totals"]["documents"]
            pinned = make.pin(self.directory, self.source)
            facts = manifest.facts_of(self._data, pinned, self._tokenizer)
            make.make_shards(
                path,
                open_source(pinned, self._data.document_bytes, notice=self._say),
                self._data,
                self._tokenizer,
                facts | {"first": first},
                start=start,
                first=first,
                most_bytes=max(1, self._data.window_bytes // STAGES_HELD),
                say=self._say,
            )

    def begin(self, number: int) -> None:
        """Prepare a stage in a thread. Its errors are raised when the stage is asked for."""

        def run() -> None:
            try:
                self._make(number)
            except BaseException as error:
                self._failure = number, error

        if not manifest.is_complete(self._path(number)):
            self._thread = threading.Thread(target=run, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until the thread that prepares a stage has ended."""
        if self._thread:
            self._thread.join()

    def drop_before(self, number: int) -> None:
        """Delete the shards of every stage before `number` except the first; keep the manifests.

        Stages that another process is making or deleting are skipped.
        """
        for path in self.directory.glob("stage-*"):
            if not 0 < int(path.name.removeprefix("stage-")) < number:
                continue
            if not any(entry.is_dir() for entry in path.iterdir()):
                continue
            with contextlib.suppress(HeldError), make.writing(path):
                for shard in path.iterdir():
                    if shard.is_dir():
                        shutil.rmtree(shard)


class RollingStreams(Streams):
    """Streams over one stage after another. The arguments are those of `streams.over`.

    Raises:
      UserError: a stage has fewer windows than there are streams.
    """

    def __init__(
        self, stages: Stages, tokenizer: Tokenizer, *, streams: int, length: int, seed: int
    ) -> None:
        name = stages.source.name
        super().__init__(
            [Part(name, [], shards.WINDOW, seed)],
            Mixture([(0, (1.0,))], streams, seed),
            tokenizer=tokenizer,
            length=length,
            span=shards.WINDOW,
        )
        self._stages, self._streams, self._seed = stages, streams, seed
        self._first_rounds = [0]  # of the stages known so far
        windows = stages.facts(0)["totals"]["windows"]
        if windows < streams:
            raise UserError(
                f"a stage of {name} has {counted(windows, 'window')} of text, but {streams} "
                "streams read one each; raise --data.window_bytes, or prepare all of it (0)"
            )
        self._part = functools.lru_cache(maxsize=2)(self._open_part)

    def _stage_of(self, round_number: int) -> tuple[int, int]:
        """(stage of a round, rounds before that stage). Stages not yet known are prepared."""
        while self._first_rounds[-1] <= round_number:
            windows = self._stages.facts(len(self._first_rounds) - 1)["totals"]["windows"]
            self._first_rounds.append(self._first_rounds[-1] + -(-windows // self._streams))
        stage = int(np.searchsorted(self._first_rounds, round_number, side="right")) - 1
        return stage, self._first_rounds[stage]

    def _open_part(self, stage: int) -> Part:
        prepared = self._stages[stage]
        self._stages.drop_before(stage - 1)
        self._stages.begin(stage + 1)
        return Part(prepared.name, prepared.shards, shards.WINDOW, self._seed, stage)

    def _find_round(self, number: int) -> list[tuple[Part, shards.Shard, int, int]]:
        stage, before = self._stage_of(number)
        part = self._part(stage)
        found = []
        first = (number - before) * self._streams
        for window in range(first, first + self._streams):
            # streams that find no window left in the stage's last round read padding
            shard, begin, end = part.unit(window % part.units)
            found.append((part, shard, begin, end if window < part.units else begin))
        return found


@dataclass(frozen=True, eq=False)
class RollingCorpus(Corpus):
    """A corpus whose only source is read in stages; `sources` has the first one."""

    stages: Stages

    def streams(self, settings: Config, phases: Phases) -> Streams:
        """The training streams; `phases` is not used, because there is only one source."""
        es = settings.es
        return RollingStreams(
            self.stages,
            self.tokenizer,
            streams=es.streams,
            length=es.segment_length,
            seed=settings.run.seed,
        )


def open_rolling(data: DataConfig, tokenizer: Tokenizer, *, say: Notice) -> RollingCorpus:
    """The corpus of `data`, which has a `window_bytes`; the first stage is prepared."""
    stages = Stages(data, tokenizer, say)
    return RollingCorpus(tokenizer, [stages[0]], stages)
