"""The table of benchmarks/control.py: verdicts, and settings of OpenES."""

import pytest

from benchmarks.control import parsed, table, verdict
from int_lm.errors import UserError


@pytest.mark.parametrize(
    ("ours", "theirs", "floor", "expected"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 2.5], 0.0, "better"),
        ([1.0, 2.0, 2.5], [3.0, 4.0, 5.0], 0.0, "worse"),
        ([3.0, 4.0, 5.0], [1.0, 3.0, 6.0], 0.0, "equal"),  # our median within their range
        ([1.0, 3.0, 6.0], [3.1, 4.0, 5.0], 0.0, "equal"),  # theirs within ours
        ([-80.2, -80.0, -79.9], [-81.0, -80.4, -80.3], -100.0, "better"),
        ([-80.2, -80.0, -79.9], [-81.0, -80.4, -80.3], -500.0, "equal"),  # less than 1 % of 420
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0.0, "equal"),
    ],
)
def test_verdicts(ours: list[float], theirs: list[float], floor: float, expected: str) -> None:
    assert verdict(ours, theirs, floor) == expected
    mirrored = {"better": "worse", "worse": "better"}
    assert verdict(theirs, ours, floor) == mirrored.get(expected, "equal")


def test_a_table_has_medians_and_counts_verdicts() -> None:
    returns = {"A": ((1, 5, 9), (2, 3, 4)), "B": ((8, 8, 9), (2, 3, 4))}
    rows = [
        {"env": env, "method": method, "seed": seed, "return": found, "random": 0.5, "seconds": 2}
        for env, both in returns.items()
        for method, found_of in zip(("rank1", "openes"), both, strict=True)
        for seed, found in enumerate(found_of)
    ]
    lines = table(rows, ["rank1", "openes"])
    assert lines[1].split() == ["A", "0.5", "5", "2", "s", "3", "2", "s", "equal"]
    assert lines[2].split() == ["B", "0.5", "8", "2", "s", "3", "2", "s", "better"]
    assert lines[3] == "rank1 beside OpenES: 1 better, 1 equal, 0 worse"


def test_settings_of_openes_have_the_type_of_their_defaults() -> None:
    pytest.importorskip("optax")
    assert [parsed("std=1"), parsed("fitness=rank")] == [("std", 1.0), ("fitness", "rank")]
    for text, expected in (("sdt=1", "has no setting 'sdt'"), ("std=x", "'x' is no number")):
        with pytest.raises(UserError, match=expected):
            parsed(text)
