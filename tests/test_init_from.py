"""A new run that starts from the weights of another run, or of an export."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_command import rows, train_arguments, write_text

import train
from int_lm import config, export, run as run_module
from int_lm.config import Config, ModelConfig, RunConfig
from int_lm.errors import UserError
from int_lm.files import checkpoint
from int_lm.method import recipe
from int_lm.model import params
from int_lm.training import origin
from int_lm.training.origin import Origin

BYTES = {"kind": "bytes", "vocab_size": 256, "separator": 0, "digest": "d"}
SMALL = ModelConfig(width=8, layers=1)


def settings_of(model: ModelConfig = SMALL, **run: Any) -> Config:
    return Config(model=model, run=RunConfig(**run))


def origin_of(model: ModelConfig = SMALL, seed: int = 5) -> Origin:
    """Random weights of a model, as `origin.read` gives them."""
    settings = settings_of(model, seed=seed)
    weights = params.initialise(recipe.of(settings, 256).model.specs, seed)
    sections = config.to_dict(settings)
    return Origin(Path("first"), sections["model"], sections["data"], BYTES, 7, weights, "ab12")


def weights_for(start: Origin, model: ModelConfig) -> dict[str, np.ndarray]:
    return origin.weights_for(start, recipe.of(settings_of(model), 256)).by_path()


def test_tables_that_both_models_have_are_taken() -> None:
    """Those of the origin alone are left out, those of the new run alone begin at 0."""
    model = dataclasses.replace(SMALL, direct=(1, 2), direct_bits=8)
    start = origin_of(model)
    for table in start.weights.tables.values():
        table[:] = 3
    found = weights_for(start, dataclasses.replace(model, direct=(2, 3)))
    assert [int(found[f"direct/context_{k}"].sum()) for k in (2, 3)] == [3 * 256 * 256, 0]
    assert "direct/context_1" not in found
    for path, value in params.flatten(start.weights.network):
        np.testing.assert_array_equal(found[path], value)
    none = weights_for(start, SMALL)
    assert not any(path.startswith("direct") for path in none)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            dataclasses.replace(SMALL, width=16),
            r"first holds int8\[256, 8\] at embedding, this run int8\[256, 16\]; .*--model.width 8",
        ),
        (
            dataclasses.replace(SMALL, ffn_multiple=2),
            r"int8\[1, 32, 8\] at layers/channel_key, this run int8\[1, 16, 8\]; .*ffn_multiple 4",
        ),
    ],
)
def test_the_first_size_that_differs_is_named(model: ModelConfig, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        weights_for(origin_of(), model)


def test_tables_of_other_sizes_are_refused() -> None:
    model = dataclasses.replace(SMALL, direct=(2,), direct_bits=8)
    with pytest.raises(UserError, match=r"int8\[256, 256\] at direct/context_2, .*direct_bits 8"):
        weights_for(origin_of(model), dataclasses.replace(model, direct_bits=9))


def test_weights_that_mean_something_else_are_refused() -> None:
    """Another tokenizer, another architecture, or another hash than the configuration says."""
    start, settings = origin_of(), settings_of(init_from="first", init_hash="ab12")
    origin.check(start, settings, BYTES)
    with pytest.raises(UserError, match="has digest 'd', this run's has 'e'; .* bytes"):
        origin.check(start, settings, BYTES | {"digest": "e"})
    egg = dataclasses.replace(settings, model=dataclasses.replace(SMALL, architecture="egg"))
    with pytest.raises(UserError, match="architecture rwkv, this run egg"):
        origin.check(start, egg, BYTES)
    other = settings_of(init_from="first", init_hash="cd34")
    with pytest.raises(UserError, match=r"have the hash ab12, run.init_hash is cd34"):
        origin.check(start, other, BYTES)


def test_nothing_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds neither a run nor an export"):
        origin.read(tmp_path)


def test_a_resumed_run_keeps_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command may leave it out, or name the same weights elsewhere, but no others."""
    begun = config.to_dict(settings_of(init_from="first", init_hash="ab12"))
    same = {"config": begun}
    assert origin.kept(same, settings_of()).run.init_hash == "ab12"
    assert origin.kept(same, settings_of()).run.init_from == "first"
    assert origin.kept(same, settings_of(init_from="first")).run.init_hash == "ab12"
    elsewhere = {"moved": origin_of(), "other": origin_of()._replace(weights_hash="cd34")}
    monkeypatch.setattr(origin, "read", lambda path: elsewhere[path])
    assert origin.kept(same, settings_of(init_from="moved")).run.init_from == "moved"
    asked = settings_of(init_hash="ab12")  # as the run's own config.yaml has it
    origin.require_named(origin.kept(same, asked))
    with pytest.raises(UserError, match="with the hash ab12, run.init_from other has cd34"):
        origin.kept(same, settings_of(init_from="other"))
    with pytest.raises(UserError, match="started from no other's weights"):
        origin.kept({"config": config.to_dict(settings_of())}, settings_of(init_from="moved"))


@pytest.mark.parametrize(("field", "value"), [("es.anchor", "0.5"), ("run.init_hash", "ab12")])
def test_what_needs_other_weights_is_refused_without_them(
    tmp_path: Path, field: str, value: str
) -> None:
    """Before any text is prepared."""
    flags = [f"--{field}", value, "--run.dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=rf"{field} .* run.init_from, which is empty"):
        train.train(train.parse(["--data.path", str(tmp_path / "none"), *flags])[1])


def test_a_run_starts_from_a_run_or_from_its_export(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    """Both give the same weights at every step; what refuses other text says how to go on."""
    first, last_hash = whole[0], str(rows(whole[0])[-1]["weights_hash"])
    export.export_run(run_module.open_run(first), first, tmp_path / "export")
    text = write_text(tmp_path / "other.txt", seed=1)
    changes: dict[str, Any] = {"run_dot_steps": 2, "run_dot_sample_tokens": 0}

    def arguments(run: Path, start: Path | None, **more: Any) -> list[str]:
        named = {"run_dot_init_from": start} if start else {}
        return train_arguments(text, run, **changes, **named, **more)

    with pytest.raises(UserError, match=rf"\(--run.init_from {first}\) with another --run.dir"):
        train.train(train.parse(arguments(first, None))[1])
    for name, start in (("a", first), ("b", tmp_path / "export")):
        train.train(train.parse(arguments(tmp_path / name, start))[1])
        assert config.load(tmp_path / name / "config.yaml").run.init_hash == last_hash
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a")[0]["train_bits_per_byte"] < rows(first)[0]["train_bits_per_byte"]

    same = ["--run.init_hash", last_hash, "--run.steps", "3"]  # as config.yaml has it
    train.train(train.parse(arguments(tmp_path / "a", None) + same)[1])
    assert rows(tmp_path / "a")[-1]["step"] == 3
    assert checkpoint.read_host(tmp_path / "a/checkpoints")["config"]["run"]["init_from"]
    opened = run_module.open_run(tmp_path / "a")
    export.export_run(opened, tmp_path / "a", tmp_path / "card")
    assert f"other weights, hash `{last_hash}`" in (tmp_path / "card/README.md").read_text()
