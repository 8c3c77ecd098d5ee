"""benchmarks/law.py: points, the law fitted to their rows, and what it says of a day."""

import json
import subprocess
from argparse import Namespace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, learning
from benchmarks.law import Law, best_of_day, fitted, of_rows, printed
from benchmarks.points import Point, settings_of
from int_lm.errors import UserError

LAW = Law(E=0.9, A=0.35, a=0.3, B=1.2, b=0.35)


def rows(law: Law = LAW) -> list[dict[str, Any]]:
    """Rows that follow the law exactly."""
    return [
        {
            **{"width": width, "layers": layers, "steps": steps, "tables": False},
            **{"learning_rate": 1.0, "weights": network + 512 * width, "network": network},
            **{"text_tokens": text, "operations": 8 * network},
            "processor_seconds": 8 * network * text / 50e9,
            "bits_per_byte": float(law.bits(network, text)),
        }
        for (width, layers), steps in product([(64, 1), (96, 2), (192, 3)], [500, 1000, 4000])
        for network, text in [(10 * layers * width * width, 4096 * steps)]
    ]


def test_a_point_has_rates_and_a_schedule_of_its_own() -> None:
    base = common.shipped("machine_text")
    alone = settings_of(base, Point.of("192x3x500"), [])
    assert (alone.model.width, alone.model.layers, alone.run.steps) == (192, 3, 500)
    assert (alone.model.direct, alone.model.cache) == ((), ())
    assert (alone.es.learning_rate, alone.es.learning_rate_halflife) == (0.25, 100)
    beside = settings_of(base, Point.of("64x1x500+"), ["es.learning_rate=0.3"])
    assert (beside.model.direct, beside.model.cache) == (base.model.direct, base.model.cache)
    assert beside.es.learning_rate == 0.3


@pytest.mark.parametrize("text", ["", "64x2", "64x2x", "64x2x10++", "ax2x10", "64x2x10x3", "0x2x9"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no point; write WIDTHxLAYERSxSTEPS"):
        Point.of(text)


def test_files_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Rows of another benchmark, a file in no directory, a picture that is there or is none."""
    out = tmp_path / "rows.jsonl"
    common.check_out(out)
    assert not out.exists()
    out.write_text('{"width": 1}\n[1]\n')
    common.check_out(out)
    assert len(out.read_text()) == 17
    with pytest.raises(UserError, match=r"rows.jsonl line 2: no row .* it has no width"):
        list(common.rows_of(out, "width"))
    with pytest.raises(UserError, match="cannot add rows to .*: No such file or directory"):
        common.check_out(tmp_path / "none" / "rows.jsonl")
    (tmp_path / "a.svg").touch()
    for name, sentence in (
        ("a.svg", "exists already; replace it with --overwrite"),
        ("a.bmp", "does not end with a format of pictures"),
        ("none/b.svg", "none is no directory"),
    ):
        with pytest.raises(UserError, match=sentence):
            common.check_picture(Namespace(picture=tmp_path / name, overwrite=False))


def test_a_command_that_refuses_is_a_mistake_of_its_caller(tmp_path: Path) -> None:
    """With exit code 2, as the command has; a failure of another kind is none."""
    for code, error in ((2, UserError), (1, SystemExit)):
        with pytest.raises(error, match=f"ended with {code}"):
            common.run(["-c", f"raise SystemExit({code})"], subprocess.DEVNULL)  # type: ignore[arg-type]


def test_a_curve_shorter_than_its_warm_up_is_told_of_it(capsys) -> None:
    """Once for a recipe, before anything is trained; and a change of no recipe is refused."""
    asked = Namespace(seed=[0, 1], recipe=["recurrent", "direct"], steps=[5, 10], set=[])
    assert [name for name, _ in learning.planned(asked)] == ["recurrent", "direct"] * 2
    said = capsys.readouterr().err
    assert said.startswith("recurrent: es.warmup 200 does not end before the last step, 10")
    assert said.count("\n") == 1
    for change, sentence in (("es.none=1", "no setting 'es.none'"), ("es.decay=[", "no value of")):
        with pytest.raises(UserError, match=sentence):
            learning.planned(Namespace(**vars(asked) | {"set": [change]}))


def test_the_law_falls_with_both() -> None:
    law = Law(E=1, A=2, a=1, B=4, b=2)
    assert law.bits(2e6, 2e6) == pytest.approx(1 + 2 / 2 + 4 / 4)


def test_the_law_is_found_in_rows_that_follow_it() -> None:
    found = fitted(rows())
    for key in ("E", "A", "a", "B", "b"):
        assert getattr(found, key) == pytest.approx(getattr(LAW, key), rel=0.02), key


def test_a_point_off_the_law_shows_as_its_error_and_other_widths_are_left_out() -> None:
    measured = rows()
    measured[4]["bits_per_byte"] += 0.2
    wide = {**measured[0], "width": 128, "bits_per_byte": 5.0}
    beside = {**measured[0], "tables": True, "bits_per_byte": 1.7}
    found = of_rows(common.shipped("machine_text"), [wide, *measured, beside], [64, 96, 192])
    errors = [point["of_fit_without_it"] for point in found["errors"]]
    assert len(errors) == 9 and errors[4] == pytest.approx(-0.2, abs=0.005)
    assert max(map(abs, [*errors[:4], *errors[5:]])) < 0.15
    assert pytest.approx(LAW.B, rel=1e-3) in found["left_out"]["B"]  # without that point
    lines = printed([wide, beside], found)
    assert lines[2].startswith("| 128 | 1 | 500 | 2.0 |") and "| 5.000 | 2." in lines[2]
    assert lines[3].startswith("| 64 | 1, tables and cache | 500 |") and "1.700 |  |" in lines[3]
    assert any(line.startswith("a day of one core at 50e9 operations/s: D ") for line in lines)


def test_too_few_points_are_no_law() -> None:
    with pytest.raises(UserError, match="needs 7 networks alone at least, not 6"):
        of_rows(common.shipped("machine_text"), [*rows()[:6], {**rows()[6], "tables": True}])


def test_a_day_goes_to_the_network_with_the_fewest_bits() -> None:
    shapes = [
        {"width": width, "layers": 1, "network": width**2, "operations": 8 * width**2}
        for width in (64, 256, 1024, 4096)
    ]
    days = [best_of_day(LAW, speed, shapes) for speed in (1e5, 1e9, 1e14)]
    widths = [day["width"] for day in days]
    assert widths == sorted(widths) and len(set(widths)) > 1  # more operations, a larger network
    for speed, day in zip((1e5, 1e9, 1e14), days, strict=True):
        text = {row["width"]: speed * 86400 / row["operations"] for row in shapes}
        bits = {row["width"]: LAW.bits(row["network"], text[row["width"]]) for row in shapes}
        assert day["bits"] == pytest.approx(min(bits.values()))
        assert day["bytes"] == pytest.approx(text[int(day["width"])])


@pytest.mark.slow
def test_points_are_trained_and_fitted(run_command, tmp_path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text("".join(f"to be or not to be, that is question {n}\n" for n in range(5000)))
    small = tmp_path / "small.yaml"
    small.write_text(
        "model: {ffn_multiple: 2, direct: [1], direct_bits: 8}\nes: {population: 16}\n"
        f"data: {{source: text, path: ['{text}'], document_bytes: 2048, shards: {tmp_path}/s}}\n"
    )
    points = "8x1x4", "8x1x8", "8x1x16", "16x1x4", "16x1x8", "16x1x16", "16x1x32", "8x1x4+"
    flags = "--config", str(small), "--out", str(out), "--bytes", "20000", "--point", *points
    done = run_command("benchmarks/law.py", *flags, timeout=900)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["network"] for row in found] == [640] * 3 + [2560] * 4 + [640]
    assert [row["text_tokens"] for row in found] == [512, 1024, 2048, 512, 1024, 2048, 4096, 512]
    assert all(0 < row["bits_per_byte"] < 8.1 for row in found)
    again = run_command("benchmarks/law.py", "--rows", str(out), "--config", str(small), "--json")
    assert again.returncode == 0, again.stderr
    fit = json.loads(again.stdout)
    assert (
        fit["rows"] == found and len(fit["errors"]) == 7 and fit["days"].keys() == {"core", "H100"}
    )
    neither = run_command("benchmarks/law.py")
    assert neither.returncode == 2 and "name points to train" in neither.stderr
