"""Sources larger than the disk: stages come and go, and every step still reads what it must."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import make, manifest, records, rolling, shards
from data.open import open_corpus
from int_lm import config
from int_lm.config import Config
from int_lm.errors import UserError
from tests.test_prepare import texts, write_json
from tokenization import ByteTokenizer

BYTES = ByteTokenizer()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and batches so small that a short text has many stages."""
    monkeypatch.setattr(shards, "WINDOW", 1024)
    monkeypatch.setattr(records, "BATCH", 16)


def settings_of(path: Path, directory: Path, **data: Any) -> Config:
    named = {"source": "json", "path": [str(path)], "shards": str(directory), "shard_bytes": 4000}
    tree = {
        "data": named | {"window_bytes": 40_000} | data,
        "es": {"population": 8, "segment_length": 100},
    }
    return config.validate(config.from_dict(tree))


def opened(settings: Config) -> rolling.RollingCorpus:
    found = open_corpus(settings.data, BYTES, say=lambda _: None)
    assert isinstance(found, rolling.RollingCorpus)
    return found


def held(directory: Path) -> int:
    """Bytes of tokens on the disk."""
    return sum(file.stat().st_size for file in directory.rglob("tokens.npy"))


def test_every_token_is_read_once_before_the_source_begins_again(tmp_path: Path) -> None:
    """All documents to train on, whole, in one pass; the disk never holds more than was allowed."""
    values = texts(400)
    settings = settings_of(write_json(tmp_path / "x.jsonl", values), tmp_path / "shards")
    found = opened(settings_of(tmp_path / "x.jsonl", tmp_path / "counted"))
    stages, passes = found.stages, 0
    while not stages.facts(passes)["last"]:
        passes += 1
    read_from = opened(settings)
    laid = read_from.streams(settings, [])
    steps = (
        sum(-(-stages.facts(stage)["totals"]["windows"] // 4) for stage in range(passes + 1))
        * laid.steps_per_round
    )
    read: dict[int, dict[int, int]] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        tokens_ST = laid.at(step)
        if step % laid.steps_per_round == 0:
            read_from.stages.wait()  # with the stage to come the disk holds the most
            assert held(tmp_path / "shards") <= 40_000 + 4 * 20_000  # and a batch
        for row, places in zip(tokens_ST[:, 1:].tolist(), laid.locate(step), strict=True):
            for token, place in zip(row, places, strict=True):
                if place is not None and token != 0:
                    read.setdefault(place.document, {})[place.offset] = token
                    counts[place.document, place.offset] += 1
    assert passes > 4 and set(counts.values()) == {1}
    whole = [bytes(read[number][i] for i in range(len(read[number]))) for number in sorted(read)]
    heldout = [text.text for text in found.heldout(0)["json"]]
    expected = [value.encode() for value in values]
    assert len(whole) == sum(stages.facts(i)["totals"]["documents"] for i in range(passes + 1))
    assert set(whole) <= set(expected) and not set(heldout) & set(whole)
    again = laid.locate(steps)[0][0]
    assert again is not None and again.document < 60  # the source from its beginning


def test_any_step_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """Asked for in order, or by a new process in a stage that was dropped: the same tokens."""
    path = write_json(tmp_path / "x.jsonl", texts(300))
    settings = settings_of(path, tmp_path / "shards")
    found = opened(settings)
    laid = found.streams(settings, [])
    steps = 16 * laid.steps_per_round  # into the stage at which the one after the first is dropped
    expected = [laid.at(step) for step in range(steps)]
    found.stages.wait()
    [dropped] = (tmp_path / "shards").rglob("stage-00001")
    names = sorted(entry.name for entry in dropped.iterdir())
    assert names[-1] == manifest.FILE
    assert all(name.endswith(manifest.DOCUMENTS) for name in names[:-1])  # hashes of documents
    for step in (steps - 1, steps // 2, 3, steps // 3):
        fresh = opened(settings)
        assert (fresh.streams(settings, []).at(step) == expected[step]).all()
        fresh.stages.wait()


def test_processes_share_the_making_of_stages(tmp_path: Path) -> None:
    """Each begins the same stage at the same time; one makes it, all read it, and one drops it."""
    path = write_json(tmp_path / "x.jsonl", texts(300))
    settings = settings_of(path, tmp_path / "shards")
    runs = [opened(settings) for _ in range(3)]
    laid = [run.streams(settings, []) for run in runs]
    for step in range(16 * laid[0].steps_per_round):
        tokens = [streams.at(step) for streams in laid]
        assert (tokens[0] == tokens[1]).all() and (tokens[0] == tokens[2]).all()
    for run in runs:
        run.stages.wait()
    [dropped] = (tmp_path / "shards").rglob("stage-00001")
    names = sorted(entry.name for entry in dropped.iterdir())
    assert names[-1] == manifest.FILE
    assert all(name.endswith(manifest.DOCUMENTS) for name in names[:-1])  # hashes of documents


def test_a_stage_that_another_process_makes_is_waited_for(tmp_path: Path) -> None:
    """And what it holds is not dropped."""
    path = write_json(tmp_path / "x.jsonl", texts(300))
    settings, said = settings_of(path, tmp_path / "shards"), []
    found = open_corpus(settings.data, BYTES, say=said.append)
    assert isinstance(found, rolling.RollingCorpus)
    stages, second = found.stages, found.stages.directory / "stage-00001"
    with make.writing(second):
        stages.begin(1)
        deadline = time.monotonic() + 60
        while not any("another process" in sentence for sentence in said):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    stages.wait()
    assert manifest.is_complete(second)
    with make.writing(second):
        stages.drop_before(2)
    assert manifest.is_complete(second)
    stages.drop_before(2)
    assert not manifest.is_complete(second)


def test_a_failure_in_the_background_is_told_in_time(tmp_path: Path) -> None:
    """A record that cannot be read, far behind, stops the run when it comes to it, not before."""
    values: list[Any] = texts(300)
    path = write_json(tmp_path / "x.jsonl", values)
    lines = path.read_text().splitlines()
    lines[200] = json.dumps({"id": 200, "other": 1})[:-3]
    path.write_text("\n".join(lines) + "\n")
    settings = settings_of(path, tmp_path / "shards")
    with pytest.raises(UserError, match="x.jsonl, line 201: not a JSON record"):
        laid = opened(settings).streams(settings, [])
        for step in range(40 * laid.steps_per_round):
            assert laid.at(step).dtype == np.uint8
            read = step
    assert read > 10 * laid.steps_per_round


def test_windows_that_are_too_small_are_refused(tmp_path: Path) -> None:
    """A stage must have a window for every stream, and a mixture has no stages."""
    path = write_json(tmp_path / "x.jsonl", texts(100, size=20))
    settings = settings_of(path, tmp_path / "shards", window_bytes=100, shard_bytes=500)
    with pytest.raises(UserError, match="raise --data.window_bytes"):
        opened(settings).streams(settings, [])
    with pytest.raises(UserError, match="data.window_bytes works with one source"):
        config.validate(
            config.from_dict({"data": {"mixture": [{"name": "a", "path": "x"}], "window_bytes": 1}})
        )
