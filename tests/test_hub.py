"""The hub: records of its files come out as they stand, whatever fails on the way.

A server on this machine stands for the hub (`stand_in_hub`).
"""

import bz2
import errno
import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import stand_in_hub
import zstandard
from stand_in_hub import Hub

from data import hub, hub_files, make, records
from data.documents import Position
from int_lm import config
from int_lm.config import DataConfig, SourceConfig
from int_lm.errors import UserError
from tokenization import ByteTokenizer

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
DATE = "2024-01-05T10:00:00+02:00"
NOT_ONLY_TEXT = [  # whatever else records hold, and however texts look
    {"id": 1, "text": DATE},
    {"id": "two", "text": "007", "score": 0.5},
    {"id": None, "text": "line\r\nend \u20ac", "messages": [{"text": 7}]},
    {"text": '{"text": 7}', "late": True},
    {"model": "m", "system_prompt": "", "messages": [], "text": "no trace"},
]
TEXTS = [record["text"] for record in NOT_ONLY_TEXT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data set's files."""
    (tmp_path / "repository" / "data").mkdir(parents=True)
    return tmp_path / "repository"


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, at which the libraries of the hub look from now on."""
    with stand_in_hub.serving(folder) as served:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield served
    huggingface_hub.HfFileSystem.clear_instance_cache()


def lines(*values: Any) -> bytes:
    """JSON lines; bytes are a line as they stand."""
    parts = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return b"".join(part + b"\n" for part in parts)


def source_of(said: list[str] | None = None, **fields: Any) -> hub.Hub:
    fields = {"revision": stand_in_hub.DATA_SHA} | fields
    source = SourceConfig("hub", (stand_in_hub.DATA,), **fields)
    opened = hub.Hub(source, said.append if said is not None else None)
    opened.patience.sleep = lambda seconds: None
    return opened


def read(position: Position = None, **fields: Any) -> list[str]:
    documents = source_of(**fields).read(position)
    return [document.text.decode() for document, _ in documents if document.text]


# What comes out


@pytest.mark.parametrize("packed", PACK)
def test_records_come_out_as_they_stand(
    folder: Path, server: Hub, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dates, numbers, JSON and traces: every text as in its file, in the order of files."""
    monkeypatch.setitem(hub_files.BLOCK, "json", 64)
    first, rest = NOT_ONLY_TEXT[:2], NOT_ONLY_TEXT[2:]
    for number, part in enumerate((first, rest)):
        name = f"data/train-{number}.jsonl{packed}"
        (folder / name).write_bytes(PACK[packed](lines(*part)))
    (folder / f"data/test.jsonl{packed}").write_bytes(PACK[packed](lines({"text": "held"})))
    assert read() == TEXTS
    assert read(split="test") == ["held"]
    with pytest.raises(UserError, match="no split 'dev', it has train, test; .* --data.split"):
        read(split="dev")
    assert {name for name, _ in server.ranges} == {path.name for path in folder.glob("data/*")}


def test_dates_in_a_later_block_are_text(folder: Path, server: Hub) -> None:
    """Where a block of 10 MB has texts that all look like dates, Arrow takes them for dates."""
    plain = "x" * 100_000
    count = (10 << 20) // 100_000 + 1
    records_ = [{"text": plain}] * count + [{"text": DATE}] * 50
    (folder / "train.jsonl").write_bytes(lines(*records_))
    assert read() == [plain] * count + [DATE] * 50


def test_an_array_of_records(folder: Path, server: Hub) -> None:
    """One array in a file, and a field within an object."""
    records_ = [{"meta": record} for record in NOT_ONLY_TEXT]
    (folder / "train.json").write_text(json.dumps(records_, indent=1))
    assert read(field="meta.text") == TEXTS


def test_of_parquet_one_column_is_asked_for(folder: Path, server: Hub) -> None:
    """Texts as they stand, in the order of the files; the other column stays at the hub."""
    other = [os.urandom(100_000) for _ in TEXTS]
    for number, part in enumerate((slice(0, 2), slice(2, None))):
        table = pyarrow.table({"text": TEXTS[part], "other": other[part]})
        name = f"data/train-{number}-of-2.parquet"
        pyarrow.parquet.write_table(table, folder / name, row_group_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hub_files.BLOCK, "parquet", 1 << 12)
        assert read() == TEXTS
    asked = [text.removeprefix("bytes=").split("-") for _, text in server.ranges]
    assert sum(int(last) - int(first) + 1 for first, last in asked) < 400_000
    with pytest.raises(UserError, match=r"field 'other' of some/data: .*0-of-2.parquet holds bin"):
        read(field="other")


CARD = """---
configs:
- config_name: one
  data_files: a.jsonl
- config_name: two
  data_files:
  - {{split: train, path: b.jsonl}}
{settings}
dataset_info:
- config_name: two
  features:
  - {{name: text, dtype: {dtype}}}
---
"""


def test_configurations_and_declared_types(folder: Path, server: Hub) -> None:
    """The files of the configuration that is named; a field declared as something else is refused;
    what is not read as lines stays with `datasets`, and that is said."""
    for name in "ab":
        (folder / f"{name}.jsonl").write_bytes(lines({"text": f"of {name}"}))
    (folder / "README.md").write_text(CARD.format(settings="", dtype="string"))
    assert read(subset="one") == ["of a"] and read(subset="two") == ["of b"]
    with pytest.raises(UserError, match="cannot read some/data from the hub: .*three"):
        read(subset="three")
    (folder / "README.md").write_text(CARD.format(settings="", dtype="int64"))
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="holds int64, not text"):
        list(_without_cache().read())


def _without_cache(**fields: Any) -> hub.Hub:
    """The source once more, after its card was changed: a commit's card is kept otherwise."""
    constants = huggingface_hub.constants
    constants.HF_HUB_CACHE += "-again"  # given back by the fixture
    return source_of(subset="two", **fields)


def test_json_that_datasets_must_read_is_told(folder: Path, server: Hub) -> None:
    """A field that holds the records: `datasets` unpacks it."""
    (folder / "a.jsonl").write_bytes(lines({"text": "a"}))
    (folder / "b.jsonl").write_text(json.dumps({"rows": [{"text": "one"}, {"text": "two"}]}))
    (folder / "README.md").write_text(CARD.format(settings="  field: rows", dtype="string"))
    said: list[str] = []
    found = [d.text for d, _ in source_of(said, subset="two").read() if d.text]
    assert found == [b"one", b"two"]
    assert any("texts that look like dates may change" in sentence for sentence in said)


def test_tables_of_text_keep_their_texts(folder: Path, server: Hub) -> None:
    """CSV is read by `datasets`: what looks like a number, or like nothing, stays as it is."""
    texts = [f"{i:04}" for i in range(12_000)] + ["NA", "null", "1e3"]
    rows = "".join(f"{number},{text}\n" for number, text in enumerate(texts))
    (folder / "train.csv").write_text(f"id,text\n{rows}")
    assert read() == texts
    with pytest.raises(UserError, match="some/data from the hub: .* not found: .'body'"):
        read(field="body")


# What is refused, skipped and counted


def test_damaged_records_have_a_place(folder: Path, server: Hub) -> None:
    """File and line of the hub; with `skip_damaged` they are counted, and change no other."""
    (folder / "data/train-0.jsonl").write_bytes(lines({"text": "a"}, {"text": 7}, {"text": "b"}))
    (folder / "data/train-1.jsonl").write_bytes(lines({"text": "c"}, b"{", {"text": None}))
    place = "some/data: data/train-0.jsonl, line 2: field 'text' holds a number, not text"
    with pytest.raises(UserError, match=place):
        read()
    with pytest.raises(UserError, match="2 damaged records, more than .* data/train-1.jsonl, lin"):
        read(skip_damaged=1)
    assert read(skip_damaged=2) == ["a", "b", "c"]
    opened = source_of(skip_damaged=2)
    list(opened.read())
    assert opened.tally.state()["left out damaged records"] == [2, place]
    assert opened.tally.state()["left out records without text"][0] == 1


def test_fields_that_are_not_there(folder: Path, server: Hub) -> None:
    """The names of those that are come with the sentence."""
    (folder / "train.jsonl").write_bytes(lines({"body": "a", "id": 1}))
    with pytest.raises(UserError, match="train.jsonl has no field 'text', it has body, id;"):
        read()


def test_a_file_cut_short(folder: Path, server: Hub) -> None:
    """Compressed files end with their last byte."""
    whole = gzip.compress(lines(*NOT_ONLY_TEXT * 100))
    (folder / "train.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="cannot read some/data: train.jsonl.gz as json after"):
        read()


@pytest.mark.parametrize("name", ["some/data", "some/other", "no-such-folder"])
def test_a_data_set_that_is_not_there(server: Hub, name: str) -> None:
    """At once: waiting helps nothing."""
    opened = hub.Hub(SourceConfig("hub", (name,), revision="f" * 40))
    opened.patience.sleep = lambda seconds: pytest.fail("it waited")
    with pytest.raises(UserError, match=f"cannot read {name} from the hub: "):
        list(opened.read())


# Interruptions


@pytest.mark.parametrize("kind", ["json", "gz", "parquet"])
def test_any_position_is_gone_on_from(
    folder: Path, server: Hub, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a position on, what is left is read, and no byte of the files before it."""
    monkeypatch.setattr(records, "BATCH", 16)
    texts = [f"text {i} " * 40 for i in range(300)]
    for number in range(3):
        part = texts[number * 100 : (number + 1) * 100]
        path = folder / f"data/train-{number}"
        if kind == "parquet":
            table = pyarrow.table({"text": part})
            pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=30)
        else:
            packed = gzip.compress if kind == "gz" else bytes
            end = ".jsonl.gz" if kind == "gz" else ".jsonl"
            path.with_suffix(end).write_bytes(packed(lines(*({"text": text} for text in part))))
    whole = list(source_of().read())
    places = [index for index, (_, position) in enumerate(whole) if position]
    assert len(places) > 15
    for index in places[::4]:
        server.ranges.clear()
        position = json.loads(json.dumps(whole[index][1]))
        left = [document.text for document, _ in whole[index + 1 :] if document.text]
        assert [text.encode() for text in read(position)] == left
        files = {name for name, _ in server.ranges}
        assert files == {f"train-{n}" + _ending(kind) for n in range(position["at"][0], 3)}


def _ending(kind: str) -> str:
    return {"json": ".jsonl", "gz": ".jsonl.gz", "parquet": ".parquet"}[kind]


def test_a_position_of_an_earlier_version(folder: Path, server: Hub) -> None:
    """The state of `datasets` says nothing about a file."""
    (folder / "train.jsonl").write_bytes(lines({"text": "a"}))
    with pytest.raises(UserError, match="an earlier version, .* delete its unfinished directory"):
        read({"at": [{"examples_iterable": {}}], "tally": {}})


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_failures_are_waited_out(
    folder: Path, server: Hub, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the server in the middle of a file: with growing pauses; no record is lost."""
    monkeypatch.setitem(hub_files.BLOCK, kind, 1 << 10)
    texts = [os.urandom(2000).hex() for _ in range(300)]
    if kind == "parquet":
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, folder / "train.parquet", row_group_size=20)
    else:
        (folder / "train.jsonl").write_bytes(lines(*({"text": text} for text in texts)))
    said: list[str] = []
    waits: list[float] = []
    opened = source_of(said)
    opened.patience.sleep = waits.append
    found = []
    for document, _ in opened.read():
        found += [document.text.decode()] * bool(document.text)
        if len(found) == 100:
            server.failures[:] = [403, 400, 403]  # others are tried again by the library itself
    assert found == texts
    assert waits == [1, 2, 4] and len(said) == 3 and "the hub failed (" in said[0]
    found.clear()
    server.failures[:] = [403] * 8
    with pytest.raises(UserError, match="the hub did not give some/data in 8 tries"):
        list(opened.read())
    assert waits[3:] == [1, 2, 4, 8, 16, 32, 64]


class Flaky:
    """A stand-in for what `datasets` reads with, that fails now and then in the middle of it."""

    def __init__(self, values: list[Any], failures: list[Exception], features: Any = None) -> None:
        self.values, self.failures, self.features, self.loads = values, failures, features, 0
        self.config = self
        self.info = datasets.DatasetInfo(features=features)

    def as_streaming_dataset(self, split: str) -> Any:
        assert split == "train"
        self.loads += 1
        return datasets.IterableDataset.from_generator(self._rows, features=self.features)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for index, value in enumerate(self.values):
            if self.failures and index == 300 * (len(self.failures) % 3):
                raise self.failures.pop()
            yield {"text": value}


def test_datasets_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network failures are waited out, with growing pauses, and no record is lost or doubled."""
    values = [f"text {i}" for i in range(1000)]
    flaky = Flaky(values, [ConnectionError("reset"), TimeoutError("slow"), OSError("502")])
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: flaky)
    said: list[str] = []
    opened = source_of(said)
    waits: list[float] = []
    opened.patience.sleep = waits.append
    found = [document.text.decode() for document, _ in opened.read() if document.text]
    assert found == values and flaky.loads == 4
    assert len(waits) == 3 and len(said) == 3


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (datasets.Features({"text": datasets.Value("int64")}), "holds int64, not text"),
        (datasets.Features({"text": datasets.Json()}), "of some/data holds"),
        (datasets.Features({"body": datasets.Value("string")}), "has no field 'text', it has body"),
        (None, "holds int64, not text"),
    ],
)
def test_the_hub_must_declare_and_give_text(
    monkeypatch: pytest.MonkeyPatch, declared: datasets.Features | None, words: str
) -> None:
    """A field of another type is refused, whether it is declared or comes."""
    flaky = Flaky([7], [], declared)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: flaky)
    with pytest.raises(UserError, match=words):
        read()


def test_a_hub_that_stays_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight tries, a minute apart at the end, the user is told what to do."""

    def load(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    opened = source_of()
    waits: list[float] = []
    opened.patience.sleep = waits.append
    with pytest.raises(UserError, match="did not give some/data in 8 tries .no route to host"):
        list(opened.read())
    assert waits == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT])
def test_a_home_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """At once: nothing is waited for, and the sentence says where the cache is to go."""

    def load(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), "/home-of-nobody/.cache")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    opened = source_of()
    opened.patience.sleep = lambda seconds: pytest.fail("it waited")
    with pytest.raises(UserError, match=r"at /home-of-nobody/.cache: .*; set HF_HOME to"):
        list(opened.read())


def test_shards_of_the_hub_are_those_of_its_files(
    folder: Path, server: Hub, tmp_path: Path
) -> None:
    """Prepared from the hub, whose newest revision is pinned, and from the same files here."""
    records_ = [{"text": f"text {i} " * 20} for i in range(400)]
    (folder / "data/train.jsonl").write_bytes(lines(*records_))

    def prepared(kind: str, path: str) -> str:
        data = DataConfig(
            kind,  # type: ignore[arg-type]
            (path,),
            shards=str(tmp_path / "shards"),
            shard_bytes=9000,
        )
        [source] = config.sources_of(data)
        done = make.prepare(data, source, ByteTokenizer(), say=lambda _: None)
        if kind == "hub":
            assert done.manifest["source"]["revision"] == stand_in_hub.DATA_SHA
        return done.sha256()

    assert prepared("hub", stand_in_hub.DATA) == prepared("json", str(folder / "data/train.jsonl"))
