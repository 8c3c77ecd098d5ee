"""Writing: stop strings, several texts, penalties, and texts that go on where they stopped."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tiny_run import export_tiny_run, tiny_run

from int_lm import runtime, sample
from int_lm.config import ModelConfig
from int_lm.errors import UserError
from int_lm.run import Run
from int_lm.sample import __main__ as command, saved, writing
from int_lm.sample.stops import until

MODEL = ModelConfig(
    architecture="rwkv", width=8, layers=1, ffn_multiple=1, direct=(1, 2), direct_bits=8
)
PENALISED = runtime.Sampler(temperature=1.0, seed=3, min_p=0.02, repetition_penalty=1.5)


@pytest.fixture(scope="module")
def run() -> Run:
    return tiny_run(model=MODEL)


@pytest.fixture(scope="module")
def directory(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(run, tmp_path_factory.mktemp("writing"))


# Stop strings


@given(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_the_first_stop(text: bytes, stops: list[bytes]) -> None:
    """Byte by byte, what is written is what stands before the first stop string to be complete."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    taken = text[: min(ends)] if ends else text
    expected = taken[: min((taken.find(s) for s in stops if s in taken), default=len(taken))]
    read: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        for value in text:
            read.append(bytes([value]))
            yield read[-1]

    assert b"".join(until(pieces(), stops)) == expected
    assert len(read) == len(taken)


# Draws


def naive_penalty(logit: int, units: int) -> int:
    return (logit << 8) // units if logit > 0 else (logit * units) >> 8


@given(st.lists(st.integers(-32767, 32767), min_size=3, max_size=9), st.floats(1, 100), st.data())
def test_the_penalty_is_what_its_docstring_says(
    logits: list[int], penalty: float, data: st.DataObject
) -> None:
    """Of tokens before, within the window, in Python's integers; never of the separator."""
    before = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=6))
    window = data.draw(st.integers(0, 4))
    sampler = runtime.Sampler(repetition_penalty=penalty, repetition_window=window)
    seen = set(before[len(before) - window :] if 0 < window < len(before) else before) - {0}
    units = round(penalty * 256)
    expected = [naive_penalty(x, units) if v in seen else x for v, x in enumerate(logits)]
    assert sampler.penalised(np.array(logits, np.int64), before).tolist() == expected


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    """1/2, 1/4, 1/8, 1/8: exactly half as likely stays, a little more does not."""
    logits = np.array([0, 16, 32, 0])
    for min_p, expected in ((0.0, {0, 1, 2, 3}), (0.25, {0, 1, 2, 3}), (0.26, {1, 2}), (1.0, {2})):
        sampler = runtime.Sampler(temperature=1.0, min_p=min_p)
        assert {sampler.choose(logits, number) for number in range(200)} == expected


@pytest.mark.parametrize(
    "settings",
    [{"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.9}, {"repetition_window": -1}],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    """Each with its name and its bounds."""
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} is .*, must be "):
        runtime.Sampler(**settings)


def test_run_and_export_write_the_same_with_penalties(run: Run, directory: Path) -> None:
    """JAX and NumPy draw the same ids; and the penalty changes them."""
    read, prompt = runtime.reader(runtime.load(directory)), b"prompt"
    ids = list(runtime.generate(read, prompt, PENALISED, tokens=60, stop=False))
    of_run = sample.generate(
        run.recipe.model, run.weights, prompt, PENALISED, tokens=60, stop=False
    )
    assert list(of_run) == ids
    plain = runtime.Sampler(temperature=1.0, seed=3, min_p=0.02)
    again = runtime.reader(runtime.load(directory))
    assert list(runtime.generate(again, prompt, plain, tokens=60, stop=False)) != ids


# Going on


def test_a_text_goes_on_as_if_it_had_not_stopped(run: Run, directory: Path, tmp_path: Path) -> None:
    """In two parts, the first by NumPy, the second by JAX, and the other way round."""
    model, prompt = runtime.load(directory), list(b"prompt")
    by_jax = lambda state: sample.reader(run.recipe.model, run.weights, state)  # noqa: E731
    by_numpy = lambda state: runtime.reader(model, state)  # noqa: E731
    whole = list(runtime.generate(runtime.reader(model), prompt, PENALISED, tokens=50, stop=False))
    for first, second in ((by_numpy, by_jax), (by_jax, by_numpy)):
        place, found = saved.beginning(model.initial_state(1)), []
        for reader, after, tokens in ((first, prompt, 20), (second, [], 30)):
            texts = writing.texts(place, after, reader, [PENALISED], tokens=tokens, stop=False)
            text = next(texts)
            found += list(text)
            saved.write(tmp_path / "state", text.stopped(), "0" * 16)
            place = saved.read(tmp_path / "state", model.initial_state(1), "0" * 16, 256)
        assert found == whole


def test_an_ended_text_goes_on_as_a_new_one() -> None:
    """Where the separator was drawn, it is what comes next, and nothing is held against it."""

    def step(state: dict, token: int) -> tuple[dict, np.ndarray]:
        return state, np.where(np.arange(4) == (token + 1) % 4, 500, 0)

    start = saved.beginning({})
    greedy = [runtime.Sampler(temperature=0)]
    texts = writing.texts(
        start, [1], lambda state: runtime.StateReader(step, state), greedy, tokens=9, stop=True
    )
    text = next(texts)
    assert list(text) == [2, 3]
    assert text.stopped() == saved.Saved({}, [], [0], 3)


def test_a_state_is_read_with_care(directory: Path, tmp_path: Path) -> None:
    """Damage, another model, other sizes: one sentence that names the file."""
    state = runtime.load(directory).initial_state(1)
    path = tmp_path / "state"
    saved.write(path, saved.Saved(state, [5], [5], 1), "a" * 16)
    assert saved.read(path, state, "a" * 16, 256).number == 1
    with pytest.raises(UserError, match="of the weights aaaa.*, these are bbbb"):
        saved.read(path, state, "b" * 16, 256)
    with pytest.raises(UserError, match="no sound state"):
        saved.read(path, state, "a" * 16, 5)  # an id outside of the vocabulary
    with pytest.raises(UserError, match="no sound state"):
        saved.read(path, {"cell": np.zeros((9, 1, 8))}, "a" * 16, 256)
    with pytest.raises(UserError, match="cannot read the state"):
        saved.read(tmp_path / "none", state, "a" * 16, 256)
    content = path.read_bytes()
    for length in (0, 7, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="no sound state"):
            saved.read(path, state, "a" * 16, 256)


# The command


def test_the_command_writes_several_texts(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """Each is that of its seed alone; the prompt comes from a file or standard input as well."""
    base = ["--export", str(directory), "--tokens", "12", "--no_stop"]
    (tmp_path / "prompt").write_text("ab")
    alone = []
    for seed in ("4", "5"):
        command.main([*base, "--prompt", "ab", "--seed", seed])
        alone.append(capsys.readouterr().out)
    command.main(
        [*base, "--prompt_file", str(tmp_path / "prompt"), "--seed", "4", "--samples", "2"]
    )
    assert capsys.readouterr().out == f"=== seed 4\n{alone[0]}=== seed 5\n{alone[1]}"

    class Input:
        buffer = io.BytesIO(b"ab")

    monkeypatch.setattr("sys.stdin", Input)
    command.main([*base, "--prompt_file", "-", "--seed", "5"])
    assert capsys.readouterr().out == alone[1]
    assert alone[0] != alone[1]


def test_the_command_refuses_what_cannot_be(directory: Path, tmp_path: Path) -> None:
    """Before the model is loaded."""
    for flags, message in (
        (["--samples", "0"], "--samples is 0"),
        (["--stop", ""], "--stop is empty"),
        (["--samples", "2", "--save_state", "x"], "--save_state saves one text"),
        (["--min_p", "2"], "--min_p is 2.0"),
        (["--prompt_file", str(tmp_path / "none")], "cannot read the prompt"),
        (["--state", str(tmp_path / "none")], "cannot read the state"),
    ):
        with pytest.raises(UserError, match=message):
            command.main(["--export", str(directory), *flags])
    assert json.loads((directory / "config.json").read_text())["step"] == 7
