"""The table of benchmarks/control.py: verdicts, and settings of OpenES."""

import pytest

from benchmarks.control import on_the_way, parsed, table, verdict
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


def test_who_is_ahead_on_the_way_is_said_of_every_quarter() -> None:
    """Also where both end with the same; an environment without OpenES has no row."""
    curves = {"rank1": (1.0, 4.0, 5.0, 9.0), "openes": (0.5, 4.0, 8.0, 9.0)}
    rows = [
        {"env": "A", "method": method, "curve": curve, "random": 0.0}
        for method, curve in curves.items()
    ]
    rows.append({"env": "B", "method": "rank1", "curve": curves["rank1"], "random": 0.0})
    head, row = on_the_way(rows, "rank1")
    assert [f"after {share} %" in head for share in (25, 50, 75, 100)] == [True] * 4
    assert row.split() == [
        *("A", "1", "/", "0.5", "better", "4", "/", "4", "equal"),
        *("5", "/", "8", "worse", "9", "/", "9", "equal"),
    ]
    assert on_the_way(rows[:1], "rank1") == on_the_way(rows, "openes") == []


def test_settings_of_openes_have_the_type_of_their_defaults() -> None:
    pytest.importorskip("optax")
    assert [parsed("std=1"), parsed("fitness=rank")] == [("std", 1.0), ("fitness", "rank")]
    for text, expected in (("sdt=1", "has no setting 'sdt'"), ("std=x", "'x' is no number")):
        with pytest.raises(UserError, match=expected):
            parsed(text)
