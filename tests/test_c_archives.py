"""Archives of runtime.c: the bytes of int_lm.compress, and what is refused."""

import dataclasses
import os
import re
import shutil
import signal
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_c_runtime import SANITIZED, archive_of, built, codec_of, exported, needed, refused, said
from tiny_run import export_tiny_run, tiny_run

from int_lm import compress, export, runtime, sampling
from int_lm.config import ModelConfig
from int_lm.export import c_declarations
from int_lm.sample.stops import until

SMALL = 400  # bytes of a block


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("rwkv", tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def program(directory: Path) -> Path:
    """With small blocks; any fault of memory or of arithmetic ends it."""
    needed("gcc")
    return built(directory, "gcc", "-O0", *SANITIZED, f"-DBLOCK_BYTES={SMALL}", "-DLANES_MAX=32")


@pytest.fixture(scope="module")
def codec(directory: Path) -> compress.Codec:
    return codec_of(export.load(directory))


@pytest.fixture(scope="module")
def text(codec: compress.Codec) -> bytes:
    """What the model itself writes, so that it finds it likely."""
    sampler = runtime.Sampler(temperature=0.4)
    read = runtime.reader(codec.model)
    return bytes(runtime.generate(read, b"", sampler, tokens=3 * SMALL, stop=False))


def to_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def copied(directory: Path, to: Path) -> Path:
    """The export, beside which another program can be built."""
    return Path(shutil.copytree(directory, to / "export"))


@pytest.mark.parametrize("learn", [False, True])
def test_several_blocks(
    learn: bool, program: Path, codec: compress.Codec, text: bytes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Coded and stored ones, at the edges of their sizes, by default and by any number of lanes."""
    monkeypatch.setattr(compress, "BLOCK_BYTES", SMALL)
    noise = np.random.default_rng(0).bytes(SMALL)
    texts = [text[:SMALL] + noise + text[SMALL:-7], text[: SMALL - 1], text[:SMALL], b"x"]
    archive, back = tmp_path / "archive", tmp_path / "back"
    kinds = set()
    for content, lanes in [*((content, 0) for content in texts), (texts[0], 23), (b"ab", 32)]:
        flags = ["--overwrite", *(["--learn"] if learn else [])]
        flags += ["--lanes", str(lanes)] if lanes else []
        words = [program, "compress", to_file(tmp_path / "text", content), archive, *flags]
        said(*words)
        assert archive.read_bytes() == archive_of(codec, content, lanes, learn)
        kinds.add(archive.read_bytes()[36])
        said(program, "decompress", archive, back, "--overwrite")
        assert back.read_bytes() == content
    assert kinds == {1, 2}


THREADS = "-DTHREADS=3", "-pthread", "-DLARGE=64"  # which shares small matrices, too


@pytest.mark.slow
def test_whole_blocks(directory: Path, codec: compress.Codec, text: bytes, tmp_path: Path) -> None:
    """Blocks of a mebibyte, most of the lanes that there can be; by pipes; by threads."""
    needed("gcc")
    program = built(copied(directory, tmp_path), "gcc", "-O2", *THREADS)
    noise = np.random.default_rng(1).bytes((1 << 20) + 1)
    for content, lanes in ((noise[:1024] + text, 1024), (text, 0)):
        words = [program, "compress", "-", "-", "--lanes", str(lanes)]
        found = subprocess.run(words, input=content, capture_output=True, check=True).stdout
        assert found == archive_of(codec, content, lanes)
        words = [program, "decompress", "-", "-"]
        done = subprocess.run(words, input=found, capture_output=True, check=True)
        assert done.stdout == content
        assert re.fullmatch(rb"\d+ bytes became \d+: \d+\.\d{6} bits per byte\n", done.stderr)
    said(program, "compress", to_file(tmp_path / "noise", noise), tmp_path / "a", "--lanes=1")
    head = struct.unpack_from("<B3xIIII", (tmp_path / "a").read_bytes(), 36)
    assert head == (2, 1 << 20, 0, 0, 1 << 20)
    said(program, "decompress", tmp_path / "a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == noise
    texts = [bytes([97 + i]) * 9 * i for i in range(1, 6)]
    files = [to_file(tmp_path / f"{i}", content) for i, content in enumerate(texts)]
    score = int(runtime.log2_likelihoods(codec.model, texts).sum())
    assert f'"bytes": 135, "log2_likelihood": {score},'.encode() in said(program, "score", *files)
    ids = runtime.generate(
        runtime.reader(codec.model), b"", runtime.Sampler(), tokens=9, stop=False
    )
    found = said(program, "sample", "--no_stop", "--tokens=9")
    assert found == (bytes(ids).decode("utf-8", "replace") + "\n").encode()
    assert "none" in sentence([program, "score", *(tmp_path / f"none{i}" for i in range(9))])


def damages(archive: bytes) -> list[bytes]:
    """Cut short, longer, with a bit flipped, and forged with a right CRC-32."""
    generator = np.random.default_rng(1)
    found = [archive[:length] for length in (0, 5, 35, 36, 50, 60, len(archive) // 2)]
    found += [archive[:-1], archive[:-64], archive + b"x", archive[:36] + archive[60:]]
    for place in generator.integers(0, len(archive), 25):
        flipped = bytearray(archive)
        flipped[place] ^= 1 << int(generator.integers(8))
        found.append(bytes(flipped))
    size = 20 + struct.unpack_from("<I", archive, 36 + 16)[0]
    forged = [(at, bytes(4)) for at in (40, 44, 48, 52, 57)]
    forged += [(37, b"\1"), (36, b"\2"), (36, b"\7"), (36, b"\0")]
    forged += [(at, b"\xff\xff\xff\xff") for at in (40, 44, 48, 52)]
    forged += [(int(generator.integers(56, 36 + size - 2)), b"\xa5\x5a") for _ in range(15)]
    for at, value in forged:
        changed = bytearray(archive)
        changed[at : at + len(value)] = value
        changed[36 + size : 40 + size] = struct.pack("<I", zlib.crc32(changed[36 : 36 + size]))
        found.append(bytes(changed))
    return found


def test_every_damage_is_refused(
    program: Path, codec: compress.Codec, text: bytes, tmp_path: Path
) -> None:
    """By one sentence; no file is left, and one that was there is as it was."""
    for learn in (False, True):
        archive = archive_of(codec, text[:SMALL], 4, learn)
        assert archive[36] == 1
        for content in damages(archive):
            bad = to_file(tmp_path / "bad", content)
            refused([program, "decompress", bad, tmp_path / "back"])
            assert {path.name for path in tmp_path.iterdir()} == {"bad"}
    there = to_file(tmp_path / "there", b"precious")
    refused([program, "decompress", bad, there, "--overwrite"])
    assert there.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 2


def sentence(command: Sequence[str | Path]) -> str:
    refused(command)
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_what_is_wrong_is_named(
    program: Path, codec: compress.Codec, text: bytes, tmp_path: Path
) -> None:
    """Another model, another version, larger blocks, names that are taken."""
    name = codec.name.decode()
    other = codec.header(0).replace(codec.name, b"0123456789abcdef")[:32]
    archive = archive_of(codec, text[:SMALL])
    cases = {
        other + struct.pack("<I", zlib.crc32(other)) + archive[36:]: f"0123456789abcdef.*{name}",
        archive[:8] + b"\2" + archive[9:]: "of another version .* newer int_lm",
        archive[:9] + b"\2" + archive[10:]: "of another version .* newer int_lm",
        b"text": "no archive of int_lm",
        archive[:-5]: "cut short",
        archive_of(codec, text[: SMALL + 1], 1): "without -DBLOCK_BYTES",
        archive[:36] + struct.pack("<IIIII", 1, SMALL, SMALL, 33, 396): "without -DLANES_MAX",
    }
    for content, expected in cases.items():
        words = [program, "decompress", to_file(tmp_path / "bad", content), tmp_path / "back"]
        assert re.search(expected, sentence(words)), content[:60]
    here = to_file(tmp_path / "here", text)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "exists" in sentence([program, "compress", here, tmp_path / "bad"])
    assert "no file" in sentence([program, "compress", here, folder, "--overwrite"])
    assert "cannot read" in sentence([program, "compress", folder, tmp_path / "x"])
    assert "cannot write" in sentence([program, "compress", here, tmp_path / "none" / "x"])
    assert {path.name for path in tmp_path.iterdir()} == {"bad", "here", "folder"}
    precious = to_file(tmp_path / "x.partial", b"of something else")
    assert "x.partial" in sentence([program, "compress", here, tmp_path / "x"])
    assert precious.read_bytes() == b"of something else"
    said(program, "compress", here, here, "--overwrite")
    said(program, "decompress", here, here, "--overwrite")
    assert here.read_bytes() == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(
    number: signal.Signals, program: Path, tmp_path: Path
) -> None:
    """The program ends by it, and the file that it began is gone."""
    os.mkfifo(tmp_path / "pipe")
    words = [program, "compress", tmp_path / "pipe", tmp_path / "out"]
    with subprocess.Popen(words) as running, (tmp_path / "pipe").open("wb"):
        while not (tmp_path / "out.partial").exists():
            assert running.poll() is None
        running.send_signal(number)
        assert running.wait() == -number
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_full_disk_is_said(program: Path, text: bytes, tmp_path: Path) -> None:
    """An archive that could not be written is not passed over."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    words = [program, "compress", to_file(tmp_path / "text", text), "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "could not be written" in done.stderr.splitlines()[-1]


def test_models_without_archives_say_so(tmp_path: Path) -> None:
    """Nothing to learn, no room, no tokenizer: what to do instead."""
    needed("gcc")
    directory = exported("one", tmp_path)
    there = to_file(tmp_path / "text", b"text")
    program = built(directory, "gcc", "-O0")
    words = [program, "compress", there, tmp_path / "out"]
    assert "no context tables" in sentence([*words, "--learn"])
    codec = codec_of(export.load(directory))
    header = codec.header(compress.LEARNS)
    learnt = to_file(tmp_path / "learnt", header + archive_of(codec, b"text")[36:])
    assert "python -m int_lm" in sentence([program, "decompress", learnt, tmp_path / "out"])
    array = tmp_path / "weights.h"
    numbers = ",".join(map(str, (directory / "model.safetensors").read_bytes()))
    array.write_text(f"const unsigned char model_array[] = {{{numbers}}};\n")
    alone = built(directory, "gcc", "-O0", f'-DMODEL_ARRAY="{array}"')
    assert "-DBLOCK_BYTES" in sentence([alone, *words[1:]])
    assert {path.name for path in tmp_path.iterdir()} >= {"text", "learnt"}
    assert not (tmp_path / "out").exists()


def test_without_learning(directory: Path, tmp_path: Path) -> None:
    """-DLEARNING=0, for machines with little memory."""
    needed("gcc")
    program = built(copied(directory, tmp_path), "gcc", "-O0", "-DLEARNING=0")
    words = [program, "compress", to_file(tmp_path / "text", b"text"), tmp_path / "out"]
    assert "python -m int_lm.compress" in sentence([*words, "--learn"])
    said(*words)


def test_stop_strings_are_those_of_python(directory: Path, program: Path) -> None:
    """Also ones that overlap, and such as begin and never end."""
    model = export.load(directory)
    generator = np.random.default_rng(0)
    for seed in range(12):
        sampler = sampling.Sampler(seed=seed, top_k=2)
        ids = bytes(runtime.generate(runtime.reader(model), b"", sampler, tokens=60, stop=False))
        stops = []
        for _ in range(4):
            begin, length = generator.integers(0, 55), generator.integers(1, 6)
            piece = ids[begin : begin + length]
            stops += [piece, piece[:-1] + bytes([piece[-1] ^ 1])]
        stops = [stop for stop in stops if stop and 0 not in stop][: 1 + seed]
        expected = b"".join(until((bytes([token]) for token in ids), stops))
        words = [program, "sample", "--no_stop", "--tokens=60"]
        words += ["--top_k=2", f"--seed={seed}"]
        for stop in stops:
            words += ["--stop", os.fsdecode(stop)]
        assert said(*words) == (expected.decode("utf-8", "replace") + "\n").encode()


def test_a_prompt_from_a_file(directory: Path, program: Path, tmp_path: Path) -> None:
    """Any bytes, of any length; the penalty is of its tokens, too."""
    prompt = bytes(range(256)) * 8
    sampler = runtime.Sampler(repetition_penalty=2.5, repetition_window=100, seed=4)
    read = runtime.reader(export.load(directory))
    ids = bytes(runtime.generate(read, prompt, sampler, tokens=20, stop=False))
    words = [program, "sample", "--no_stop", "--tokens=20", "--seed=4", "--repetition_penalty=2.5"]
    words += ["--repetition_window=100", "--prompt_file", to_file(tmp_path / "prompt", prompt)]
    assert said(*words) == ((prompt + ids).decode("utf-8", "replace") + "\n").encode()


def test_every_tensor_has_an_identifier_of_its_own() -> None:
    """Paths that C cannot tell apart, names of C, digits, and other alphabets."""
    paths = ["a/b", "a_b", "a_b_2", "a-b", "int", "0/b", "_x", "é", "ü"]
    found = c_declarations.identifiers(paths, {"a_b_3"})
    assert list(found) == paths
    assert len(set(found.values())) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in found.values())
    assert not {"a_b_3", "int"} & set(found.values())


def test_the_hash_of_rows_that_do_not_end_with_words(tmp_path: Path) -> None:
    """An archive knows its model, whatever its width."""
    needed("gcc")
    model = ModelConfig(architecture="rwkv", width=5, layers=1, ffn_multiple=1)
    run = tiny_run(model=dataclasses.replace(model, direct=(1,), direct_bits=3))
    directory = export_tiny_run(run, tmp_path)
    program = built(directory, "gcc", "-O0")
    said(program, "compress", to_file(tmp_path / "text", b"text"), tmp_path / "out")
    name = export.load(directory).config["weights_hash"]
    assert (tmp_path / "out").read_bytes()[16:32] == name.encode()


def test_a_document_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes with several documents; rows that contexts share; no context tables beside it."""
    needed("gcc")
    monkeypatch.setattr(compress, "BLOCK_BYTES", SMALL)
    model = ModelConfig(architecture="rwkv", width=8, layers=1, ffn_multiple=1)
    run = tiny_run(model=dataclasses.replace(model, cache=(1, 16, 2, 5), cache_bits=4))
    directory = export_tiny_run(run, tmp_path)
    model = export.load(directory)
    assert np.count_nonzero(model.tensors[runtime.CACHE]) > 1000
    program = built(directory, "gcc", "-O0", *SANITIZED, f"-DBLOCK_BYTES={SMALL}")
    sampler = runtime.Sampler(temperature=0.3)
    read = runtime.reader(model)
    drawn = bytes(runtime.generate(read, b"", sampler, tokens=SMALL // 3, stop=False))
    text = b"\0".join([drawn, drawn[:40], drawn[30:]]) + b"abcabcab" * 20
    assert text.count(0) >= 2 and len(text) > SMALL
    there, archive = to_file(tmp_path / "text", text), tmp_path / "archive"
    for lanes in (1, 3):
        said(program, "compress", there, archive, "--overwrite", f"--lanes={lanes}")
        assert archive.read_bytes() == archive_of(codec_of(model), text, lanes)
        assert archive.read_bytes()[36] == 1
        said(program, "decompress", archive, tmp_path / "back", "--overwrite")
        assert (tmp_path / "back").read_bytes() == text
    assert "no context tables" in sentence([program, "compress", there, tmp_path / "x", "--learn"])
    ids = bytes(runtime.generate(runtime.reader(model), text, sampler, tokens=20, stop=False))
    words = [program, "sample", "--no_stop", "--tokens=20", "--temperature=0.3"]
    found = said(*words, "--prompt_file", there)
    assert found == ((text + ids).decode("utf-8", "replace") + "\n").encode()
