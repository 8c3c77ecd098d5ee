"""Documents of unequal lengths, side by side."""

import numpy as np
import pytest

from int_lm.measure import evaluate
from tests.tiny_run import tiny_run


def documents_of(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(1, 256, length).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("skip", [None, 2], ids=["all of them", "but the first two tokens"])
def test_together_as_one_by_one(skip: int | None) -> None:
    """Lanes of several documents, lanes that end segments before others, and empty documents."""
    run = tiny_run()
    documents = documents_of(3 * evaluate.SEGMENT_LENGTH + 7, *[2, 90, 5, 17, 300] * 4)
    if skip is None:
        documents += documents_of(0, 1)
    places = None if skip is None else [skip] * len(documents)

    def scores(chosen: list[np.ndarray], firsts: list[int] | None) -> list[int]:
        read: list[int] = []
        found = evaluate.log2_likelihoods(
            run.recipe.model, run.weights, chosen, firsts=firsts, progress=read.append
        )
        assert sum(read) == sum(len(document) + 1 for document in chosen)
        return found.tolist()

    alone = [scores([document], places and places[:1])[0] for document in documents]
    assert scores(documents, places) == alone
    assert skip is not None or min(map(abs, alone)) > 0


def test_a_long_document_does_not_make_room_for_others() -> None:
    """Lanes take what they hold and less than a segment more, whatever the longest one takes."""
    documents = documents_of(100_000, *[10] * 1000)
    tokens, owners = evaluate._lay_out(documents, 256)
    needed = sum(len(document) + 1 for document in documents)
    assert sum(lane.size for lane in owners) < needed + 256 * evaluate.SEGMENT_LENGTH
    assert [lane.size for lane in tokens] == [lane.size + 1 for lane in owners]
    counts = np.bincount(np.concatenate([lane[lane >= 0] for lane in owners]))
    assert counts.tolist() == [len(document) + 1 for document in documents]


def test_lanes_are_left_behind_where_that_is_worth_a_compilation() -> None:
    """A count of lanes changes only for the segments that make up for compiling it."""
    worth = evaluate.WORTH_COMPILING
    assert evaluate._rows([8] * 68) == [68] * 8
    assert evaluate._rows([9] * 3 + [8] * 65) == [68] * 9
    assert evaluate._rows([worth + 3] + [3] * 9) == [10] * 3 + [1] * worth
    assert evaluate._rows([worth + 2] + [3] * 9) == [10] * (worth + 2)
    lengths = [100 + 3 * worth, *[100 + 2 * worth] * 3, *[100 + worth] * 12, *[100] * 100]
    expected = [116] * 100 + [16] * worth + [4] * worth + [1] * worth
    assert evaluate._rows(lengths) == expected
    assert evaluate._rows([5]) == [1] * 5


def test_lanes_are_as_few_as_take_no_longer_than_many() -> None:
    assert evaluate._lanes(documents_of(7), 256) == 1
    assert evaluate._lanes(documents_of(*[7] * 9), 256) == 9
    assert evaluate._lanes(documents_of(99, *[9] * 25), 256) == 4  # 100 and 250 tokens
    assert evaluate._lanes(documents_of(*[3] * 300), 256) == 150  # two of them one after another
    assert evaluate._lanes(documents_of(*[3] * 300), 48) == 43  # seven of them
