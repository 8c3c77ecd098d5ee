"""`int_lm.plot`: what is drawn of which runs, and the pictures."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest

from int_lm import plot
from int_lm.errors import UserError
from int_lm.plot import Panel, picture
from int_lm.plot.__main__ import main, parse

PNG = b"\x89PNG\r\n\x1a\n"


def write(root: Path, rows: list[dict[str, Any]]) -> Path:
    """A run directory with these rows of metrics."""
    root.mkdir(parents=True)
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def of_text(step: int) -> dict[str, Any]:
    """A row of training on text; every second one has an evaluation."""
    row = {"step": step, "seconds": step / 4, "tokens": 100 * step, "weights_hash": "ab"}
    row |= {"train_bits_per_byte": 8 / step, "changed": 0.5, "saturated": 0.0}
    if step % 20 == 0:
        row |= {"valid_bits_per_byte": 9 / step}
        row |= {"vote_agreement": {"head": 0.5, "blocks/mix": 0.75, "norm": None}}
        row |= {"activation_entropy": {"blocks/mix": [4.0, 5.0], "head": [6.0]}}
    return row


@pytest.fixture
def text_run(tmp_path: Path) -> Path:
    """Ten rows of training on text."""
    return write(tmp_path / "runs" / "a", [of_text(step) for step in range(10, 110, 10)])


@pytest.fixture
def tuned_run(tmp_path: Path) -> Path:
    """Three rows of tuning; the first one has no time yet."""
    rows = [{"step": 0, "heldout_reward": 0.25, "heldout_solved": 0.0}]
    rows += [
        {"step": step, "seconds": step, "tokens": 8 * step, "reward_mean": step, "solved": 0.5}
        for step in (1, 2)
    ]
    rows[-1] |= {"heldout_reward": 0.5, "heldout_solved": 0.25, "reward_best": 1.0}
    return write(tmp_path / "runs" / "tuned", rows)


def drawn(roots: list[Path], *metrics: str, x: str = "step", smooth: int = 1) -> Any:
    """(panels, {(label, metric): curve})."""
    runs = plot.read(roots)
    panels = plot.panels(runs, metrics)
    curves = plot.curves(runs, panels, x, smooth)
    assert len(curves) == len(panels)
    return panels, {(curve.label, curve.metric): curve for every in curves for curve in every}


def test_panels_are_those_that_the_runs_have(text_run: Path, tuned_run: Path) -> None:
    """A metric that nobody knows has one, too."""
    titles = [panel.title for panel in drawn([text_run])[0]]
    assert titles == [
        *("bits per byte", "agreement of votes", "entropy of activations (bits)"),
        "share of weights moved",
    ]
    assert [panel.title for panel in drawn([tuned_run])[0]] == ["reward", "share solved"]
    both = [panel.title for panel in drawn([text_run, tuned_run])[0]]
    assert both == ["bits per byte", "reward", "share solved", *titles[1:]]
    other = write(text_run.parent / "other", [of_text(10) | {"return_mean": 3.5}])
    assert drawn([other])[0][-1] == Panel("return_mean", ("return_mean",))


def test_values_are_those_of_the_rows(text_run: Path, tuned_run: Path) -> None:
    """In their order; nested ones are means over what is known."""
    _, curves = drawn([text_run, tuned_run], x="tokens")
    train, valid = (curves["a", f"{name}_bits_per_byte"] for name in ("train", "valid"))
    steps = list(range(10, 110, 10))
    assert train.x == [100 * step for step in steps] and train.y == [8 / step for step in steps]
    assert valid.x == [100 * step for step in steps[1::2]] and not valid.every and train.every
    assert set(curves["a", "vote_agreement"].y) == {0.625}
    assert set(curves["a", "activation_entropy"].y) == {5.0}
    assert curves["tuned", "reward_mean"].every
    assert (curves["tuned", "heldout_reward"].x, curves["tuned", "heldout_reward"].y) == (
        [0, 16],
        [0.25, 0.5],
    )
    _, parts = drawn([text_run], "vote_agreement/blocks", "activation_entropy/blocks/mix/1")
    assert set(parts["a", "vote_agreement/blocks"].y) == {0.75}
    assert set(parts["a", "activation_entropy/blocks/mix/1"].y) == {5.0}


def test_smoothing_is_the_mean_of_the_last_values(text_run: Path) -> None:
    """Of fewer at the beginning; evaluations are left as they are."""
    _, curves = drawn([text_run], smooth=3)
    train, valid = (curves["a", f"{name}_bits_per_byte"] for name in ("train", "valid"))
    assert train.smooth[0] == train.y[0]
    assert math.isclose(train.smooth[1], sum(train.y[:2]) / 2)
    assert math.isclose(train.smooth[-1], sum(train.y[-3:]) / 3)
    assert valid.smooth == valid.y


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    """By as few of their last directories as that takes."""
    paths = [tmp_path / name for name in ("x/a", "x/b", "y/a")]
    assert plot.labels(paths[:2]) == ["a", "b"]
    assert plot.labels(paths) == ["x/a", "x/b", "y/a"]
    assert plot.labels([paths[0], paths[0]]) == ["a", "a"]


def words(svg: bytes) -> set[str]:
    """The texts of a picture: matplotlib writes each as a comment above its outlines."""
    return set(re.findall(r"<!-- (.*?) -->", svg.decode()))


def test_pictures(text_run: Path, tuned_run: Path, tmp_path: Path, capsys) -> None:
    """As PNG and SVG, with names of runs and axes, and the same bytes for the same data."""
    pytest.importorskip("matplotlib")
    one, again, png = tmp_path / "one.svg", tmp_path / "again.svg", tmp_path / "one.PNG"
    runs = [str(text_run), str(tuned_run)]
    for out in (one, again, png):
        options = ["--x", "seconds", "--log", "x", "--smooth", "2", "--out", str(out)]
        main([*runs, *options, "--label", "first", "second"])
    assert png.read_bytes().startswith(PNG)
    assert one.read_bytes() == again.read_bytes()
    assert {"first, train", "first, valid", "second, held out reward"} < words(one.read_bytes())
    assert {"bits per byte", "reward", "seconds of training"} < words(one.read_bytes())
    assert {"5", "10", "20"} < words(one.read_bytes()) and "15" not in words(one.read_bytes())
    assert capsys.readouterr().out.startswith(f"wrote {one}: bits per byte, reward,")
    with pytest.raises(UserError, match="exists already; replace it with --overwrite"):
        main([str(text_run), "--out", str(again)])
    assert again.read_bytes() == one.read_bytes()
    main([str(text_run), "--out", str(again), "--overwrite"])
    assert {"a", "train", "valid", "steps"} < words(again.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.svg",
        "one.PNG",
        "one.svg",
        "runs",
    ]


def test_axes_are_logarithmic_where_asked(text_run: Path) -> None:
    """Those that are named, in every panel."""
    pytest.importorskip("matplotlib")
    runs = plot.read([text_run])
    panels = plot.panels(runs)
    figure = picture.draw(panels, plot.curves(runs, panels, "step", 1), "step", ["x"])
    scales = [(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes]
    assert scales == [("log", "linear")] * len(panels)
    picture.pyplot().close(figure)


def test_json_says_what_is_drawn(text_run: Path, tmp_path: Path, capsys) -> None:
    """One object, with the figures of every curve."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.svg"
    main([str(text_run), "--metric", "train_bits_per_byte", "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    [run] = found.pop("runs")
    assert found == {"out": str(out), "x": "step"}
    [curve] = run.pop("curves")
    assert run == {"run": str(text_run), "label": "a", "rows": 10, "last_step": 100}
    assert (curve["metric"], curve["points"]) == ("train_bits_per_byte", 10)
    assert (curve["first"], curve["last"], curve["most"]) == (0.8, 0.08, 0.8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["RUN", "--out", "a.jpg"],
            "a.jpg does not end with a format of pictures; use one of",
        ),
        (["RUN"], "the following arguments are required: --out"),
        (["nowhere", "--out", "a.svg"], "nowhere holds no run: there is no metrics.jsonl"),
        (["empty", "--out", "a.svg"], "empty/metrics.jsonl has no rows yet"),
        (["damaged", "--out", "a.svg"], "damaged/metrics.jsonl line 2 is not a row of metrics"),
        (["RUN", "--metric", "chanegd", "--out", "a.svg"], "no run has a metric chanegd; did you"),
        (["RUN", "--metric", "weights_hash", "--out", "a.svg"], "no run has a metric weights_hash"),
        (["RUN", "--smooth", "0", "--out", "a.svg"], "--smooth is 0, must be at least 1"),
        (
            ["RUN", "--label", "a", "b", "--out", "a.svg"],
            "--label names 2, but runs are 1; give",
        ),
        (["RUN", "--log", "z", "--out", "a.svg"], "argument --log: invalid choice: 'z'"),
        (["RUN", "--out", "no/a.svg"], "cannot write no/a.svg: No such file or directory"),
        (
            ["RUN", "--metric", "saturated", "--log", "y", "--out", "a.svg"],
            "--log y can show values above 0 only, and the panel of saturated has none",
        ),
    ],
)
def test_mistakes(
    arguments: list[str], sentence: str, text_run: Path, tmp_path: Path, monkeypatch
) -> None:
    """One sentence, and no picture."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty", [])
    damaged = write(tmp_path / "damaged", [of_text(10), of_text(20), of_text(30)])
    lines = (damaged / "metrics.jsonl").read_text().replace('"step": 20', '"stop": 20')
    (damaged / "metrics.jsonl").write_text(lines)
    with pytest.raises(UserError) as error:
        main([str(text_run) if word == "RUN" else word for word in arguments])
    assert str(error.value).startswith(sentence) or sentence in str(error.value)
    assert not list(tmp_path.glob("*.svg"))


def test_without_matplotlib(text_run: Path, monkeypatch) -> None:
    """The sentence names what installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'int-lm\[plot\]'"):
        main([str(text_run), "--out", "a.svg"])
    assert parse([str(text_run), "--out", "a.svg"], "int-lm plot").x == "step"


def test_matplotlib_speaks_of_errors_alone() -> None:
    """Not of where it keeps its fonts, such as in a home that cannot be written to."""
    pytest.importorskip("matplotlib")
    picture.pyplot()
    assert not logging.getLogger("matplotlib").isEnabledFor(logging.WARNING)
