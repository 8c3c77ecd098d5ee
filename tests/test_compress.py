"""Archives: what comes back is what went in, from the format as docs/archive.md has it."""

import hashlib
import io
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tiny_run import export_tiny_run, tiny_run

from int_lm import compress, runtime
from int_lm.compress import __main__ as command, coder
from int_lm.config import ModelConfig
from int_lm.errors import UserError, reported
from tokenization import ByteTokenizer

MODEL = ModelConfig(
    architecture="rwkv", width=8, layers=1, ffn_multiple=1, direct=(1, 2), direct_bits=8
)
TEXT = b"def add(a, b):\n    return a + b\n" * 40 + bytes(range(256))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(tiny_run(model=MODEL), tmp_path_factory.mktemp("compress"))


@pytest.fixture(scope="module")
def codec(directory: Path) -> compress.Codec:
    """A model that knows nothing, but for one thing: it always expects what TEXT repeats."""
    model = runtime.load(directory)
    head = np.zeros_like(model.tensors["head"])
    tensors = model.tensors | {"head": head}
    for length in (1, 2):
        tensors[f"direct/context_{length}"] = np.zeros((256, 256), np.int8)
    context = [0] * 2
    for token in TEXT[:32] * 2:
        rows = runtime.context_rows(np.array([context]).T, [2, 1], 8)[:, 0]
        for length, row in zip((2, 1), rows, strict=True):
            tensors[f"direct/context_{length}"][row, token] = 127
        context = [token, context[0]]
    known = runtime.Model(
        model.config, model.architecture, tensors, model.exp2_table, model.log2_table
    )
    return compress.Codec(known, ByteTokenizer().encode, ByteTokenizer().decode)


def archive_of(codec: compress.Codec, text: bytes, lanes: int = 0, learn: bool = False) -> bytes:
    target = io.BytesIO()
    compress.compress(codec, io.BytesIO(text), target, lanes=lanes, learn=learn)
    return target.getvalue()


def text_of(codec: compress.Codec, archive: bytes) -> bytes:
    target = io.BytesIO()
    compress.decompress(codec, io.BytesIO(archive), target)
    return target.getvalue()


def read_by_the_document(codec: compress.Codec, archive: bytes) -> bytes:
    """docs/archive.md in plain Python, a token at a time, every lane with a model of its own."""
    magic, version, flags, zero, V, name, crc = struct.unpack("<8sBBHI16sI", archive[:36])
    assert magic == b"\x89INTLM\r\n" and (version, flags & ~1, zero, V) == (1, 0, 0, 256)
    deltas: dict[tuple[int, int], list[int]] = {}  # by length and row
    counts: dict[tuple[int, int], int] = {}
    entries: dict[tuple[int, int], tuple[int, int]] = {}  # by m and place: (a, c)
    worths: dict[tuple[int, int], int] = {}  # by m and c
    assert name.decode() == codec.model.config["weights_hash"]
    assert crc == zlib.crc32(archive[:32])
    table, k = codec.model.exp2_table.tolist(), 22
    at, text = 36, bytearray()
    while True:
        kind, size, n, L, payload = struct.unpack_from("<B3xIIII", archive, at)
        data = archive[at + 20 : at + 20 + payload]
        assert struct.unpack_from("<I", archive, at + 20 + payload)[0] == zlib.crc32(
            archive[at : at + 20 + payload]
        )
        at += 24 + payload
        if kind == 0:
            assert struct.unpack("<Q32s", data) == (len(text), hashlib.sha256(text).digest())
            assert at == len(archive)
            return bytes(text)
        if kind == 2:
            assert len(data) == size
            text += data
            deltas, counts, entries, worths = {}, {}, {}, {}
            continue
        states = list(struct.unpack_from(f"<{L}Q", data))
        words = iter(struct.unpack(f"<{(payload - 8 * L) // 4}I", data[8 * L :]))
        lanes: list[list[int]] = [[] for _ in range(L)]
        readers = [runtime.reader(codec.model) for _ in range(L)]
        lengths = [n // L + (i < n % L) for i in range(L)]
        for t in range(max(lengths)):
            errors = []
            for i in range(L):
                if t >= lengths[i]:
                    continue
                logits = [int(x) for x in readers[i](lanes[i][-1] if t else 0)]
                rows = []
                if flags:
                    context = readers[i].state["context"]
                    rows = [(k, int(runtime.context_rows(context, [k], 8)[0, 0])) for k in (1, 2)]
                    learnt = [deltas.setdefault(row, [0] * V) for row in rows]
                    logits = [
                        max(-32767, min(32767, x + ((sum(d[v] for d in learnt) + 128) >> 8)))
                        for v, x in enumerate(logits)
                    ]
                    places = match_places(lanes[i])
                    for m in (3, 2, 1, 0):
                        a, c = entries.get((m, places[m]), (0, 0))
                        logits[a] += worths.get((m, c), 0) >> 8 if c else 0
                        logits[a] = max(-32767, min(32767, logits[a]))
                w = [table[min(max(logits) - x, 254)] for x in logits]
                q = ((2**24 - V) << (k + 8)) // sum(w)
                f = [1 + ((x * q) >> (k + 8)) for x in w]
                f[logits.index(max(logits))] += 2**24 - sum(f)
                slot, v, start = states[i] % 2**24, 0, 0
                while start + f[v] <= slot:
                    start, v = start + f[v], v + 1
                states[i] = f[v] * (states[i] >> 24) + slot - start
                if states[i] < 2**32:
                    states[i] = states[i] << 32 | next(words)
                lanes[i].append(v)
                errors.append((i, rows, [4096 * (u == v) - (f[u] >> 12) for u in range(V)]))
            moves: dict[tuple[int, int], list[list[int]]] = {}
            for _, rows, e in errors if t + 1 < max(lengths) else []:
                for row in rows:
                    rate = math.isqrt(4096**2 // (min(counts.get(row, 0), 255) + 1))
                    moves.setdefault(row, []).append([(x * rate) >> 12 for x in e])
            for row, added in moves.items():
                counts[row] = counts.get(row, 0) + len(added)
                deltas[row] = [
                    max(-32767, min(32767, old + sum(move)))
                    for old, *move in zip(deltas[row], *added, strict=True)
                ]
            for i, _, e in errors if flags and t + 1 < max(lengths) else []:
                token, places = lanes[i][-1], match_places(lanes[i][:-1])
                for m in (3, 2, 1, 0):
                    a, c = entries.get((m, places[m]), (0, 0))
                    if c:
                        worth = worths.get((m, c), 0) + (e[a] >> 3)
                        worths[m, c] = max(-32767, min(32767, worth))
                    seen = (a, min(c + 1, 63)) if c and a == token else (token, 1)
                    entries[m, places[m]] = (a, max(c >> 2, 1)) if c > 1 and a != token else seen
        assert states == [2**32] * L and next(words, None) is None
        decoded = bytes(v for lane in lanes for v in lane)
        assert len(decoded) == size
        text += decoded


def match_places(before: list[int]) -> list[int]:
    """The entries of docs/archive.md for the tokens of a lane so far, direct_bits being 8."""
    word, places = 0, []
    for count in range(1, 33):
        word = ((word ^ (before[-count] if count <= len(before) else 0)) * 0x9E3779B1) % 2**32
        word ^= word >> 15
        if count in (7, 12, 20, 32):
            places.append((((word ^ len(places)) * 0x85EBCA77) % 2**32) >> (32 - 8 - 5))
    return places


# the archives of the document in plain Python take most of the time here: texts are short
@pytest.mark.parametrize("lanes", [0, 1, 3, 64])
def test_the_document_describes_what_is_written(codec: compress.Codec, lanes: int) -> None:
    """An independent reader gets the text; so does the program; and it is compressed."""
    text = TEXT[: 600 if lanes == 64 else 250]  # every lane costs 8 bytes
    archive = archive_of(codec, text, lanes)
    assert read_by_the_document(codec, archive) == text == text_of(codec, archive)
    assert archive[36] == compress.CODED_KIND and len(archive) < 1000
    assert len(archive_of(codec, TEXT, 2)) < len(TEXT) // 2


@pytest.mark.parametrize("lanes", [1, 3])
def test_learning_is_what_the_document_says(
    codec: compress.Codec, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a stored block, which begins anew; and what is unknown to the model is learnt."""
    monkeypatch.setattr(compress, "BLOCK_BYTES", 200)
    text = b"pack my box " * 13 + TEXT[:44] + np.random.default_rng(0).bytes(200) + TEXT[:100]
    archive = archive_of(codec, text, lanes, learn=True)
    assert archive[9] == 1 and text[200:400] in archive
    assert read_by_the_document(codec, archive) == text == text_of(codec, archive)
    unknown = b"pack my box " * 30
    learnt, plain = (archive_of(codec, unknown, 1, learn=learn) for learn in (True, False))
    assert len(learnt) < 0.5 * len(plain)


def test_learning_needs_context_tables(codec: compress.Codec) -> None:
    """A model without them says so."""
    config = dict(codec.model.config, model=codec.model.config["model"] | {"direct": []})
    model = runtime.Model(config, runtime.Rwkv, {}, codec.model.exp2_table, codec.model.log2_table)
    with pytest.raises(UserError, match="--learn needs context tables"):
        archive_of(compress.Codec(model, codec.encode, codec.decode), b"text", learn=True)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 9))
def test_any_bytes_come_back(codec: compress.Codec, text: bytes, lanes: int) -> None:
    """Zero bytes, no bytes, noise; never much longer than the text."""
    archive = archive_of(codec, text, lanes)
    assert text_of(codec, archive) == text
    assert len(archive) <= len(text) + 124


def test_several_blocks(codec: compress.Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coded and stored ones in turn; what cannot be predicted is stored."""
    monkeypatch.setattr(compress, "BLOCK_BYTES", 300)
    noise = np.random.default_rng(0).bytes(300)
    text = TEXT[:300] + noise + TEXT[300:700]
    archive = archive_of(codec, text)
    assert text_of(codec, archive) == text == read_by_the_document(codec, archive)
    assert noise in archive and TEXT[:300] not in archive


def test_pieces_that_do_not_come_back_are_stored(codec: compress.Codec) -> None:
    """A tokenizer that loses bytes, or refuses them, costs compression and nothing else."""

    def refuses(text: bytes) -> np.ndarray:
        raise UserError("no text")

    for encode in (lambda text: np.frombuffer(text.lower(), np.uint8), refuses):
        lossy = compress.Codec(codec.model, encode, codec.decode)
        archive = archive_of(lossy, b"Text " * 20)
        assert archive[36] == compress.STORED_KIND
        assert text_of(lossy, archive) == b"Text " * 20


def test_frequencies_are_exact_at_the_ends_of_their_range() -> None:
    """Of sum 2^24, at least 1, ordered as the logits, for small and for the largest vocabulary."""
    generator = np.random.default_rng(0)
    for V, bits in ((2, 22), (256, 22), (300, 28), (65536, 28)):
        d = np.arange(255)
        table = np.rint(2.0**bits * 2.0 ** (-d / 16)).astype(np.int32)
        logits = generator.integers(-32767, 32768, (4, V))
        logits[1], logits[2] = 0, -32767
        logits[2, V // 2] = 32767
        found = coder.frequencies(table, logits)
        assert (found.sum(axis=1) == 2**24).all() and found.min() >= 1
        assert abs(found[1, 1:] - 2**24 / V).max() <= 1
        assert found[2].argmax() == V // 2


FLIPS = 100


def test_every_damage_is_refused(codec: compress.Codec) -> None:
    """A bit flipped, bytes cut off or added, anywhere: never another text, always one sentence."""
    archive, generator = archive_of(codec, TEXT[:300], 4), np.random.default_rng(1)
    damaged = [archive[:length] for length in range(0, len(archive), 3)] + [archive[:-1]]
    damaged += [archive + b"x", archive[:36] + archive[60:]]
    for _ in range(FLIPS):
        flipped = bytearray(archive)
        flipped[generator.integers(len(archive))] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(flipped))
    for bad in damaged:
        with pytest.raises(compress.ArchiveError) as caught:
            text_of(codec, bad)
        assert "\n" not in str(caught.value)


def sealed(archive: bytes, at: int, value: bytes) -> bytes:
    """An archive of one block with other bytes at a place of it, and the right CRC-32."""
    changed = bytearray(archive)
    changed[at : at + len(value)] = value
    size = 20 + struct.unpack_from("<I", archive, 36 + 16)[0]
    changed[36 + size : 40 + size] = struct.pack("<I", zlib.crc32(changed[36 : 36 + size]))
    return bytes(changed)


def test_forged_blocks_are_refused(codec: compress.Codec) -> None:
    """With a right CRC-32, whatever the numbers, states and words are."""
    archive, generator = archive_of(codec, TEXT[:300], 4), np.random.default_rng(2)
    places = [(at, bytes(4)) for at in (40, 44, 48, 52)] + [(37, b"\1"), (36, b"\2"), (36, b"\7")]
    places += [(at, b"\xff\xff\xff\xff") for at in (40, 44, 48)]
    places += [(int(generator.integers(56, len(archive) - 70)), b"\xa5\x5a") for _ in range(30)]
    assert text_of(codec, sealed(archive, 40, archive[40:44])) == TEXT[:300]
    for at, value in places:
        with pytest.raises(compress.ArchiveError):
            text_of(codec, sealed(archive, at, value))


def test_another_model_or_version_is_named(codec: compress.Codec) -> None:
    """Each sentence says which, and what to use."""
    archive = bytearray(archive_of(codec, b"text"))
    for at, value, message in (
        (0, 0, "no archive of int_lm"),
        (8, 2, "version 2 .* newer int_lm"),
        (9, 2, "flags 2"),
    ):
        changed = archive.copy()
        changed[at] = value
        with pytest.raises(UserError, match=message):
            text_of(codec, bytes(changed))
    other = dict(codec.model.config, weights_hash="0123456789abcdef")
    model = runtime.Model(other, runtime.Rwkv, {}, codec.model.exp2_table, codec.model.log2_table)
    with pytest.raises(UserError, match="this export has 0123456789abcdef; use the export that"):
        text_of(compress.Codec(model, codec.encode, codec.decode), bytes(archive))


def test_the_command(
    directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There and back; a file in the way, a damaged archive and a missing one lose nothing.

    Nor does a standard input or output that is closed (`<&-`, `>&-`).
    """
    text, archive, back = (tmp_path / name for name in ("text", "archive", "back"))
    text.write_bytes(TEXT)
    with_export = ["--export", str(directory)]
    command.main([str(text), "-o", str(archive), *with_export])
    command.main([str(archive), "-o", str(back), "--decompress", *with_export])
    assert back.read_bytes() == TEXT
    assert "bits per byte" in capsys.readouterr().err
    for arguments, message in (
        ([str(text), "-o", str(back)], "exists already; replace it with --overwrite"),
        ([str(tmp_path / "none"), "-o", str(tmp_path / "x")], "there is no file"),
        ([str(text), "-o", str(tmp_path / "x"), "--lanes", "2000"], "--lanes is 2000"),
        ([str(text), "-o", str(back), "--overwrite", "--decompress"], "no archive of int_lm"),
    ):
        with pytest.raises(UserError, match=message):
            command.main([*arguments, *with_export])
    for closed, words in (
        ("stdin", ["-", "-o", str(tmp_path / "x")]),
        ("stdout", ["x", "-o", "-"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sys, closed, None)
            with pytest.raises(SystemExit) as ended, reported(command.PROGRAM):
                command.main([*words, *with_export])
            if closed == "stdout":
                sys.stdout.close()  # what stood for it
        said = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(said) == 1
        assert f"standard {closed[3:]}put is closed; name" in said[0]
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short"):
        command.main([str(archive), "-o", str(back), "--overwrite", "--decompress", *with_export])
    assert back.read_bytes() == TEXT
    assert {path.name for path in tmp_path.iterdir()} == {"text", "archive", "back"}


@pytest.mark.slow
def test_pipes(directory: Path) -> None:
    """Standard input to standard output; a damaged archive writes nothing, in one line."""

    def piped(data: bytes, *flags: str) -> subprocess.CompletedProcess[bytes]:
        program = [sys.executable, "-m", "int_lm.compress", "-", "-o", "-", *flags]
        return subprocess.run(
            [*program, "--export", str(directory)], input=data, capture_output=True
        )

    archive = piped(TEXT).stdout
    assert piped(archive, "--decompress").stdout == TEXT
    damaged = piped(archive[:-9] + b"damage...", "--decompress")
    assert damaged.returncode == 2 and damaged.stdout == b""
    assert damaged.stderr.decode().count("\n") == 1
