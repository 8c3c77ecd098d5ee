"""Tokenizers: no byte is lost, and what was saved is recognised or refused."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, strategies as st

import tokenization
from data import split
from int_lm.config import DataConfig
from int_lm.errors import UserError
from tokenization import ByteTokenizer, SentencePieceTokenizer, train

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
    assert [path.name for path in directory.iterdir()] == ["identity.json"]
    fields = json.loads((directory / "identity.json").read_text())
    assert fields == {
        "kind": "bytes",
        "vocab_size": 256,
        "separator": 0,
        "format_version": 1,
        "digest": BYTE_DIGEST,
    }


def test_the_file_of_before_is_read(tmp_path: Path, pieces: SentencePieceTokenizer) -> None:
    """Its name was another library's. Saving again leaves one file, and never another's."""
    for tokenizer in (ByteTokenizer(), pieces):
        directory = tmp_path / tokenizer.name
        tokenizer.save(directory)
        (directory / "identity.json").rename(directory / "tokenizer.json")
        assert tokenization.load(directory).digest() == tokenizer.digest()
        tokenizer.save(directory)
        assert not (directory / "tokenizer.json").exists()
        (directory / "tokenizer.json").write_text('{"version": "1.0"}')  # of the other library
        tokenizer.save(directory)
        assert tokenization.load(directory).digest() == tokenizer.digest()
        assert (directory / "tokenizer.json").exists()


def test_another_librarys_tokenizer_is_named_as_such(tmp_path: Path) -> None:
    """Not as a damaged file of ours; however large it is."""
    theirs = {"version": "1.0", "truncation": None, "added_tokens": [], "model": {"vocab": {}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(theirs) + " " * (1 << 21))
    with pytest.raises(UserError, match="of the library `tokenizers`, which int_lm does not read"):
        tokenization.load(tmp_path)


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
    with pytest.raises(UserError, match="no tokenizer at bytes/identity.json"):
        tokenization.load(Path("bytes"))


def test_every_flipped_bit_is_caught(tmp_path: Path) -> None:
    """No single damaged bit of identity.json goes unnoticed."""
    ByteTokenizer().save(tmp_path)
    path = tmp_path / "identity.json"
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
    """Each way in which identity.json can be wrong is told in one sentence that names the file."""
    path = tmp_path / "identity.json"
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
    (tmp_path / "identity.json").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        tokenization.load(tmp_path)


# SentencePiece

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "boil",
    "12",
    "potions",
]


def corpus_of(lines: int, seed: int = 0) -> bytes:
    """Lines of words, some of them not ASCII."""
    generator = random.Random(seed)
    words = [*WORDS, "naïve", "Zürich", "日本語", "éé"] + [
        "".join(generator.choices("aeioubdklmnrst", k=generator.randint(2, 8))) for _ in range(900)
    ]
    return "\n".join(
        " ".join(generator.choices(words, k=generator.randint(3, 12))) for _ in range(lines)
    ).encode()


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    """A small BPE tokenizer, trained as the command trains."""
    return train.train([corpus_of(2000)], vocab_size=1024, model_type="bpe")


def test_any_bytes_come_back(pieces: SentencePieceTokenizer) -> None:
    """10 000 random Unicode strings, random bytes, and the characters that models treat apart."""
    generator = random.Random(5)
    planes = [(1, 0x80), (0x80, 0x800), (0x2000, 0xD800), (0xE000, 0x10000), (0x10000, 0x10FFFF)]
    texts = [
        "".join(
            chr(generator.randrange(*generator.choice(planes)))
            for _ in range(generator.randrange(12))
        ).encode()
        for _ in range(10_000)
    ]
    texts += [generator.randbytes(generator.randrange(40)) for _ in range(1000)]
    texts += [
        text.encode()
        for text in (
            "", " ", "  two  spaces  ", "\u2581", " \u2581 a\u2581b", "\n\n\t\r\n x", "\0\x01",
            "<separator>", "<unk>", "<0x41>", "e\u0301 \u00e9", "\ufeffmark", "ﬁ ½ ①", "1234567",
        )
    ]  # fmt: skip
    white = "  \t\n\r\x0b\x0c\x85\u2028\u3000\u2581\u2585a"
    lengths = (generator.randrange(30) for _ in range(1000))
    texts += ["".join(generator.choices(white, k=length)).encode() for length in lengths]
    for text, ids in zip(texts, pieces.encode_all(texts, threads=2), strict=True):
        assert pieces.decode(ids) == text
        assert pieces.count_bytes(ids) == len(text)
        assert ids.dtype == np.uint16 and 0 not in ids
        assert sum(len(pieces.pieces[index]) for index in ids) == len(text)


def test_threads_change_no_id(pieces: SentencePieceTokenizer) -> None:
    """Ids are the model's alone: one text or many, one thread or four."""
    texts = corpus_of(300, seed=1).split(b"\n")
    expected = [pieces.encode(text).tolist() for text in texts]
    for threads in (1, 4):
        assert [ids.tolist() for ids in pieces.encode_all(texts, threads=threads)] == expected
    assert sum(map(len, expected)) < 0.6 * sum(map(len, texts))


def test_the_same_text_trains_the_same_model() -> None:
    """A tokenizer is a function of its text and settings."""
    first, second = (
        train.train([corpus_of(500)], vocab_size=700, model_type="bpe").digest() for _ in range(2)
    )
    assert first == second
    assert train.train([corpus_of(501)], vocab_size=700, model_type="bpe").digest() != first


def test_a_saved_model_loads(pieces: SentencePieceTokenizer, tmp_path: Path) -> None:
    """From its directory, or as a .model file that was brought along; a changed one is refused."""
    pieces.save(tmp_path)
    for source in (tmp_path, str(tmp_path), tmp_path / "tokenizer.model"):
        loaded = tokenization.load(source)
        assert loaded.digest() == pieces.digest() and loaded.vocab_size == 1024
    model = tmp_path / "tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\0\0")
    with pytest.raises(UserError, match="not a SentencePiece model|damaged or was edited"):
        tokenization.load(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match="cannot read the tokenizer .*tokenizer.model"):
        tokenization.load(tmp_path)


def foreign(**options: object) -> bytes:
    """A model trained in another way."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus_of(500).decode().split("\n")),
        model_writer=model,
        minloglevel=2,
        **({"vocab_size": 600, "model_type": "bpe", "byte_fallback": True} | options),
    )
    return model.getvalue()


def test_models_that_lose_text_are_refused() -> None:
    """No byte fallback; normalisation, which names the character it would change and where."""
    with pytest.raises(UserError, match="has no byte fallback"):
        SentencePieceTokenizer(foreign(byte_fallback=False, vocab_size=300), "m.model")
    usual = SentencePieceTokenizer(foreign(), "m.model")  # id 0 is <unk>, which stands for nothing
    with pytest.raises(UserError, match="m.model does not keep text: it changes .* U\\+"):
        usual.encode("plain then ﬁ".encode())
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePieceTokenizer(b"garbage" * 99, "m.model")


def test_vocabularies_that_do_not_fit_are_refused() -> None:
    """More pieces than the text has, or too few for its characters: one sentence with the size."""
    with pytest.raises(UserError, match="no bpe vocabulary of 60000 can be made of"):
        train.train([corpus_of(200)], vocab_size=60000, model_type="bpe")
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 900))).encode()
    with pytest.raises(UserError, match="512 has 254 ids .* 900 characters ask .*_coverage"):
        train.train([letters * 3], vocab_size=512, model_type="bpe", coverage=1)


LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))


def many_characters(seed: int) -> bytes:
    """40,000 characters of a script with 3000, some frequent and most rare; no spaces."""
    generator = random.Random(seed)
    weights = [1 / (1 + index) for index in range(len(LETTERS))]
    return "".join(generator.choices(LETTERS, weights, k=40_000)).encode()


@pytest.mark.parametrize(
    ("vocab_size", "coverage", "kept", "covered"),
    [(512, None, 127, (0.6, 0.7)), (1200, None, 471, (0.75, 0.9)), (3300, 0.9, 1114, (0.9, 0.901))],
)
def test_small_vocabularies_for_many_characters(
    vocab_size: int, coverage: float | None, kept: int, covered: tuple[float, float]
) -> None:
    """Half of the ids are for characters, or those that the coverage asks for; the rest are bytes,
    also a space and the character that SentencePiece reserves, which the text does not have."""
    text, said = many_characters(0), []
    tokenizer = train.train(
        [text], vocab_size=vocab_size, model_type="bpe", coverage=coverage, say=said.append
    )
    single = {piece.decode() for piece in tokenizer.pieces[258:] if len(piece) == 3}
    assert len(single) == kept and single < set(LETTERS)
    assert LETTERS[0] in single and LETTERS[-1] not in single
    share = sum(text.decode().count(letter) for letter in single) / 40_000
    assert covered[0] <= share <= covered[1] and f"{share:.4%} of the text" in said[0]
    for other in (many_characters(1), " a  b ▅\u2581 ".encode() + text[:300]):
        ids = tokenizer.encode(other)
        assert tokenizer.decode(ids) == other
    assert len(tokenizer.encode(text)) < 0.7 * len(text)


def test_text_around_a_reserved_character_is_trained_on() -> None:
    """SentencePiece would leave out all of what it is given at once with that character."""
    text = "abrakadabra simsalabim ▅\n".encode() * 300 + corpus_of(300)
    tokenizer = train.train([text], vocab_size=600, model_type="bpe")
    assert len(tokenizer.encode(b"abrakadabra simsalabim ")) <= 6
    assert tokenizer.decode(tokenizer.encode("▅".encode())) == "▅".encode()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_white_space_has_pieces(model_type: str) -> None:
    """An indentation is one token, and line ends are part of others; not a token each."""
    body = "\n".join(
        f"{' ' * 4 * (i % 4)}{WORDS[i % 9]} = {WORDS[i % 7]}({i % 5})" for i in range(999)
    )
    tabs = body.replace("    ", "\t")
    texts = [(body + tabs).encode(), corpus_of(300)]
    tokenizer = train.train(texts, vocab_size=600, model_type=model_type)
    for text in ("    ", " " * 8, " " * 12):
        assert len(tokenizer.encode(text.encode())) == 1
    assert any(b"\n" in piece and len(piece) > 1 for piece in tokenizer.pieces)
    assert any(b"\t\t" in piece for piece in tokenizer.pieces)
    for text in (body, tabs):
        ids = tokenizer.encode(text.encode())
        assert tokenizer.decode(ids) == text.encode()
        alone = sum(tokenizer.pieces[index] in (b" ", b"\t", b"\n") for index in ids)
        assert model_type == "unigram" or alone < 0.05 * len(ids)


def test_own_symbols_are_one_token() -> None:
    """Wherever the text has them, also beside others; and what cannot be a symbol is refused."""
    symbols = ["<user>", "a,b", "日本", "</s>"]
    train.check_symbols(symbols)
    tokenizer = train.train([corpus_of(500)], vocab_size=700, model_type="bpe", symbols=symbols)
    for symbol in symbols:
        index = tokenizer.pieces.index(symbol.encode())
        ids = tokenizer.encode(f"potions{symbol}x {symbol}".encode()).tolist()
        assert (
            ids.count(index) == 2 and tokenizer.decode(ids) == f"potions{symbol}x {symbol}".encode()
        )
    for wrong in ("", "a b", "\t", "<unk>", "<0x41>", "<separator>", "\u2581", "▅", "\udcff"):
        with pytest.raises(UserError, match="--symbols names"):
            train.check_symbols([wrong])
    with pytest.raises(UserError, match="twice"):
        train.check_symbols(["x", "x"])


def test_a_model_of_before_is_still_read(tmp_path: Path) -> None:
    """Trained line by line, without pieces of white space: the same ids as ever."""
    model = foreign(
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        split_digits=True, pad_id=0, pad_piece="<separator>", unk_id=1, bos_id=-1, eos_id=-1,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(model)
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("the quick brown fox\n  jumps", "naïve 日本語 12"):
        assert tokenizer.encode(text.encode()).tolist() == plain.encode(text, out_type=int)
        assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()


def test_the_commands_train_inspect_and_refuse(tmp_path: Path, run_command) -> None:
    """A tokenizer from files, its report on held-out text, and mistakes in one sentence."""
    for index in range(30):
        (tmp_path / f"{index}.txt").write_bytes(corpus_of(60, seed=index))
    out = tmp_path / "out"
    files = ["--data.path", *(str(tmp_path / f"{index}.txt") for index in range(30))]
    arguments = ["-m", "tokenization.train", *files, "--vocab_size"]
    done = run_command(*arguments, "900", "--out", out, "--sample_bytes", "60000")
    assert done.returncode == 0, done.stderr
    assert "900 pieces" in done.stdout and "bytes a token" in done.stdout
    kept = (out / "tokenizer.model").read_bytes()
    refused = run_command(*arguments, "800", "--out", out)
    assert refused.returncode == 2 and "already holds a tokenizer" in refused.stderr
    assert (out / "tokenizer.model").read_bytes() == kept
    shown = run_command("-m", "tokenization.inspect", "--tokenizer", out, *files, "--pieces")
    assert shown.returncode == 0, shown.stderr
    assert "came back whole" in shown.stdout and "'separator'" in shown.stdout
    for wrong, words in (("100", "512 to 65536"), ("65000", "no bpe vocabulary of 65000")):
        refused = run_command(*arguments, wrong, "--out", tmp_path / "no")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert words in refused.stderr or "512 and 65536" in refused.stderr
        assert not (tmp_path / "no").exists()


def test_samples_are_spread_and_bounded(tmp_path: Path) -> None:
    """The texts trained on are no more than asked for, none held out, whatever their order."""
    texts = [corpus_of(5, seed=index) for index in range(200)]
    for name, order in (("a", texts), ("b", texts[::-1])):
        (tmp_path / name).mkdir()
        for index, text in enumerate(order):
            (tmp_path / name / f"{index:03}.txt").write_bytes(text)
    first, second = (
        train.sample(DataConfig("text", (str(tmp_path / name),)), 10_000) for name in "ab"
    )
    assert first == second and 8_000 < sum(map(len, first)) <= 10_000
    assert not any(split.is_heldout(text, 0.1) for text in first)
