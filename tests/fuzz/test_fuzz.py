"""Mutated files crash no reader and change no weight; no reader hangs or looks elsewhere."""

import dataclasses
import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml

from data import arrays, shards
from int_lm import config, runtime, subject
from int_lm.config import ModelConfig
from int_lm.errors import UserError
from int_lm.files import checkpoint, digest, untrusted
from int_lm.files.checkpointer import Checkpointer
from int_lm.sample import __main__ as sample
from tests.fuzz import child, harness, mutate
from tests.fuzz.formats import FORMATS, OUTSIDE, forge_digests
from tests.tiny_run import export_tiny_run, tiny_run
from tokenization import ByteTokenizer


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Honest examples of every format."""
    directory = tmp_path_factory.mktemp("fuzz")
    harness.make(list(FORMATS), directory)
    return directory


def assert_harmless(room: Path, first: int, count: int) -> None:
    outcomes = harness.run(harness.LABELS, room, first, count)
    assert {label: outcome.faults for label, outcome in outcomes.items() if outcome.faults} == {}
    for label, outcome in outcomes.items():
        assert sum(outcome.counts.values()) == count
        assert outcome.counts["refused"] > count / 10, label


@pytest.mark.slow
@pytest.mark.alone
def test_mutated_files_do_no_harm(room: Path) -> None:
    """Whatever is changed, it is refused in a sentence, or what is read is as it should be."""
    assert_harmless(room, 10_000, 40)


@pytest.mark.long
def test_many_mutated_files_do_no_harm(room: Path) -> None:
    """The same, with 10 000 files of every format and kind of mutation."""
    assert_harmless(room, 0, 10_000)


# The fuzzer finds what it is for


def raising(_: Path) -> None:
    raise KeyError("a reader that did not expect this")


def unpickling(directory: Path) -> Any:
    return pickle.loads(pickle.dumps(Path))


def looking_elsewhere(directory: Path) -> bytes:
    return (directory.parent / OUTSIDE).read_bytes()


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (raising, "KeyError"),
        (unpickling, "pickle.find_class"),
        (looking_elsewhere, "opened "),
        (lambda _: bytearray(2 << 20), "bytes above twice"),
        (lambda _: config.Config(), "other values than were written"),
    ],
)
def test_a_faulty_reader_is_found(
    tmp_path: Path, watch: child.Watch, read: Callable[[Path], Any], problem: str
) -> None:
    """Each of the promises is broken once."""
    case = dataclasses.replace(FORMATS["config"], read=read, spare=1 << 20)
    child.fill(watch.directory, {"full.yaml": b""})
    tracemalloc.start()
    try:
        verdict, _ = child.attempt(case, watch.directory, watch, "the honest summary")
    finally:
        tracemalloc.stop()
    assert verdict.startswith("fault: ") and problem in verdict


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> child.Watch:
    """One for all tests: an audit hook stays until the process ends."""
    parts = tmp_path_factory.mktemp("watched") / "parts"
    parts.mkdir()
    return child.Watch(parts / "files")


def test_mutations_are_functions_of_their_number() -> None:
    """A number that is reported can be read again; and every mutation changes something."""
    text = json.dumps({"a": [1, 2, {"b": "name"}], "c": 1.5}).encode()
    for number in range(200):
        first, again = (mutate.of_bytes(Random(number), text) for _ in range(2))
        assert first == again != text
        first, again = (mutate.of_json(Random(number), json.loads(text)) for _ in range(2))
        assert first == again


# What it found, and what a number of mutations may miss


@pytest.mark.parametrize("text", mutate.YAMLS[:13])
def test_yaml_that_is_more_than_it_seems_is_refused(tmp_path: Path, text: str) -> None:
    """Aliases, tags, numbers of thousands of digits, dates outside of time, deep nesting."""
    (tmp_path / "a.yaml").write_text(text)
    if text == "model:\n  <<: {width: 8}\n":  # a merge without an alias is only another spelling
        assert config.load(tmp_path / "a.yaml").model.width == 8
        return
    with pytest.raises(UserError):
        config.load(tmp_path / "a.yaml")


def test_yaml_may_hold_long_lists_but_not_any() -> None:
    """10 000 values are read; a megabyte of zeros, which would take gigabytes, is not."""
    assert len(untrusted.parse_yaml("[" + "0," * 9_000 + "]")) == 9_000
    with pytest.raises(yaml.YAMLError, match="more than 10000 values"):
        untrusted.parse_yaml("[" + "0," * 500_000 + "]")


def test_a_list_of_digests_names_nothing_outside(tmp_path: Path) -> None:
    """Not even a file whose digest is right: it would tell what files hold."""
    (tmp_path / OUTSIDE).parent.mkdir()
    (tmp_path / OUTSIDE).write_bytes(b"secret")
    refused = 0
    for number in range(60):
        directory = tmp_path / str(number)
        (directory / "below").mkdir(parents=True)
        (directory / "below" / "a").write_bytes(b"a")
        digest.seal(directory)
        forge_digests(Random(number), directory)
        with pytest.raises(digest.DamagedError):
            digest.check(directory)
        refused += 1
    assert refused == 60


def test_a_header_of_an_array_is_not_believed(room: Path, tmp_path: Path) -> None:
    """A .npy file that says it holds a terabyte, or objects, is refused before it is mapped."""
    for header in (
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (open('x'),), }",
    ):
        path = tmp_path / "tokens.npy"
        data = b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + bytes(64)
        path.write_bytes(data)
        with pytest.raises(untrusted.MalformedError):
            arrays.mapped(path)


def test_another_tokenizer_in_an_export_is_refused(room: Path, tmp_path: Path) -> None:
    """Sound by itself, it would give ids that the weights do not have."""
    directory = export_tiny_run(tiny_run(), tmp_path)
    shutil.rmtree(directory / "tokenizer")
    shutil.copytree(room / "tokenizer" / "honest", directory / "tokenizer")
    for use in (
        lambda: subject.open_export(directory),
        lambda: sample.main(["--export", str(directory), "--prompt", "a", "--tokens", "1"]),
    ):
        with pytest.raises(UserError, match="it has kind 'sentencepiece', not 'bytes'"):
            use()


def test_a_checkpoint_with_minus_128_is_damaged(tmp_path: Path) -> None:
    """Its digests may be right; the value would wrap where its magnitude is taken."""
    state = {"w": np.full((3, 4), -128, np.int8)}
    with Checkpointer(tmp_path, keep=1) as writer:
        writer.save(1, state, {}, valid_bits_per_byte=None)
    with pytest.raises(UserError, match="holds -128 in w"):
        checkpoint.restore(tmp_path, state)


def peak_of(read: Callable[[], Any]) -> tuple[Any, int]:
    """(what was read, the most bytes that were allocated meanwhile)."""
    tracemalloc.start()
    try:
        return read(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_takes_no_more_memory_than_the_files(tmp_path: Path) -> None:
    """An export takes its own size; a shard some blocks of its ids, however many it holds."""
    model = ModelConfig(width=8, layers=1, direct=(1, 2), direct_bits=15)
    directory = export_tiny_run(tiny_run(model=model), tmp_path)
    size = (directory / "model.safetensors").stat().st_size
    assert size > 16 << 20
    loaded, peak = peak_of(lambda: runtime.load(directory))
    assert loaded.weights["direct/context_2"].shape == (1 << 15, 256)
    assert peak < 1.1 * size
    ids = [np.full(50_000, 7, np.uint8) for _ in range(300)]
    shard = shards.lay_out(ids, [], first=0, tokenizer=ByteTokenizer())
    counts = dict.fromkeys(shards.COUNTS, 0) | {
        "tokens": len(shard.tokens),
        "windows": len(shard.windows) - 1,
    }
    shards.write(shard, counts | {"last": True}, tmp_path / "00000")

    def read() -> shards.Shard:
        return shards.load(tmp_path / "00000", shards.check(tmp_path / "00000"), ByteTokenizer())

    again, peak = peak_of(read)
    np.testing.assert_array_equal(again.tokens[:], shard.tokens[:])
    assert peak < 1 << 22 < len(shard.tokens)
