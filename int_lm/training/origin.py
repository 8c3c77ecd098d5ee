"""The weights that a new run starts from (`run.init_from`): those of another run or of an export.

The new run has its own configuration, text and schedules. It takes the weights of the network, and
those context tables that both models have. The counts of the tables, the members' states and the
update's memory begin anew, so the start depends on the weights alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from int_lm import config, export, run, runtime
from int_lm.config import Config
from int_lm.errors import UserError, require
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, params
from int_lm.model.params import Parameters


class Origin(NamedTuple):
    """The run or export that `run.init_from` names.

    Attributes:
      path: of the run directory or the export.
      model: the section `model` of its configuration, as plain values.
      data: the section `data`, likewise.
      tokenizer: identity of its tokenizer (kind, vocab_size, separator, digest).
      step: number of updates that the weights have had.
      weights: int8 NumPy arrays.
      weights_hash: hash of the weights, 16 hex digits.
      text_sha256: digest of the text that they were trained on; None if an export does not say.
    """

    path: Path
    model: dict[str, Any]
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    step: int
    weights: Parameters
    weights_hash: str
    text_sha256: str | None = None


def read(path: str | Path, *, say: Callable[[str], None] = lambda _: None) -> Origin:
    """Read the weights of a run's newest sound checkpoint, or of an export.

    Args:
      path: the run directory or the export.
      say: receives one sentence about every damaged checkpoint that is passed over.

    Raises:
      UserError: `path` holds neither a run nor an export, or it is damaged.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        opened = run.open_run(path, say=say)
        sections = config.to_dict(opened.config)
        model, data, tokenizer = sections["model"], sections["data"], opened.tokenizer
        step, weights, text_sha256 = opened.step, opened.weights, opened.text_sha256
    elif (path / runtime.CONFIG_FILE).is_file():
        found = export.load(path)
        model, data, tokenizer = (found.config[key] for key in ("model", "data", "tokenizer"))
        step, weights = found.config["step"], Parameters.of_paths(dict(found.weights))
        text_sha256 = found.config.get("text_sha256")
    else:
        raise UserError(
            f"{path} holds neither a run nor an export to start from; name the directory that "
            "training or an export wrote"
        )
    weights_hash = hashing.weights_hash(weights)
    return Origin(path, model, data, tokenizer, step, weights, weights_hash, text_sha256)


def check(origin: Origin, settings: Config, tokenizer: Mapping[str, Any]) -> None:
    """Refuse an origin whose weights would mean something else in the new run.

    Args:
      settings: the configuration of the new run.
      tokenizer: identity of the new run's tokenizer.

    Raises:
      UserError: names the first difference: tokenizer, architecture or hash of the weights.
    """
    for key, own in tokenizer.items():
        require(
            origin.tokenizer.get(key) == own,
            f"the tokenizer of {origin.path} has {key} {origin.tokenizer.get(key)!r}, this run's "
            f"has {own!r}; weights mean nothing with another tokenizer: use --data.tokenizer "
            f"{_tokenizer_of(origin)}",
        )
    architecture, expected = origin.model["architecture"], settings.model.architecture
    require(
        architecture == expected,
        f"{origin.path} has the architecture {architecture}, this run {expected}; add "
        f"--model.architecture {architecture}",
    )
    asked = settings.run.init_hash
    require(
        asked in ("", origin.weights_hash),
        f"the weights in {origin.path} have the hash {origin.weights_hash}, run.init_hash is "
        f"{asked}; name their directory with --run.init_from, or leave out run.init_hash",
    )


def require_named(settings: Config) -> None:
    """Refuse a configuration that needs the weights of another run and does not name them.

    For a run that is resumed, call this after `kept`, because its checkpoint may name them.

    Raises:
      UserError: names the field that needs `run.init_from`.
    """
    named = settings.run.init_from != ""
    require(
        named or settings.es.anchor == 0,
        "es.anchor pulls towards the weights of run.init_from, which is empty; name a run",
    )
    require(
        named or settings.run.init_hash == "",
        "run.init_hash is of the weights of run.init_from, which is empty; name their directory",
    )


def _tokenizer_of(origin: Origin) -> str:
    return "bytes" if origin.tokenizer["kind"] == "bytes" else str(origin.path / "tokenizer")


def weights_for(origin: Origin, recipe: Recipe) -> Parameters:
    """The initial weights of a run of `recipe`: int8 NumPy arrays.

    A context table that the origin does not have begins as in a run without an origin. A context
    table that `recipe` does not have is left out.

    Raises:
      UserError: names the first tensor whose shape differs, and the shapes.
    """
    specs, found = recipe.model.specs, origin.weights.by_path()
    fresh = params.initialise(specs, recipe.settings.run.seed).by_path()
    tables = f"{params.TABLES}/"
    own = [path for path in fresh if path in found or not path.startswith(tables)]
    others = [path for path in found if path not in fresh and not path.startswith(tables)]
    for path in [*own, *others]:
        shapes = [tuple(part[path].shape) if path in part else None for part in (found, fresh)]
        old, new = ("nothing" if shape is None else f"int8{list(shape)}" for shape in shapes)
        require(
            old == new,
            f"{origin.path} holds {old} at {path}, this run {new}; use the section model of its "
            f"configuration ({_sizes(origin.model)})",
        )
    return Parameters.of_paths({path: np.asarray(found.get(path, fresh[path])) for path in fresh})


def _sizes(model: Mapping[str, Any]) -> str:
    keys = ["width", "layers", "ffn_multiple"]
    keys += ["direct_bits"] if model.get("direct") or model.get("words") else []
    return " ".join(f"--model.{key} {model[key]}" for key in keys if key in model)


def description(origin: Origin, recipe: Recipe) -> str:
    """One line for the log: the origin of the weights, and which context tables differ."""
    text = f"starting from {origin.path} at step {origin.step}, weights {origin.weights_hash}"
    own, found = (set(part.tables) for part in (recipe.model.specs, origin.weights))
    for what, names in (("without its", found - own), ("with new", own - found)):
        if names:
            text += f", {what} context tables {', '.join(sorted(names))}"
    return text


def settled(settings: Config, origin: Origin | None) -> Config:
    """`settings` with the hash of the origin's weights; unchanged without an origin."""
    if origin is None:
        return settings
    changed = dataclasses.replace(settings.run, init_hash=origin.weights_hash)
    return dataclasses.replace(settings, run=changed)


def kept(host: Mapping[str, Any], settings: Config) -> Config:
    """The configuration of a run that is resumed, with the origin that its checkpoint names.

    Args:
      host: the checkpoint's `resume.host_data`, checked.
      settings: the configuration that was asked for.

    Raises:
      UserError: `settings` name an origin with other weights than the run started from.
    """
    saved = host["config"].get("run", {})
    path, found = saved.get("init_from", ""), saved.get("init_hash", "")
    asked, where = settings.run.init_from, settings.run.dir
    if asked not in ("", path):
        remedy = "leave out --run.init_from to go on, or start a new run with another --run.dir"
        require(
            path != "",
            f"{where} holds a run that started from no other's weights, but run.init_from is "
            f"{asked}; {remedy}",
        )
        other = read(asked).weights_hash
        require(
            other == found,
            f"the run in {where} started from {path} with the hash {found}, run.init_from {asked} "
            f"has {other}; {remedy}",
        )
    changed = dataclasses.replace(settings.run, init_from=asked or path, init_hash=found)
    return dataclasses.replace(settings, run=changed)
