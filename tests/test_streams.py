"""Streams: an order without state, in which every token of every source has its turn."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data import shards, streams
from data.documents import Document
from data.order import Permutation, key
from data.shards import Shard
from data.streams import Mixture, Place, Streams
from int_lm.errors import UserError
from tokenization import ByteTokenizer

BYTES = ByteTokenizer()
IDS = st.lists(st.integers(1, 255), max_size=90).map(lambda ids: np.array(ids, np.uint8))


def shard_of(documents: list[np.ndarray], first: int = 0) -> Shard:
    return shards.lay_out(documents, [], first=first, tokenizer=BYTES)


# Order


@settings(max_examples=50)
@given(st.integers(1, 700), st.binary(max_size=32))
def test_a_permutation_has_every_place_once(size: int, secret: bytes) -> None:
    """Of any size, one included, all of [0, size) and nothing else comes up, each once."""
    order = Permutation(size, secret)
    assert sorted(order[index] for index in range(size)) == list(range(size))


def test_orders_of_other_keys_are_unrelated() -> None:
    """Neighbours part, and two epochs agree in about one place of the whole."""
    first, second = (Permutation(5000, key(0, "text", epoch)) for epoch in (0, 1))
    agree = sum(first[index] == second[index] for index in range(5000))
    neighbours = sum(first[index + 1] - first[index] == 1 for index in range(4999))
    assert agree < 10 and neighbours < 10
    assert abs(np.corrcoef(range(5000), [first[index] for index in range(5000)])[0, 1]) < 0.06


def test_order_is_golden() -> None:
    """An order never changes: a resumed run must go on in the order it began in."""
    order = Permutation(1000, key(0, "stdlib", 0))
    assert [order[index] for index in range(6)] == GOLDEN_ORDER


def test_places_of_a_huge_order_need_no_table() -> None:
    """Of 10^18 places, which no memory holds, any can be asked for."""
    order = Permutation(10**18, key(7, "web", 3))
    found = {order[10**17 + index] for index in range(200)}
    assert len(found) == 200 and all(0 <= place < 10**18 for place in found)


# Packing


@settings(max_examples=60)
@given(st.lists(IDS, min_size=1, max_size=30), st.integers(2, 40))
def test_packing_keeps_every_token_once(documents: list[np.ndarray], window: int) -> None:
    """Windows are no longer than allowed, and places say where every token came from."""
    before = shards.WINDOW
    shards.WINDOW = window
    try:
        packed = shards.pack(documents, first=5, separator=0, dtype=np.dtype(np.uint8))
    finally:
        shards.WINDOW = before
    tokens, windows, places = packed["tokens"], packed["windows"], packed["places"]
    assert windows[0] == 0 and windows[-1] == len(tokens)
    assert (np.diff(windows) >= 1).all() and (np.diff(windows) <= window).all()
    rebuilt: list[dict[int, int]] = [{} for _ in documents]
    ends = [*places[1:, 0].tolist(), len(tokens)]
    for (start, document, offset), end in zip(places.tolist(), ends, strict=True):
        assert tokens[end - 1] == 0
        for index, token in enumerate(tokens[start : end - 1].tolist()):
            assert rebuilt[document - 5].setdefault(offset + index, token) == token
    for ids, found in zip(documents, rebuilt, strict=True):
        assert [found[index] for index in range(len(found))] == ids.tolist()
    cut = sum(max(1, -(-len(ids) // (window - 1))) for ids in documents)
    assert len(places) == cut and len(tokens) == sum(map(len, documents)) + cut


def test_documents_that_fit_are_not_cut_and_windows_are_full() -> None:
    """Texts of all sizes up to a window stay whole, and packing wastes under two percent."""
    generator = np.random.default_rng(0)
    sizes = np.minimum(generator.lognormal(8, 1.2, 3000).astype(int) + 1, shards.WINDOW - 1)
    documents = [np.ones(size, np.uint8) for size in sizes]
    packed = shards.pack(documents, first=0, separator=0, dtype=np.dtype(np.uint8))
    assert len(packed["places"]) == 3000
    windows = np.diff(packed["windows"])
    assert windows.sum() / (len(windows) * shards.WINDOW) > 0.98


# Streams


def epoch_of(built: Streams, steps: int) -> Counter[Place]:
    places = (place for step in range(steps) for row in built.locate(step) for place in row)
    return Counter(place for place in places if place is not None)


@settings(max_examples=30)
@given(st.lists(IDS, min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 7))
def test_streams_read_whole_windows(documents: list[np.ndarray], count: int, length: int) -> None:
    """Steps join; a stream that moves begins with a separator; every target is where it is said."""
    shard = shard_of(documents)
    total = len(shard.tokens)
    if total < count * length:
        with pytest.raises(UserError, match=f"has {total} tokens?, but {count} streams? of"):
            streams.over([("t", [shard])], BYTES, streams=count, segment_length=length, seed=1)
        return
    built = streams.over([("t", [shard])], BYTES, streams=count, segment_length=length, seed=1)
    steps = random.Random(0).sample(range(40), 40)  # any step may be asked for, in any order
    read = {step: built.at(step) for step in steps}
    for step in range(40):
        tokens_ST = read[step]
        assert tokens_ST.shape == (count, length + 1) and tokens_ST.dtype == np.uint8
        if step % built.steps_per_round == 0:
            assert (tokens_ST[:, 0] == 0).all()
        else:
            assert (tokens_ST[:, 0] == read[step - 1][:, -1]).all()
        for row, places in zip(tokens_ST[:, 1:].tolist(), built.locate(step), strict=True):
            for token, place in zip(row, places, strict=True):
                text = [] if place is None else [*documents[place.document].tolist(), 0]
                assert token == (0 if place is None else text[place.offset])
        assert built.text_bytes(step) == int((tokens_ST[:, 1:] != 0).sum())


def test_every_token_is_read_once_per_epoch() -> None:
    """Over two epochs, of two shards, every token and every separator has come up twice."""
    generator = np.random.default_rng(1)
    documents = [generator.integers(1, 255, size, np.uint8) for size in (400, 3, 77, 250, 1, 90)]
    pieces = [shard_of(documents[:4]), shard_of(documents[4:], first=4)]
    built = streams.over([("t", pieces)], BYTES, streams=3, segment_length=16, seed=5)
    units = built._parts[0].units
    rounds = units  # after so many rounds of 3 streams, 3 epochs
    counts = epoch_of(built, rounds * built.steps_per_round)
    assert set(counts.values()) == {3}
    assert len(counts) == sum(len(ids) + 1 for ids in documents)


def test_streams_of_a_step_read_different_text() -> None:
    """A small text is divided so that every stream has its own part of it."""
    built = streams.build(
        [Document("a", bytes(range(1, 241)))], BYTES, streams=8, segment_length=10, seed=0
    )
    first = [row[0] for row in built.locate(0)]
    assert len(set(first)) == 8 and built.steps_per_round == 3  # nine parts of 27 tokens


def test_an_order_depends_on_the_seed_only() -> None:
    """The same seed gives the same batches, in another process, too; another seed others."""
    code = (
        "from tests.test_streams import digest_of_batches; import sys;"
        "print(digest_of_batches(int(sys.argv[1])))"
    )
    root = Path(__file__).resolve().parent.parent
    again = subprocess.check_output(
        [sys.executable, "-c", code, "3"], text=True, cwd=root, timeout=600
    )
    assert again.strip() == digest_of_batches(3) != digest_of_batches(4)


def digest_of_batches(seed: int) -> str:
    """Of the batches of 50 steps of a small mixture."""
    import hashlib

    sources = [(name, [shard_of(texts)]) for name, texts in two_sources().items()]
    built = streams.over(
        sources, BYTES, streams=4, segment_length=8, seed=seed, phases=[(0, (2.0, 1.0))]
    )
    read = b"".join(built.at(step).tobytes() for step in range(50))
    return hashlib.sha256(read).hexdigest()


# Mixtures


def two_sources() -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(2)
    return {
        name: [generator.integers(1, 255, size, np.uint8) for size in sizes]
        for name, sizes in {"a": [300] * 9, "b": [40] * 30}.items()
    }


def test_shares_follow_the_weights() -> None:
    """Over a block the shares are exact to its resolution; no source is left out."""
    mixture = Mixture([(0, (3.0, 1.0, 0.0001))], 64, seed=0)
    read = mixture.before(streams.BLOCK // 64)
    assert read.sum() == streams.BLOCK and read.tolist() == [767, 256, 1]
    counts = Counter(source for number in range(16) for source, _ in mixture.round(number))
    assert [counts[0], counts[1], counts[2]] == read.tolist()


def test_a_source_of_weight_0_is_not_read() -> None:
    """From the beginning, or no longer; its windows go on where they were when it comes back."""
    phases = [(0, (3.0, 1.0, 0.0)), (16, (0.0, 1.0, 1.0)), (40, (1.0, 0.0, 0.0))]
    mixture = Mixture(phases, 64, seed=0)
    assert mixture.before(16).tolist() == [768, 256, 0]
    assert mixture.before(32).tolist() == [768, 768, 512]
    assert mixture.before(41).tolist() == [832, *mixture.before(40).tolist()[1:]]
    assert {source for source, _ in mixture.round(20)} == {1, 2}
    assert mixture.round(40)[0] == (0, 768)


def laid(
    weights: tuple[float, ...], *, streams_of: int = 4, then: object = None
) -> streams.Streams:
    """Streams over two sources of even windows, with `weights` or changed to `then` at round 10."""
    generator = np.random.default_rng(2)
    sources = [
        (name, [shard_of([generator.integers(1, 255, size, np.uint8) for _ in range(count)])])
        for name, size, count in (("a", 299, 30), ("b", 44, 50))
    ]
    phases: list[Any] = [(0, weights)] + ([(10, then)] if then else [])
    return streams.over(sources, BYTES, streams=streams_of, segment_length=8, seed=0, phases=phases)


def read_of(built: Streams, first: int, last: int) -> dict[str, float]:
    """The share of each source in the tokens of steps, counted one by one."""
    places = [
        place.source
        for step in range(first, last)
        for row in built.locate(step)
        for place in row
        if place
    ]
    counts = Counter(places)
    return {name: count / len(places) for name, count in counts.items()}


@pytest.mark.parametrize("weights", [(2.0, 1.0), (1.0, 9.0)])
def test_shares_are_those_of_the_tokens_read(weights: tuple[float, ...]) -> None:
    """Of any steps, as counted token by token, but for what windows differ in length."""
    built = laid(weights)
    first, last = 2 * built.steps_per_round, int(40.5 * built.steps_per_round)
    said = built.shares(last, first)
    assert said == pytest.approx(read_of(built, first, last), abs=0.03)
    assert sum(said.values()) == pytest.approx(1)


def test_shares_that_are_not_reached_are_said() -> None:
    """Those of few windows, those below one in 1024, and weights that come too late; no others."""
    built = laid((2.0, 1.0))
    enough = 256 * built.steps_per_round  # a block of windows
    assert built.shares_missed(enough) is None
    few = laid((100.0, 1.0)).shares_missed(built.steps_per_round)
    assert few is not None and "b 0.000% (asked 0.990%)" in few
    tiny = laid((1.0, 1e-5)).shares_missed(enough)
    assert tiny is not None and "b 0.098% (asked 0.001%)" in tiny
    changed = laid((2.0, 1.0), then=(1.0, 3.0))
    late = changed.shares_missed(10 * built.steps_per_round)
    assert late is not None and f"hold from step {10 * built.steps_per_round} on" in late
    assert changed.shares_missed(10 * built.steps_per_round + enough) is None
    assert laid((2.0, 0.0)).shares_missed(enough) is None
    assert laid((2.0, 0.0)).shares(enough) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("count", [3, 64])
def test_windows_of_a_mixture_follow_their_own_order(count: int) -> None:
    """Each source's windows are numbered 0, 1, 2, ... as they are read, across weight changes."""
    mixture = Mixture([(0, (1.0, 1.0)), (7, (9.0, 1.0)), (30, (1.0, 3.0))], count, seed=1)
    seen: list[list[int]] = [[], []]
    for number in range(60):
        assert mixture.before(number).tolist() == [len(seen[0]), len(seen[1])]
        for source, window in mixture.round(number):
            seen[source].append(window)
    assert all(windows == list(range(len(windows))) for windows in seen)


def test_a_mixture_reads_every_source_evenly() -> None:
    """Within each source no token is two epochs ahead of another."""
    sources = [(name, [shard_of(texts)]) for name, texts in two_sources().items()]
    built = streams.over(
        sources, BYTES, streams=4, segment_length=8, seed=0, phases=[(0, (2.0, 1.0))]
    )
    counts = epoch_of(built, 150 * built.steps_per_round)
    for name in ("a", "b"):
        of_source = [count for place, count in counts.items() if place.source == name]
        assert max(of_source) - min(of_source) <= 1 and min(of_source) >= 2
    windows = built.mixture.before(150)
    assert abs(windows[0] / windows.sum() - 2 / 3) < 0.02
    tokens = Counter({"a": 0, "b": 0})
    for place, count in counts.items():
        tokens[place.source] += count
    shares = built.shares(150 * built.steps_per_round)
    assert shares["a"] == pytest.approx(tokens["a"] / tokens.total(), abs=0.01)
    missed = built.shares_missed(150 * built.steps_per_round)
    assert missed is not None and "a 74.027% (asked 66.667%)" in missed  # its windows are longer


def test_streams_never_change() -> None:
    """What a caller does to a step's tokens cannot reach the text."""
    built = streams.build([Document("a", b"abcdefgh")], BYTES, streams=2, segment_length=4)
    first = built.at(0)
    expected = first.copy()
    first[:] = 7
    assert (built.at(0) == expected).all()


GOLDEN_ORDER = [891, 927, 798, 274, 87, 856]
