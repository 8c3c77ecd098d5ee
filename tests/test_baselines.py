"""Baselines: entropies and compressed sizes, against counting by hand and known sources."""

import bz2
import gzip
import lzma
import math
import random
from collections import Counter

import pytest
from hypothesis import given, strategies as st

import data.baselines
from data.baselines import baselines, entropies, told
from data.documents import Document


def documents(*texts: bytes) -> list[Document]:
    return [Document(str(index), text) for index, text in enumerate(texts)]


def counted(items: list) -> float:
    """Entropy in bits of a list's own counts, in plain Python."""
    counts = Counter(items)
    return -sum(n / len(items) * math.log2(n / len(items)) for n in counts.values())


@given(st.binary(min_size=1), st.integers(1, 5))
def test_entropies_are_the_counted_ones(text: bytes, chunk: int) -> None:
    """Both entropies equal a plain count, for any bytes and however the count is chunked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.baselines, "COUNTED_AT_ONCE", chunk)
        unigram, bigram = entropies(text)
    pairs = list(zip(text, text[1:], strict=False))
    expected = counted(pairs) - counted([a for a, _ in pairs]) if pairs else 0.0
    assert unigram == pytest.approx(counted(list(text)), abs=1e-9)
    assert bigram == pytest.approx(expected, abs=1e-9)
    assert 0.0 <= unigram <= 8.0 and 0.0 <= bigram <= 8.0


def test_known_sources() -> None:
    """Uniform bytes take 8 bits, an alternation 1 bit or none, a constant none."""
    assert entropies(bytes(range(256)) * 3)[0] == 8.0
    assert entropies(b"ab" * 500) == (1.0, 0.0)
    assert entropies(b"a") == (0.0, 0.0)
    assert str(entropies(b"aaaa")[0]) == "0.0"  # not -0.0, which a table would show


def test_all_by_name() -> None:
    """Documents are taken together, compressors at their strongest, all in bits per byte."""
    words = [b"state", b"union", b"of", b"the", b"\n"]
    text = b" ".join(random.Random(0).choices(words, k=4000))
    result = baselines(documents(text[:7000], text[7000:]))
    ppmd = ["ppmd"] if data.baselines.pyppmd else []
    assert list(result) == ["unigram", "bigram", "gzip", "xz", "zstd", *ppmd]
    assert (result["unigram"], result["bigram"]) == entropies(text)
    assert result["gzip"] * len(text) / 8 == len(gzip.compress(text, 9, mtime=0))
    assert result["xz"] * len(text) / 8 == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def test_ppmd_and_zstd_can_be_undone() -> None:
    """What is counted is a whole code: the decoder gives the text, told the same before."""
    pyppmd = pytest.importorskip("pyppmd")
    before, text = (b" ".join(random.Random(i).choices([b"a", b"bc", b"d"], k=900)) for i in (1, 2))
    settings = data.baselines.PPMD_ORDER, data.baselines.PPMD_MEMORY
    encoder = pyppmd.Ppmd7Encoder(*settings)
    code = encoder.encode(before + text) + encoder.flush()
    decoder = pyppmd.Ppmd7Decoder(*settings)
    assert decoder.decode(code, len(before + text)) == before + text
    alone = pyppmd.Ppmd7Encoder(*settings)
    both = len(code) - len(alone.encode(before) + alone.flush())
    assert told(documents(text), before)["ppmd_told"] * len(text) / 8 == both


def test_who_has_read_the_text_before_needs_less() -> None:
    """The same text told before costs next to nothing, other text does not help."""
    noise, other = random.Random(1).randbytes(50_000), random.Random(2).randbytes(50_000)
    for value in told(documents(noise), noise).values():
        assert value < 0.1
    for value in told(documents(noise), other).values():
        assert value > 7.9


def test_xz_sees_the_whole_text() -> None:
    """A repetition far back is found, whereas gzip's 32 kB window cannot."""
    noise = random.Random(1).randbytes(100_000)
    result = baselines(documents(noise, noise))
    assert result["xz"] < 4.1
    assert result["gzip"] > 7.9


@pytest.mark.parametrize("text", [b"a", b"\xff", bytes(10), bz2.compress(b"dense")])
def test_small_texts_have_baselines(text: bytes) -> None:
    """One byte is enough; headers then weigh more than the text, and nothing is infinite."""
    assert all(0 <= value < 1000 for value in baselines(documents(text)).values())


def test_no_text_is_our_own_mistake() -> None:
    """Callers hold at least one byte, so an empty list fails at once and not as a division."""
    with pytest.raises(AssertionError):
        baselines([])
