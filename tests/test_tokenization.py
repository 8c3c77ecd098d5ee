"""Tokenizers: no byte is lost, and what was saved is recognised or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenization
from int_lm.errors import UserError
from tokenization import ByteTokenizer

BYTE_DIGEST = "ffe36184a18a8c9c993c6e7b3ce7ae9d78b69210e83ddddc110ba596e5201887"


@given(st.binary())
def test_bytes_round_trip(text: bytes) -> None:
    """Any bytes at all, zero bytes and broken UTF-8 included, decode to themselves."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint8
    assert ids.tolist() == list(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_decode_takes_any_integer_dtype(dtype: type) -> None:
    """Ids that were widened on their way, or are a plain list, decode alike."""
    assert ByteTokenizer().decode(np.array([104, 105, 255], dtype)) == b"hi\xff"
    assert ByteTokenizer().decode([104, 105, 255]) == b"hi\xff"
    assert ByteTokenizer().decode([]) == b""


@pytest.mark.parametrize("ids", [[256], [-1], [1, 2, 2**40], [1.0], ["a"]])
def test_decode_refuses_what_is_no_byte(ids: list) -> None:
    """An id outside [0, 255] is refused, never wrapped round to another byte."""
    with pytest.raises(ValueError):
        ByteTokenizer().decode(ids)


def test_separators_stand_for_no_text() -> None:
    """Bytes of raw text are counted over any shape, without the separators."""
    assert ByteTokenizer().count_bytes(np.array([[0, 65, 255], [66, 0, 0]], np.uint8)) == 3
    assert ByteTokenizer().count_bytes(np.zeros((0, 5), np.uint8)) == 0


def test_saved_tokenizer_loads(tmp_path: Path) -> None:
    """A saved tokenizer is read back equal, over an older one, with nothing else left behind."""
    directory = tmp_path / "run" / "tokenizer"
    tokenizer = ByteTokenizer()
    tokenizer.save(directory)
    tokenizer.save(directory)
    assert tokenization.load(directory) == tokenizer
    assert tokenization.load(str(directory)).digest() == tokenizer.digest()
    assert [path.name for path in directory.iterdir()] == ["tokenizer.json"]
    fields = json.loads((directory / "tokenizer.json").read_text())
    assert fields == {
        "kind": "bytes",
        "vocab_size": 256,
        "separator": 0,
        "format_version": 1,
        "digest": BYTE_DIGEST,
    }


def test_byte_digest_is_golden() -> None:
    """The byte tokenizer's identity never changes: every checkpoint and export carries it.

    If this fails, checkpoints of earlier versions are refused: raise FORMAT_VERSION, keep reading
    the old one, and only then write the new digest here.
    """
    assert ByteTokenizer().digest() == BYTE_DIGEST


def test_name_loads_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bytes` names the built-in tokenizer, whereas a path of that name is a directory."""
    monkeypatch.chdir(tmp_path)
    assert tokenization.load("bytes") == ByteTokenizer()
    with pytest.raises(UserError, match="no tokenizer at bytes/tokenizer.json"):
        tokenization.load(Path("bytes"))


def test_every_flipped_bit_is_caught(tmp_path: Path) -> None:
    """No single damaged bit of tokenizer.json goes unnoticed."""
    ByteTokenizer().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    sound = path.read_bytes()
    accepted = []
    for bit in range(len(sound) * 8):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            tokenization.load(tmp_path)
            accepted.append(bit)
        except UserError as error:
            assert str(path) in str(error)
    assert accepted == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[1]", "it has no valid kind"),
        (b"{}", "it has no valid kind"),
        ({"vocab_size": "256"}, "it has no valid vocab_size"),
        ({"separator": False}, "it has no valid separator"),
        ({"digest": None}, "it has no valid digest"),
        ({"format_version": 2}, "has format version 2, this program reads 1"),
        ({"kind": "words"}, "kind 'words', known: bytes, sentencepiece"),
        ({"vocab_size": 512}, "says vocab_size 512 but the bytes tokenizer has 256"),
        ({"separator": 1}, "says separator 1 but the bytes tokenizer has 0"),
        ({"digest": "0" * 64}, "says digest '0000"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, content: bytes | dict, sentence: str) -> None:
    """Each way in which tokenizer.json can be wrong is told in one sentence that names the file."""
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(tmp_path)
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_bytes()) | content).encode()
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        tokenization.load(tmp_path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_unreadable_tokenizer_is_refused(tmp_path: Path) -> None:
    """A directory in the file's place is an error about that path, not a traceback."""
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        tokenization.load(tmp_path)
