"""Preparation: shards of any source, the same bytes whatever kills it, and every mistake."""

import errno
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data import corpus, known, make, manifest, records, rolling, shards, split, text
from data.documents import Document
from data.open import open_corpus
from data.sources import open_source
from int_lm import config
from int_lm.config import Config, DataConfig, SourceConfig
from int_lm.errors import UserError
from tokenization import ByteTokenizer

ROOT = Path(__file__).resolve().parent.parent
BYTES = ByteTokenizer()


def texts(count: int, seed: int = 0, size: int = 400) -> list[str]:
    """Texts of many lengths, not all of them ASCII."""
    generator = random.Random(seed)
    letters = "etaoin shrdlu\né€😀"
    return [
        "".join(generator.choices(letters, k=1 + int(generator.expovariate(1 / size))))
        for _ in range(count)
    ]


def write_json(path: Path, values: list[Any], field: str = "text") -> Path:
    """JSON lines, compressed as the name says."""
    lines = "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(values))
    data = lines.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def write_parquet(path: Path, values: list[str]) -> Path:
    table = pyarrow.table({"id": list(range(len(values))), "text": values})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    return path


def settings_of(directory: Path, kind: str, *paths: Path | str, **fields: Any) -> DataConfig:
    fields = {"shards": str(directory / "shards"), "shard_bytes": 20_000} | fields
    return DataConfig(kind, tuple(map(str, paths)), **fields)  # type: ignore[arg-type]


def prepared(data: DataConfig, said: list[str] | None = None) -> manifest.Prepared:
    [source] = config.sources_of(data)
    say = said.append if said is not None else lambda _: None
    return make.prepare(data, source, BYTES, say=say)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def documents_in(done: manifest.Prepared) -> tuple[list[str], list[str]]:
    """The texts to train on, by number, and the held-out ones, as the shards hold them."""
    train: dict[int, dict[int, bytes]] = {}
    for shard in done.shards:
        ends = [*shard.places[1:, 0].tolist(), len(shard.tokens)]
        for (start, number, offset), end in zip(shard.places.tolist(), ends, strict=True):
            train.setdefault(number, {})[offset] = shard.tokens[start : end - 1].tobytes()
    whole = [b"".join(piece for _, piece in sorted(train[i].items())) for i in range(len(train))]
    opened = corpus.Corpus(BYTES, [done])
    [heldout] = opened.heldout(0).values()
    return [text.decode() for text in whole], [document.text.decode() for document in heldout]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions in small files: records are read a few at a time."""
    monkeypatch.setattr(records, "BATCH", 16)


# Sources


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    """JSON lines plain, .gz and .zst, Parquet, a pattern and a directory: the same shards."""
    values = texts(300)
    sides = [split.is_heldout(value.encode(), 0.1) for value in values]
    expected = (
        [value for value, out in zip(values, sides, strict=True) if not out],
        [value for value, out in zip(values, sides, strict=True) if out],
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    write_json(folder / "a.jsonl", values[:100])
    write_json(folder / "b.jsonl.zst", values[100:])
    (folder / "notes.txt").write_text("not read")
    sources = {
        "plain": ("json", write_json(tmp_path / "x.jsonl", values)),
        "gz": ("json", write_json(tmp_path / "x.jsonl.gz", values)),
        "zst": ("json", write_json(tmp_path / "x.jsonl.zst", values)),
        "parquet": ("parquet", write_parquet(tmp_path / "x.parquet", values)),
        "folder": ("json", folder),
        "pattern": ("json", folder / "[ab].jsonl*"),
    }
    for name, (kind, path) in sources.items():
        done = prepared(settings_of(tmp_path / name, kind, path))
        assert documents_in(done) == expected, name
        totals = done.manifest["totals"]
        assert totals["bytes"] + totals["heldout_bytes"] == sum(len(v.encode()) for v in values)
        assert len(done.shards) > 3


@pytest.mark.parametrize("kind", ["json", "parquet", "text"])
def test_any_position_is_gone_on_from(tmp_path: Path, kind: str) -> None:
    """Reading from a position, twice in a row and across files, gives what is left and no more."""
    values = texts(900)
    if kind == "text":
        paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
        for path, part in zip(paths, (values[:500], values[500:]), strict=True):
            path.write_text("".join(part))
    elif kind == "json":
        paths = [
            write_json(tmp_path / "a.jsonl", values[:500]),
            write_json(tmp_path / "b.jsonl.gz", values[500:]),
        ]
    else:
        paths = [
            write_parquet(tmp_path / f"{i}.parquet", values[i * 500 : (i + 1) * 500])
            for i in range(2)
        ]
    source = SourceConfig(kind, tuple(map(str, paths)))  # type: ignore[arg-type]

    def read(position: Any) -> list[tuple[Document, Any]]:
        return list(open_source(source, 2000).read(position))

    whole = read(None)
    places = [i for i, (_, position) in enumerate(whole) if position is not None]
    assert len(places) > 3
    for index in random.Random(0).sample(places, 4):
        position = json.loads(json.dumps(whole[index][1]))
        rest = read(position)
        assert [d for d, _ in rest if d.text] == [d for d, _ in whole[index + 1 :] if d.text]
        if len(rest) > 300:  # go on from a position that was itself gone on to
            again = next(i for i, (_, p) in enumerate(rest) if p is not None)
            left = [d for d, _ in read(rest[again][1]) if d.text]
            assert left == [d for d, _ in rest[again + 1 :] if d.text]


def test_records_without_text_are_skipped_and_told(tmp_path: Path) -> None:
    """Empty, missing and zero-byte texts do not stop a preparation of a million others."""
    values: list[Any] = [*texts(40), "", None, "a\0b"]
    said: list[str] = []
    done = prepared(
        settings_of(tmp_path, "json", write_json(tmp_path / "x.jsonl", values), holdout=0.3), said
    )
    totals = done.manifest["totals"]
    assert totals["documents"] + totals["heldout_documents"] == 40
    assert (
        f"to train on {totals['documents']} documents, {totals['bytes']:,} bytes, "
        f"{totals['tokens']:,} tokens (1.00 bytes a token); held out "
        f"{totals['heldout_documents']} documents, {totals['heldout_bytes']:,} bytes; "
    ) in said[-1]
    assert f"left out records without text: 2 (first: {tmp_path}/x.jsonl, line 41)" in said
    assert (
        f"left out records with a zero byte in their text: 1 (first: {tmp_path}/x.jsonl, line 43)"
        in said
    )


def test_a_line_of_100_mb_is_a_document(tmp_path: Path) -> None:
    """One huge record is read, cut into windows for training, and kept whole otherwise."""
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        for text in ("short", "x y " * 25_000_000, "another"):
            file.write(json.dumps({"text": text}) + "\n")
    done = prepared(settings_of(tmp_path, "json", path, shard_bytes=1 << 26))
    totals = done.manifest["totals"]
    assert totals["bytes"] + totals["heldout_bytes"] == 100_000_012
    assert all((np.diff(shard.windows) <= shards.WINDOW).all() for shard in done.shards)


def test_large_files_are_cut_as_small_ones(tmp_path: Path) -> None:
    """Pieces of a file read in blocks are those of the text cut in memory."""
    from data.text import cut

    whole = "".join(texts(300)).encode()
    (tmp_path / "x.txt").write_bytes(whole)
    source = open_source(SourceConfig("text", (str(tmp_path / "x.txt"),)), 700)
    read = [document for document, _ in source.read()]
    assert read == cut(Document(str(tmp_path / "x.txt"), whole), 700)


# Kills


class Kill(BaseException):
    """Stands for a process that ends at once."""


@pytest.mark.parametrize("kind", ["json", "text"])
def test_any_shard_may_be_the_last_one_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ended in the middle of a file of every shard in turn, preparation comes to the same bytes.

    Nothing is tidied up, as after SIGKILL; test_vocabulary.py sends that to the command.
    """
    path = tmp_path / ("x.jsonl" if kind == "json" else "x.txt")
    if kind == "json":
        write_json(path, texts(500))
    else:
        path.write_text("\n".join(texts(500)))
    expected = contents(prepared(settings_of(tmp_path / "whole", kind, path)).directory)
    data = settings_of(tmp_path / "stopped", kind, path)
    save, remove = np.save, shutil.rmtree
    ended = [False]

    def tidy(*arguments: Any, **options: Any) -> None:
        if not ended[0]:
            remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", tidy)
    for number in range(200):
        countdown, ended[0] = [random.Random(number).randint(1, 9)], False

        def fail(file: Path, *arguments: Any, countdown: list[int] = countdown, **options: Any):
            save(file, *arguments, **options)
            countdown[0] -= 1
            if countdown[0] == 0:  # half of the file is written
                os.truncate(file, file.stat().st_size // 2)
                ended[0] = True
                raise Kill

        monkeypatch.setattr(np, "save", fail)
        try:
            directory = prepared(data).directory
        except Kill:
            continue
        assert number > 3
        assert contents(directory) == expected
        return
    pytest.fail("never finished")


@pytest.mark.parametrize("most_bytes", [0, 100_000])
@pytest.mark.parametrize("unlinked", [0, 2, 99])
def test_killed_between_the_last_shard_and_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int, unlinked: int
) -> None:
    """However many positions are left: the same bytes, and no position beside the manifest."""
    path = write_json(tmp_path / "x.jsonl", texts(500))
    remaining = [unlinked]
    unlink = Path.unlink

    def fail(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.endswith(make.POSITION):
            if remaining[0] == 0:
                raise Kill
            remaining[0] -= 1
        unlink(path, *arguments, **options)

    def kill(*_: Any) -> None:
        raise Kill

    def made(name: str) -> dict[str, bytes]:
        data = settings_of(tmp_path / name, "json", path)
        [source] = config.sources_of(data)
        opened, facts = (
            open_source(source, data.document_bytes),
            manifest.facts_of(data, source, BYTES),
        )
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        make.make_shards(directory, opened, data, BYTES, facts, most_bytes=most_bytes, say=print)
        return contents(directory)

    expected = made("whole")
    assert len([name for name in expected if name.endswith("tokens.npy")]) > 3
    with monkeypatch.context() as patched, pytest.raises(Kill):
        patched.setattr(Path, "unlink", fail)
        if unlinked == 99:  # all of them
            patched.setattr(manifest, "write", kill)
        made("killed")
    assert not (tmp_path / "killed" / manifest.FILE).exists()
    assert made("killed") == expected


def test_what_is_prepared_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are found by the names, sizes and times of files; a changed file makes new ones."""
    path = write_json(tmp_path / "x.jsonl", texts(200))
    data = settings_of(tmp_path, "json", path)
    first = prepared(data)
    with monkeypatch.context() as patched:
        patched.setattr(records.Files, "read", lambda *_: pytest.fail("read again"))
        assert prepared(data).sha256() == first.sha256()
    write_json(path, texts(201))
    second = prepared(data)
    assert second.directory != first.directory and second.sha256() != first.sha256()


def test_a_moved_text_is_the_same_text(tmp_path: Path) -> None:
    """The identity of a run's text is that of its tokens, not of the place it was read from."""
    values = texts(300)
    (tmp_path / "other").mkdir()
    first = prepared(settings_of(tmp_path, "json", write_json(tmp_path / "x.jsonl", values)))
    second = prepared(
        settings_of(tmp_path / "2", "json", write_json(tmp_path / "other" / "y.jsonl.gz", values))
    )
    assert [s["tokens"] for s in first.manifest["shards"]] == [
        s["tokens"] for s in second.manifest["shards"]
    ]
    assert first.manifest["totals"] == second.manifest["totals"]


def touched(folder: Path) -> Path:
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1))
    return folder


def moved(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy")))


def refused(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("kind", ["json", "parquet", "text", "directory"])
@pytest.mark.parametrize("change", [touched, moved, copied])
def test_the_same_text_is_not_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: Callable[[Path], Path]
) -> None:
    """Files that were touched, moved or copied: their shards are taken over, by links or, where
    there are none, by copies; and either directory is whole without the other."""
    folder = tmp_path / "folder"
    folder.mkdir()
    name = {"json": "x.jsonl", "parquet": "x.parquet", "text": "x.txt", "directory": ""}[kind]
    if kind == "json":
        write_json(folder / name, texts(200))
    elif kind == "parquet":
        write_parquet(folder / name, texts(200))
    else:
        (folder / (name or "y.txt")).write_text("\n".join(texts(200)))
    source = "text" if kind == "directory" else kind
    fields = {"document_bytes": 1000}
    first = prepared(settings_of(tmp_path, source, folder / name, **fields))
    expected = contents(first.directory)
    changed = change(folder)
    said: list[str] = []
    with monkeypatch.context() as patched:
        for reader in (records.RecordFiles, text.TextFiles):
            patched.setattr(reader, "read", lambda *_: pytest.fail("read again"))
        if kind == "text":
            patched.setattr(os, "link", refused)
        second = prepared(settings_of(tmp_path, source, changed / name, **fields), said)
    assert second.directory != first.directory and second.sha256() == first.sha256()
    assert said[0].startswith(f"the text of {first.directory} at another place or time; ")
    assert second.manifest["source"]["path"] == [str(changed / name)]
    shutil.rmtree(first.directory)
    again = prepared(settings_of(tmp_path, source, changed / name, **fields))
    found = contents(again.directory)
    assert found.keys() == expected.keys() and len(found) > 20
    differs = [name for name in found if found[name] != expected[name]]
    assert differs == ([] if change is touched else ["manifest.json"])


def test_other_text_is_prepared(tmp_path: Path) -> None:
    """One byte, other settings, another order of files, or shards that are damaged or not whole."""
    paths = [
        write_json(tmp_path / f"{name}.jsonl", texts(150, seed)) for seed, name in enumerate("ab")
    ]
    first = prepared(settings_of(tmp_path, "json", *paths))

    def is_taken_over(*paths: Path, **fields: Any) -> bool:
        said: list[str] = []
        prepared(settings_of(tmp_path, "json", *paths, **fields), said)
        return any("are used" in sentence for sentence in said)

    others = [path.rename(path.with_name(f"other-{path.name}")) for path in paths]
    assert not is_taken_over(*others[::-1])
    assert not is_taken_over(*others, holdout=0.2)
    content = others[0].read_bytes()
    others[0].write_bytes(content[:-4] + b"X" + content[-3:])
    assert not is_taken_over(*others)
    others[0].write_bytes(content)
    shard = first.directory / "00000" / "tokens.npy"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert not is_taken_over(*map(touched_file, others))
    shutil.rmtree(first.directory / "00001")
    shard.write_bytes(sound)
    for directory in (tmp_path / "shards").iterdir():
        if directory != first.directory:
            shutil.rmtree(directory)
    assert not is_taken_over(*map(touched_file, others))
    assert is_taken_over(*map(touched_file, others))


def touched_file(path: Path) -> Path:
    time = path.stat().st_mtime_ns
    os.utime(path, ns=(time, time + 10**9))
    return path


@pytest.mark.parametrize("stages", [False, True])
def test_training_text_is_known_by_its_documents(tmp_path: Path, stages: bool) -> None:
    """In any order, of all shards and stages, deleted ones, too; what was held out is none of them;
    where hashes are damaged, nothing is known."""
    values = texts(1500)
    path = write_json(tmp_path / "x.jsonl", values)
    data = settings_of(tmp_path, "json", path, window_bytes=1_000_000 if stages else 0)
    opened = open_corpus(data, BYTES, say=lambda _: None)
    if isinstance(opened, rolling.RollingCorpus):
        number = 0
        while not opened.stages.facts(number)["last"]:
            number += 1
        assert number > 1
        opened.stages.drop_before(number)
    own = [Document("", value.encode()) for value in values]
    kept = [document for document in own if not split.is_heldout(document.text, 0.1)]

    def count(documents: list[Document], sha256: str | None = opened.sha256()) -> Any:
        folders = [tmp_path / "none", Path(data.shards)]
        return known.count_trained(documents, data, BYTES, sha256, folders, say=lambda _: None)

    expected = {"documents": len(kept), "bytes": sum(len(d.text) for d in kept)}
    assert count(own[::-1] + [Document("", b"other")]) == expected
    assert count([d for d in own if d not in kept]) == {"documents": 0, "bytes": 0}
    assert count(own, "0" * 64) is None and count(own, None) is None
    hashes = sorted(Path(data.shards).rglob(f"*{manifest.DOCUMENTS}"))
    assert len(hashes) > 3
    hashes[-1].write_bytes(hashes[-1].read_bytes()[:-1])
    assert count(own) is None


def test_text_that_changes_while_it_is_read_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shards hold is then not known; the file as it is now is prepared for itself."""
    path = write_json(tmp_path / "x.jsonl", texts(200))
    whole = path.read_bytes()
    read = records.RecordFiles.read

    def changed(self: Any, position: Any = None) -> Any:
        path.write_bytes(whole[: len(whole) // 2].rpartition(b"\n")[0] + b"\n")
        return read(self, position)

    with monkeypatch.context() as patched:
        patched.setattr(records.RecordFiles, "read", changed)
        half = prepared(settings_of(tmp_path, "json", path))
    assert manifest.CONTENTS not in half.manifest
    path.write_bytes(whole)
    done = prepared(settings_of(tmp_path, "json", touched_file(path)))
    assert done.manifest["totals"]["bytes"] > half.manifest["totals"]["bytes"]


# Mistakes


def refusal(data: DataConfig) -> str:
    """The sentence with which preparation is refused; nothing stays that looks whole."""
    with pytest.raises(UserError) as caught:
        prepared(data)
    assert "\n" not in str(caught.value)
    assert not list(Path(data.shards).rglob("manifest.json"))
    assert not list(Path(data.shards).rglob("*partial*"))
    return str(caught.value)


def test_bad_sources_are_one_sentence(tmp_path: Path) -> None:
    """Empty, without the field, of another encoding, cut short, of numbers, not there at all."""
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n' * 3)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": broken\n')
    write_json(tmp_path / "field.jsonl", texts(5), field="body")
    write_json(tmp_path / "number.jsonl", [1, 2, 3])
    whole = write_parquet(tmp_path / "x.parquet", texts(500)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    for kind, name, words in (
        ("json", "empty.jsonl", ["empty.jsonl is empty"]),
        ("json", "latin.jsonl", ["latin.jsonl, line 1: ", "not UTF-8", "--data.skip_damaged N"]),
        (
            "json",
            "broken.jsonl",
            ["broken.jsonl, line 2: not a JSON record", "skip_damaged"],
        ),
        ("json", "field.jsonl", ["no field 'text'", "body", "--data.field"]),
        ("json", "number.jsonl", ["number.jsonl, line 1: field 'text' holds a number, not text"]),
        ("parquet", "cut.parquet", ["cannot read", "cut.parquet as parquet"]),
        ("parquet", "none", ["no parquet files at"]),
        ("json", "*.gz", ["no json files at", "a pattern such as"]),
    ):
        message = refusal(settings_of(tmp_path, kind, tmp_path / name))
        assert all(word in message for word in words), message


def test_a_file_cut_short_while_reading_is_told(tmp_path: Path) -> None:
    """A compressed file that ends too early is refused, however much of it could be read."""
    path = write_json(tmp_path / "x.jsonl.gz", texts(2000))
    path.write_bytes(path.read_bytes()[:-2000])
    assert "x.jsonl.gz" in refusal(settings_of(tmp_path, "json", path))


def test_too_little_to_hold_out(tmp_path: Path) -> None:
    """One document cannot be split, and a share that holds nothing out is told."""
    one = settings_of(tmp_path, "json", write_json(tmp_path / "1.jsonl", ["one text"]))
    assert "at least 2 different documents" in refusal(one)
    many = write_json(tmp_path / "2.jsonl", texts(300))
    message = refusal(settings_of(tmp_path, "json", many, holdout=1e-9))
    assert "none is left to be held out; change --data.holdout" in message


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is kept, what is not is gone, and the same command goes on."""
    path = write_json(tmp_path / "x.jsonl", texts(600))
    data = settings_of(tmp_path, "json", path)
    save, calls = np.save, [0]

    def fail(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", fail)
        message = refusal(data)
    assert "No space left on device" in message and "--data.shards" in message
    [directory] = Path(data.shards).iterdir()
    finished = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    assert sorted(finished) == ["00000", "00001"]
    assert len(prepared(data).shards) > 3


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """In any file of a shard; deleting it, as the sentence says, mends it."""
    path = write_json(tmp_path / "x.jsonl", texts(300))
    data = settings_of(tmp_path, "json", path)
    done = prepared(data)
    sound = contents(done.directory)
    for name in sorted(sound):
        if name.startswith("00001/"):
            file = done.directory / name
            damaged = bytearray(sound[name])
            damaged[len(damaged) // 2] ^= 4
            file.write_bytes(damaged)
            with pytest.raises(UserError, match="00001 is (damaged|not the one)"):
                prepared(data)
            file.write_bytes(sound[name])
    for file in (done.directory / "00001").iterdir():
        file.unlink()
    (done.directory / "00001").rmdir()
    assert contents(prepared(data).directory) == sound


def test_two_processes_do_not_prepare_the_same(tmp_path: Path) -> None:
    """The second is told to wait; what is finished may be read by any number."""
    data = settings_of(tmp_path, "json", write_json(tmp_path / "x.jsonl", texts(100)))
    done = prepared(data)
    with make.writing(done.directory):
        assert prepared(data).sha256() == done.sha256()
    (done.directory / manifest.FILE).unlink()  # as it is until all shards are written
    with make.writing(done.directory), pytest.raises(UserError, match="another process"):
        prepared(data)


# A run on a mixture


def test_shards_of_a_mixture_are_laid_out(tmp_path: Path) -> None:
    """Every source has its own shards and held-out text; another order of names is another text."""
    tree = {
        "data": {
            "mixture": [
                {
                    "name": name,
                    "source": "json",
                    "path": str(write_json(tmp_path / f"{name}.jsonl", texts(200, seed))),
                    "weight": weight,
                }
                for name, seed, weight in (("first", 1, 3), ("second", 2, 1.0))
            ],
            "shards": str(tmp_path / "shards"),
        },
        "es": {"population": 8, "segment_length": 16},
    }
    settings: Config = config.validate(config.from_dict(tree))
    opened = open_corpus(settings.data, BYTES, say=lambda _: None)
    assert sorted(opened.heldout(0)) == ["first", "second"]
    laid = opened.streams(settings, [(0, [3.0, 1.0])])
    step = 100 * laid.steps_per_round
    assert abs(laid.shares(step)["first"] - 0.75) < 0.05
    limited = opened.heldout(1000)
    assert all(0 < len(documents) <= 6 for documents in limited.values())
