"""Records: one record changes no other, nobody's fields harm, and what is left out is counted."""

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data import json_file, make, manifest, tasks
from data.documents import Position
from data.fields import Fields, Problem
from data.sources import open_source, read_documents, read_files
from int_lm import config
from int_lm.config import DataConfig, SourceConfig
from int_lm.config.command_line import ConfigParser
from int_lm.errors import UserError
from tokenization import ByteTokenizer

ROOT = Path(__file__).resolve().parent.parent
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
SOUND = [f'doc {i} says "hi"\nbye \u20ac' for i in range(6)]


def lines(*records: Any) -> bytes:
    """JSON lines; bytes are a line as they stand."""
    parts = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    return b"".join(part + b"\n" for part in parts)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(
    *paths: Path, kind: str = "json", field: str = "text", skip: int = 0
) -> tuple[list[str], list[str]]:
    """(texts, what was said)."""
    said: list[str] = []
    named = tuple(map(str, paths))
    data = DataConfig(kind, named, field=field, skip_damaged=skip)  # type: ignore[arg-type]
    documents = read_documents(data, notice=said.append)
    return [document.text.decode() for document in documents], said


# One record changes no other

NO_TEXT = [
    ({"text": 7}, "field 'text' holds a number, not text"),
    ({"text": 0.5}, "field 'text' holds a number, not text"),
    ({"text": True}, "field 'text' holds true or false, not text"),
    ({"text": ["a"]}, "field 'text' holds a list, not text"),
    ({"text": {"a": "b"}}, "field 'text' holds an object, not text"),
    ([1], "the record is a list, not an object with fields"),
    ("text", "the record is text, not an object with fields"),
    (None, "the record is null, not an object with fields"),
    (b'{"text": "a", "text": "b"}', "field 'text' stands twice in the record"),
    (b'{"text": "a\\ud800"}', "field 'text' holds text that is not UTF-8"),
    (b'{"text": "caf\xe9"}', "field 'text' holds text that is not UTF-8"),
    (b'{"text": "a"', "not a JSON record"),
    (b'{"text": "a"} {"text": "b"}', "not a JSON record"),
    (b"text", "not a JSON record"),
    (b'{"text": ' + b"[" * 200_000 + b"}", "not a JSON record (nested too deeply)"),
]


@pytest.mark.parametrize("place", [1, 3, 6])  # a list in the first line begins an array
@pytest.mark.parametrize(("record", "problem"), NO_TEXT)
def test_a_record_that_is_no_text_changes_no_other(
    tmp_path: Path, record: Any, problem: str, place: int
) -> None:
    """It is refused with file and line, or left out and counted; all others stay as they are."""
    records: list[Any] = [{"text": text} for text in SOUND]
    records.insert(place, record)
    path = write(tmp_path / "x.jsonl", lines(*records))
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path}, line {place + 1}: {problem}" in str(caught.value)
    assert "--data.skip_damaged" in str(caught.value)
    texts, said = read(path, skip=1)
    assert texts == SOUND
    assert len(said) == 1
    assert f"damaged records: 1 (first: {path}, line {place + 1}: {problem}" in said[0]


@pytest.mark.parametrize(
    ("record", "problem"),
    [case for case in NO_TEXT if case[0] != b'{"text": "a"' and b"[[" not in lines(case[0])],
)
def test_a_damaged_element_of_an_array_changes_no_other(
    tmp_path: Path, record: Any, problem: str
) -> None:
    """The elements of an array are told apart as lines are, where brackets still match."""
    damaged = record if isinstance(record, bytes) else json.dumps(record).encode()
    elements = [json.dumps({"text": text}).encode() for text in SOUND]
    elements.insert(3, damaged)
    path = write(tmp_path / "x.json", b"[\n" + b",\n".join(elements) + b"\n]\n")
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path}, line 5, record 4: {problem}" in str(caught.value)
    texts, said = read(path, skip=1)
    assert texts == SOUND and "damaged records: 1 " in said[0]


def test_damaged_records_are_bounded(tmp_path: Path) -> None:
    """One more than allowed ends the reading, and tells the first one and the last."""
    records = [{"text": i if i % 10 == 5 else f"text {i}"} for i in range(100)]
    path = write(tmp_path / "x.jsonl", lines(*records))
    texts, said = read(path, skip=10)
    assert len(texts) == 90 and "left out damaged records: 10 " in said[0]
    with pytest.raises(UserError) as caught:
        read(path, skip=9)
    assert "10 damaged records, more than --data.skip_damaged 9" in str(caught.value)
    assert f"{path}, line 96:" in str(caught.value) and f"{path}, line 6:" in str(caught.value)


# Fields that nobody reads

OTHERS: list[Callable[[int], dict[str, Any]]] = [
    lambda i: {"score": 1 if i < 2000 else 0.5},
    lambda i: {"id": i if i < 2000 else f"n{i}"},
    lambda i: {} if i < 2000 else {"late": [1]},
    lambda i: {"meta": {"a": 1} if i < 2000 else {"a": 1, "b": {"c": None}}},
    lambda i: {"meta": [1] if i < 2000 else "one"},
    lambda i: {"score": float("nan") if i % 7 == 0 else float("-inf")},
    lambda i: {"big": 10 ** (i // 10)},
    lambda i: {"source": "s", "model": "m", "system_prompt": "", "messages": [{"text": "x"}]},
    lambda i: {"type": "user", "message": {"text": 1}},
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_fields_may_hold_anything(
    tmp_path: Path, other: Callable[[int], dict[str, Any]]
) -> None:
    """Types that change, keys that come late, what only Python writes: nobody reads them."""
    records = [{"id": i} | other(i) | {"text": f"text {i}"} for i in range(2500)]
    for name, content in (
        ("x.jsonl", lines(*records)),
        ("x.json", json.dumps(records).encode()),
    ):
        texts, said = read(write(tmp_path / name, content))
        assert texts == [f"text {i}" for i in range(2500)] and said == []


@pytest.mark.parametrize(
    "texts",
    [
        [f"2024-01-{i % 28 + 1:02}" for i in range(40)],
        [f"2024-01-01T00:00:{i:02}Z" for i in range(40)],
        [str(i) for i in range(40)],
        ["null", "true", "NaN", "{}", "[1]", '{"text": 7}', '"text"'],
        ["\ufeffa", "a\r\nb", "\u2028", "\U0001f600", '\\"', "\x01", "x\t"],
    ],
)
def test_texts_stay_texts(tmp_path: Path, texts: list[str]) -> None:
    """What looks like a date, a number or JSON is kept as it is written."""
    records = [{"text": text} for text in texts]
    for packed, pack in PACK.items():
        assert read(write(tmp_path / f"x.jsonl{packed}", pack(lines(*records))))[0] == texts
    assert read(write(tmp_path / "x.json", json.dumps(records, indent=1).encode()))[0] == texts
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet", kind="parquet")[0] == texts


@pytest.mark.parametrize("field", ["meta.text", "a.b.c", 'sa"id', "", "t\u00e9xt", "."])
def test_fields_of_any_name_and_depth(field: str, tmp_path: Path) -> None:
    """A dotted name is the field of that name, or else the one within objects."""

    def nested(value: Any) -> dict[str, Any]:
        for key in reversed(field.split(".")):
            value = {key: value}
        return value

    records = [nested(f"n{i}") | {"x": {"text": i}} for i in range(3)]
    records += [{field: f"l{i}"} | {"meta": 7} for i in range(3)]
    expected = ["n0", "n1", "n2", "l0", "l1", "l2"]
    assert read(write(tmp_path / "x.jsonl", lines(*records)), field=field)[0] == expected


def test_what_msgspec_reads_is_what_the_standard_library_reads() -> None:
    """Both ways through a record come to the same, whatever stands in it."""
    rng = random.Random(0)
    values = [
        "a",
        "",
        None,
        1,
        True,
        [],
        {},
        {"text": "b"},
        {"text": 2},
        "\ud800",
        "\u00e9",
        '"text"',
    ]
    for field in ("text", "meta.text"):
        both = Fields([field])
        for _ in range(3000):
            keys = rng.choices(["text", "meta", "meta.text", "x"], k=rng.randint(0, 4))
            parts = [f"{json.dumps(k)}:{json.dumps(rng.choice(values))}" for k in keys]
            record = ("{" + ",".join(parts) + "}").encode()
            found, slow = both(record), both._slowly(record)
            assert type(found) is type(slow)
            assert isinstance(found, Problem) or found == slow, record


# Empty and damaged files


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [("json", f"x.jsonl{end}", pack(b"")) for end, pack in PACK.items()]
    + [("json", "x.jsonl", b" \n\n"), ("json", "x.json", b"[]"), ("json", "x.json", b" [ ]\n")]
    + [("json", "x.jsonl.gz", b""), ("parquet", "x.parquet", b""), ("parquet", "x.parquet", None)]
    + [("text", "x.txt", b"")],
    ids=range(len(PACK) + 7),  # not the packed bytes, in which some packers put the time
)
def test_an_empty_part_is_left_out_and_told(
    tmp_path: Path, kind: str, name: str, content: bytes | None
) -> None:
    """An empty file beside sound ones stops nothing; where all are empty, that is told."""
    path = tmp_path / name
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        read(path, kind=kind)
    if kind == "json":
        sound = write(tmp_path / "y.jsonl", lines({"text": "a"}))
    elif kind == "text":
        sound = write(tmp_path / "y.txt", b"a")
    else:
        sound = tmp_path / "y.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), sound)
    for paths in ([tmp_path], [path, sound], [sound, path]):
        assert read(*paths, kind=kind) == (["a"], [f"left out empty files: 1 (first: {path})"])


@pytest.mark.parametrize("packed", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, packed: str) -> None:
    """However many records are allowed to be damaged: nobody knows how many are missing."""
    rng = random.Random(0)
    records = [{"text": rng.randbytes(500).hex()} for _ in range(2000)]
    whole = PACK[packed](lines(*records))
    path = write(tmp_path / f"x.jsonl{packed}", whole)
    assert len(read(path)[0]) == 2000
    path.write_bytes(whole * 2)  # two members, or frames
    assert len(read(path)[0]) == 4000
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=f"cannot read .*x.jsonl{packed} as json after line"):
        read(path, skip=10_000)


def test_arrays_that_are_cut_or_go_on_are_damaged(tmp_path: Path) -> None:
    """What is whole, with its end, is kept; the rest is one damaged record."""
    whole = json.dumps([{"text": text} for text in SOUND]).encode()
    for content, count in ((whole[:-1], 5), (whole[:-5], 5), (whole + b"{}", 6), (b"[", 0)):
        path = write(tmp_path / "x.json", content)
        with pytest.raises(UserError, match="the array"):
            read(path)
        assert read(path, skip=1)[0] == SOUND[:count]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_arrays_are_cut_the_same_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Brackets, quotes and backslashes in strings divide nothing, wherever a block ends."""
    monkeypatch.setattr(json_file, "BLOCK", block)
    rng = random.Random(block)
    texts = ["".join(rng.choices('ab[]{},"\\\n\u20ac', k=rng.randint(1, 40))) for _ in range(200)]
    records = [{"x": [[], {"y": "]"}], "text": text, "z": i} for i, text in enumerate(texts)]
    path = write(tmp_path / "x.json", json.dumps(records, indent=2).encode())
    assert read(path)[0] == texts


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path) -> None:
    """Some programs write one in front."""
    content = lines(*({"text": text} for text in SOUND))
    assert read(write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + content))[0] == SOUND


def test_a_record_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line ends is not read into memory."""
    monkeypatch.setattr(json_file, "RECORD_BYTES", 1000)
    monkeypatch.setattr(json_file, "BLOCK", 100)
    for content in (lines({"text": "a" * 2000}), b'[{"text": "' + b"a" * 2000 + b'"}]'):
        with pytest.raises(UserError, match="more than 1,000 bytes"):
            read(write(tmp_path / "x.json", content))


# Parquet


def test_parquet_reads_text_columns_only(tmp_path: Path) -> None:
    """Every type of text, nested too; any other type is refused; nulls are counted."""
    texts = ["a", "b\u20ac", None, ""] * 50
    expected = [text for text in texts if text]
    for kind in ("string", "large_string", "string_view", "dictionary"):
        array = pyarrow.array(texts, "string" if kind == "dictionary" else kind)
        array = array.dictionary_encode() if kind == "dictionary" else array
        inside = pyarrow.StructArray.from_arrays([array.cast("string")], ["text"])
        table = pyarrow.table({"n": range(200), "text": array, "meta": inside, "a.b": array})
        path = tmp_path / "x.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=30)
        for field in ("text", "meta.text", "a.b"):
            found, said = read(path, kind="parquet", field=field)
            assert found == expected, (kind, field)
            assert said == [f"left out records without text: 100 (first: {path}, row 3)"]
    for field, words in (("n", "holds int64, not text"), ("no", "has no field 'no', it has n,")):
        with pytest.raises(UserError, match=words):
            read(path, kind="parquet", field=field)


def test_a_damaged_row_changes_no_other(tmp_path: Path) -> None:
    """A string that is not UTF-8 is one damaged record, with its row."""
    values = [b"text %d" % i for i in range(200)]
    values[150] = b"caf\xe9"
    buffers = pyarrow.array(values, "binary").buffers()
    array = pyarrow.StringArray.from_buffers(200, buffers[1], buffers[2])
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": array}), path, row_group_size=70)
    with pytest.raises(UserError, match="x.parquet, row 151: field 'text' holds .*not UTF-8"):
        read(path, kind="parquet")
    texts, said = read(path, kind="parquet", skip=1)
    assert len(texts) == 199 and "damaged records: 1" in said[0]


MEMORY = """
import resource, sys
from data.sources import open_source
from int_lm.config import SourceConfig
def read(kind, path):
    source = open_source(SourceConfig(kind, (path,)), 0)
    size = sum(len(document.text) for document, _ in source.read())
    return size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
kind, small, large = sys.argv[1:]
_, before = read(kind, small)
size, after = read(kind, large)
print(size, after - before)
"""


@pytest.mark.parametrize("kind", ["parquet", "lines", "array"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    """60 MB of text, in row groups of 1 MB, in lines, or in one array, are read in 16 MB."""
    end = ".parquet" if kind == "parquet" else ".json"
    rng = np.random.default_rng(0)
    parts = [rng.bytes(5_000).hex() for _ in range(100)]  # 1 MB
    for name, count in (("small", 2), ("large", 60)):
        path = tmp_path / f"{name}{end}"
        if kind == "parquet":
            table = pyarrow.table({"text": parts, "other": parts[::-1]})
            with pyarrow.parquet.ParquetWriter(path, table.schema, compression="none") as writer:
                for _ in range(count):
                    writer.write_table(table)
        else:
            comma, ends = ("\n", ("", "")) if kind == "lines" else (",", ("[", "]"))
            block = comma.join(json.dumps({"text": part}) for part in parts)
            path.write_text(ends[0] + comma.join([block] * count) + ends[1])
    paths = [str(tmp_path / f"{name}{end}") for name in ("small", "large")]
    command = [sys.executable, "-c", MEMORY, end.removeprefix("."), *paths]
    size, grown = map(int, subprocess.check_output(command, text=True, cwd=ROOT).split())
    assert size == 60_000_000 and grown < 16 << 20


# What a file is


def test_records_are_not_taken_for_plain_text(tmp_path: Path) -> None:
    """Names decide where they say it, contents where they do not; the user has the last word."""
    content = lines({"text": "one"}, {"text": "two"})
    named = write(tmp_path / "x.jsonl", content)
    plain = write(tmp_path / "x.txt", content)
    array = write(tmp_path / "x", json.dumps([{"text": "one"}, {"text": "two"}]).encode())
    settings = write(tmp_path / "settings.txt", b'{\n  "text": 1\n}\n')
    for path in (plain, array):
        with pytest.raises(UserError, match="holds JSON records.*--data.source json"):
            read(path, kind="text")
    assert read(settings, kind="text")[0] == ['{\n  "text": 1\n}\n']
    texts, said = read(named, kind="text")  # as the command line says
    assert texts == [content.decode()]
    assert said == [f"read JSON records as plain text, keys and braces too: 1 (first: {named})"]
    for kind, suffix in (("json", ".jsonl"), ("json", ".ndjson.gz"), ("parquet", ".parquet")):
        tree = {"data": {"path": [f"a{suffix}", f"B{suffix.upper()}"]}}
        assert config.from_dict(tree).data.source == kind
    assert config.from_dict({"data": {"path": "books/"}}).data.source == "text"
    with pytest.raises(UserError, match=r"several formats \(json, text\)"):
        config.from_dict({"data": {"path": ["a.txt", "b.jsonl"]}})
    for words, kind in (
        (["--data.path", "a.jsonl", "b.json.gz"], "json"),
        (["--data.path", "a.parquet"], "parquet"),
        (["--data.path", "a.jsonl", "--data.source", "text"], "text"),
        (["--data.path", "a/"], "text"),
    ):
        assert ConfigParser().parse_config(words)[1].data.source == kind
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "a.jsonl", content)
    with pytest.raises(UserError, match="holds json files and no plain text.*--data.source json"):
        read(tmp_path / "parts", kind="text")


def test_archives_and_other_formats_are_named(tmp_path: Path) -> None:
    """A reader that is given another format says which one it is."""
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "x")
    for content, words in (
        ((tmp_path / "x").read_bytes(), "is a Parquet file; read it with --data.source parquet"),
        (b"PK\x03\x04" + b"\0" * 300, "is an archive"),
        (b"x" * 257 + b"ustar" + b"\0" * 300, "is an archive"),
    ):
        path = write(tmp_path / "y", content)
        for kind in ("text", "json"):
            with pytest.raises(UserError, match=words):
                read(path, kind=kind)
    with pytest.raises(UserError, match="is compressed"):
        read(write(tmp_path / "y", gzip.compress(b"a")), kind="text")


def test_files_of_any_format_are_read_as_what_they_are(tmp_path: Path) -> None:
    """As eval.py reads them: text, lines, arrays, packed, Parquet, directories; nested fields."""
    records = [{"meta": {"text": text}} for text in SOUND]
    write(tmp_path / "a.txt", b"plain")
    write(tmp_path / "b", lines(*records))
    write(tmp_path / "c", json.dumps(records).encode())
    write(tmp_path / "d", gzip.compress(lines(*records)))
    (tmp_path / "e").mkdir()
    write(tmp_path / "e" / "x.jsonl.zst", PACK[".zst"](lines(*records)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "f")
    paths = [str(tmp_path / name) for name in "bcdef"]
    documents = read_files(
        [str(tmp_path / "a.txt"), *paths], DataConfig(field="meta.text"), notice=print
    )
    assert [document.text.decode() for document in documents] == ["plain", *SOUND * 5]


# What is left out


def test_everything_left_out_of_a_directory_is_told(tmp_path: Path) -> None:
    """Hidden, linked, empty, other and irregular files: how many, and the first one."""
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "empty", b"")
    write(tmp_path / ".hidden", b"text")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    texts, said = read(tmp_path, kind="text")
    assert texts == ["text"]
    assert said == [
        f"left out hidden files and directories: 1 (first: {tmp_path}/.hidden)",
        f"left out links to nothing: 1 (first: {tmp_path}/gone)",
        f"left out links to directories: 1 (first: {tmp_path}/loop)",
        f"left out empty files: 1 (first: {tmp_path}/empty)",
    ]
    write(tmp_path / "x.jsonl", lines({"text": "a"}))
    texts, said = read(tmp_path, kind="json")
    assert any(
        s == "left out files whose names do not end as those of json do: 2 "
        f"(first: {tmp_path}/a.txt)"
        for s in said
    )


@pytest.mark.parametrize("kind", ["json", "text"])
def test_counts_go_on_from_any_position(tmp_path: Path, kind: str) -> None:
    """Stopped anywhere and gone on, the same is counted as without."""
    if kind == "json":
        records = [{"text": [f"text {i}", "", 7, "a\0b"][i % 4]} for i in range(3000)]
        write(tmp_path / "a.jsonl", lines(*records))
        write(tmp_path / "b.json", json.dumps(records).encode())
        write(tmp_path / "c.jsonl", b"")
        write(tmp_path / "d.jsonl.zst", PACK[".zst"](lines(*records)))
    else:
        for i in range(40):
            content = b"" if i % 3 == 1 else b"\xff" if i % 3 == 2 else b"text %d\n" % i * 9
            write(tmp_path / f"{i:02}", content)
    source = SourceConfig(kind, (str(tmp_path),), skip_damaged=9999)  # type: ignore[arg-type]

    def all_from(position: Position) -> tuple[list[Any], dict[str, Any]]:
        opened = open_source(source, 16)
        return list(opened.read(position)), opened.tally.state()

    whole, tally = all_from(None)
    assert len(tally) >= 2
    places = [i for i, (_, position) in enumerate(whole) if position]
    assert len(places) > 20
    for index in places:
        rest, counted = all_from(json.loads(json.dumps(whole[index][1])))
        assert counted == tally
        assert [d for d, _ in rest if d.text] == [d for d, _ in whole[index + 1 :] if d.text]


def test_shards_keep_what_was_left_out(tmp_path: Path) -> None:
    """Refused, then allowed: what is finished stays; refused again: the shards say why."""
    records = [{"text": f"text {i} " * 9} for i in range(2000)] + [{"text": 1}]
    path = write(tmp_path / "x.jsonl", lines(*records))

    def prepared(skip: int, said: list[str]) -> manifest.Prepared:
        data = DataConfig(
            "json",
            (str(path),),
            shards=str(tmp_path / "shards"),
            shard_bytes=20_000,
            skip_damaged=skip,
        )
        [source] = config.sources_of(data)
        return make.prepare(data, source, ByteTokenizer(), say=said.append)

    said: list[str] = []
    with pytest.raises(UserError, match="line 2001: field 'text' holds a number"):
        prepared(0, said)
    done = prepared(1, said)
    assert any("going on in" in sentence for sentence in said)
    sentence = f"left out damaged records: 1 (first: {path}, line 2001: "
    assert any(s.startswith(sentence) for s in said)
    assert list(done.manifest["tally"].values())[0][0] == 1
    assert prepared(1, said).sha256() == done.sha256()
    with pytest.raises(UserError, match="1 damaged records were left out of .*skip_damaged 0"):
        prepared(0, said)


def test_tasks_count_what_they_leave_out(tmp_path: Path) -> None:
    """Texts of one word, missing sentences and damaged records; pairs stay side by side."""
    words = [{"text": "she said no"}, {"text": "word"}, {"text": 7}, {"text": "a b"}]
    path = write(tmp_path / "words.jsonl", lines(*words))
    with pytest.raises(UserError, match="words.jsonl, line 3: field 'text' holds a number"):
        tasks.last_words(str(path), ByteTokenizer())
    said: list[str] = []
    documents, _ = tasks.last_words(str(path), ByteTokenizer(), skip_damaged=1, notice=said.append)
    assert len(documents) == 2
    assert said[0] == f"left out texts of one word: 1 (first: {path}, line 2)"
    good = [{"sentence_good": f"g{i}", "sentence_bad": f"b{i}"} for i in range(4)]
    good[1]["sentence_bad"] = 7  # type: ignore[assignment]
    del good[2]["sentence_good"]
    path = write(tmp_path / "pairs.jsonl", lines(*good))
    with pytest.raises(UserError, match="pairs.jsonl, line 2: field 'sentence_bad' holds"):
        tasks.pairs(str(path), ByteTokenizer())
    said.clear()
    found = tasks.pairs(str(path), ByteTokenizer(), skip_damaged=1, notice=said.append)
    assert b"".join(map(bytes, found)) == b"g0b0g3b3" and len(said) == 2


def test_a_table_read_as_text_is_told(tmp_path: Path) -> None:
    """Names of columns and separators are read too; which files, and how many."""
    for name in ("a.csv", "b.TSV", "c.txt"):
        (tmp_path / name).write_text("id,text\n1,some words\n")
    said: list[str] = []
    found = read_documents(DataConfig("text", (str(tmp_path),)), notice=said.append)
    assert len(found) == 3
    first = tmp_path / "a.csv"
    assert said == [
        f"read tables as plain text, names of columns and separators too: 2 (first: {first})"
    ]
