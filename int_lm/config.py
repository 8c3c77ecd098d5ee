"""Configuration: frozen dataclasses, read from YAML, overridden by `--section.field value`.

Every field is documented where it is declared; `--help` prints the same text. `validate` refuses,
before anything is compiled or written, every configuration whose integer sums could overflow.
Nothing here imports jax, so that `--help` and a wrong flag answer at once.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from int_lm import bounds, untrusted
from int_lm.errors import UserError
from int_lm.schema import (
    DIRECT_BITS as DIRECT_BITS,
    DIRECT_LENGTH_MAX as DIRECT_LENGTH_MAX,
    FITNESS_MAX as FITNESS_MAX,
    GAUSSIAN_MAX as GAUSSIAN_MAX,
    INT8_MAX as INT8_MAX,
    INT32_MAX as INT32_MAX,
    LEARNING_RATE_MAX as LEARNING_RATE_MAX,
    LEARNING_RATE_MIN as LEARNING_RATE_MIN,
    LOG2_FRACTION_BITS as LOG2_FRACTION_BITS,
    RADEMACHER_MAX as RADEMACHER_MAX,
    SEPARATOR as SEPARATOR,
    SPARE_BITS_MAX as SPARE_BITS_MAX,
    VOTE_CLIP_MAX as VOTE_CLIP_MAX,
    WORST_BITS_PER_TOKEN as WORST_BITS_PER_TOKEN,
    Config as Config,
    DataConfig as DataConfig,
    DistributedConfig as DistributedConfig,
    EsConfig as EsConfig,
    MixtureConfig as MixtureConfig,
    ModelConfig as ModelConfig,
    RunConfig as RunConfig,
    SourceConfig as SourceConfig,
)

SECTIONS: dict[str, type] = {field.name: field.type for field in dataclasses.fields(Config)}  # type: ignore[misc]

# How the names of files of records end, by `data.source`.
RECORD_SUFFIXES = {
    "json": tuple(
        f".{name}{packed}"
        for name in ("jsonl", "ndjson", "json")
        for packed in ("", ".gz", ".zst", ".bz2", ".xz")
    ),
    "parquet": (".parquet",),
}

# What may change between a run and its resumption without changing the meaning of its weights; of
# run.steps, on which some schedules depend, `run.resumption_warning` says so.
RESUMABLE_CHANGES = (
    frozenset({"es.chunk", "data.shards", "data.heldout_bytes", "data.skip_damaged"})
    | {f"run.{field.name}" for field in dataclasses.fields(RunConfig) if field.name != "seed"}
    | {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as plain values, ready for YAML and JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def sources_of(data: DataConfig) -> tuple[MixtureConfig, ...]:
    """The sources that `data` names: those of its mixture, or its own as the only one."""
    if data.mixture:
        return data.mixture
    own = {field.name: getattr(data, field.name) for field in dataclasses.fields(SourceConfig)}
    return (MixtureConfig(name=data.source, weight=1.0, **own),)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML text that `load` reads back to an equal value."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def nearest(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """'; did you mean X?' for the closest known name, else `otherwise`, else the known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if otherwise is None else otherwise


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names, or a UserError that says what was expected."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        expected = ", ".join(choices) + nearest(str(value), choices, otherwise="")
        _require(value in choices, f"{where} is {value!r}, expected one of {expected}")
        return value
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, dict), f"{where} is {value!r}, expected mappings")
        return _section(typing.cast(type, hint), value, where.split(" in ")[0], where)
    if typing.get_origin(hint) is tuple:
        mappings = dataclasses.is_dataclass(typing.get_args(hint)[0])
        items = [value] if isinstance(value, dict if mappings else str | int) else value
        _require(isinstance(items, list | tuple), f"{where} is {value!r}, expected a list")
        return tuple(_checked(item, typing.get_args(hint)[0], where) for item in items)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML 1.1 reads 1e-3, which has no point, as a string
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise UserError(f"{where} is {value!r}, expected a value of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, expected a finite number")
    return value


def _section(cls: type, values: dict[Any, Any], name: str, where: str) -> Any:
    """A dataclass of plain values."""
    hints = typing.get_type_hints(cls)
    if issubclass(cls, SourceConfig) and values.get("path"):
        values = {"source": source_by_name(values["path"], where), **values}
    checked = {}
    for key, value in values.items():
        suggestion = nearest(str(key), list(hints))
        _require(key in hints, f"unknown key {name}.{key} in {where}{suggestion}")
        checked[key] = _checked(value, hints[key], f"{name}.{key} in {where}")
    return cls(**checked)


def source_by_name(path: Any, where: str) -> str:
    """The source that the names of files mean where none is set; `text` for any other name."""
    names = [path] if isinstance(path, str) else path
    kinds = {
        next(
            (kind for kind, ends in RECORD_SUFFIXES.items() if name.lower().endswith(ends)), "text"
        )
        for name in names
        if isinstance(name, str)
    } or {"text"}
    _require(
        len(kinds) == 1,
        f"data.path in {where} names files of several formats ({', '.join(sorted(kinds))}); name "
        "one with data.source, or use data.mixture for several",
    )
    return kinds.pop()


def from_dict(tree: Any, where: str = "configuration") -> Config:
    """Build a `Config` from nested plain values.

    Args:
      tree: mapping of section names to mappings of field names to values; missing ones default.
      where: what to call the source in an error (a file name).

    Raises:
      UserError: unknown section or field (with the nearest known name), or a wrong type.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{where} must be a mapping of sections ({', '.join(SECTIONS)})")
    sections = {}
    for section, values in tree.items():
        suggestion = nearest(str(section), list(SECTIONS))
        _require(section in SECTIONS, f"unknown section {section!r} in {where}{suggestion}")
        if values is None:  # a section with no field under it
            values = {}
        if not isinstance(values, dict):
            raise UserError(f"section {section} in {where} must be a mapping of fields to values")
        sections[section] = _section(SECTIONS[section], values, section, where)
    return Config(**sections)


def load(path: str | Path) -> Config:
    """Read a configuration from a YAML file; fields it does not name keep their defaults.

    Raises:
      UserError: no such file, not YAML, or not a valid configuration.
    """
    try:
        text = untrusted.read_text(path, untrusted.YAML_BYTES)
    except (OSError, untrusted.MalformedError) as error:
        raise UserError(f"cannot read configuration {path}: {untrusted.reason(error)}") from error
    try:
        tree = untrusted.parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path} line {mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{place} is not valid YAML: {problem}") from error
    return from_dict({} if tree is None else tree, str(path))


def shift_for(n_in: int) -> int:
    """Right shift of a linear with `n_in` inputs: 4 (weights are q4) + round(log2(n_in) / 2)."""
    return 4 + round(math.log2(n_in) / 2)


def _validate_sources(data: DataConfig) -> None:
    """Refuse sources that name nothing, or two things."""
    own = any(getattr(data, key) != getattr(DataConfig(), key) for key in ("source", "path"))
    _require(
        not (data.mixture and own),
        "data.mixture and data.source or data.path name text; drop one of the two",
    )
    names = [source.name for source in data.mixture]
    _require(
        all(re.fullmatch(r"[\w.-]+", name) for name in names) and len(set(names)) == len(names),
        f"data.mixture has the names {names}; give every source another one, of letters and digits",
    )
    for source in sources_of(data):
        _require(source.weight > 0, f"weight {source.weight} in data.mixture must be above 0")
        if source.source == "stdlib":
            _require(
                len(source.path) == 0,
                "data.source is stdlib but data.path names files; drop one of the two",
            )
            continue
        what = "file" if source.source != "hub" else "dataset"
        _require(
            len(source.path) > 0,
            f"data.source is {source.source} but no {what} is named; add --data.path",
        )
        _require("" not in source.path, "data.path names an empty path; write . for this directory")
        _require(
            source.source != "hub" or len(source.path) == 1,
            f"data.source hub reads one dataset, data.path names {len(source.path)}; "
            "use data.mixture for several",
        )
    _require(
        not (data.window_bytes and data.mixture),
        "data.window_bytes works with one source; prepare the sources of data.mixture first",
    )
    _require(data.tokenizer != "", "data.tokenizer is empty; use bytes, a directory or a file")
    _require(data.shards != "", "data.shards is empty; name a directory such as shards")


def _validate_distributed(distributed: DistributedConfig) -> None:
    """Refuse processes that cannot find one another."""
    named = distributed.coordinator not in ("auto", "none")
    _require(
        not named or re.fullmatch(r".+:\d{1,5}", distributed.coordinator) is not None,
        f"distributed.coordinator is {distributed.coordinator!r}, must be host:port, auto or none",
    )
    given = distributed.processes > 0 and distributed.process_id >= 0
    _require(
        given if named else distributed.processes == 0 and distributed.process_id == -1,
        "distributed.coordinator, distributed.processes and distributed.process_id go together; "
        "give all three, or none of them",
    )
    _require(
        not named or distributed.process_id < distributed.processes,
        f"distributed.process_id is {distributed.process_id}, must be below distributed.processes "
        f"{distributed.processes}",
    )


def validate(config: Config) -> Config:
    """Return `config` if every size is possible and no integer sum can overflow.

    Raises:
      UserError: one sentence with the numbers that do not fit.
    """
    model, es, data, run = config.model, config.es, config.data, config.run
    plain = to_dict(config)
    for section in SECTIONS:
        for field in dataclasses.fields(SECTIONS[section]):
            value, least = getattr(getattr(config, section), field.name), field.metadata["least"]
            if isinstance(value, int | float):
                most = untrusted.INTEGER_MAX
                _require(value >= least, f"{section}.{field.name} is {value}, must be >= {least}")
                _require(value <= most, f"{section}.{field.name} is {value}, must be <= {most}")
            named = json.dumps(plain[section][field.name], ensure_ascii=False)
            _require(
                not re.search("[\ud800-\udfff]", named),
                f"{section}.{field.name} is {ascii(named)}, not UTF-8; use another name",
            )
    _require(es.population % 2 == 0, f"es.population is {es.population}, must be even (pairs)")
    readers = f"es.members_per_stream {es.members_per_stream}"
    _require(es.members_per_stream % 2 == 0, f"{readers} must be even (a pair reads one stream)")
    multiple = es.population % es.members_per_stream == 0
    _require(multiple, f"es.population {es.population} is not a multiple of {readers}")
    _require(
        not es.chunk or es.population % es.chunk == es.chunk % es.members_per_stream == 0,
        f"es.chunk {es.chunk} must divide es.population {es.population} and be a multiple of "
        f"{readers}",
    )
    for name in ("alpha", "alpha_halflife", "learning_rate", "learning_rate_halflife"):
        _require(getattr(es, name) > 0, f"es.{name} is {getattr(es, name)}, must be above 0")
    _require(
        es.update == "threshold" or es.learning_rate >= LEARNING_RATE_MIN,
        f"es.learning_rate is {es.learning_rate}, of which nothing would move; "
        f"make it at least {LEARNING_RATE_MIN}",
    )
    for name, most in (("learning_rate", LEARNING_RATE_MAX), ("vote_clip", VOTE_CLIP_MAX)):
        value = getattr(es, name)
        _require(value <= most, f"es.{name} is {value}, must be at most {most}")
    lengths = set(model.direct)
    _require(
        len(lengths) == len(model.direct) and lengths <= set(range(1, DIRECT_LENGTH_MAX + 1)),
        f"model.direct is {list(model.direct)}, must be different lengths from 1 to "
        f"{DIRECT_LENGTH_MAX}",
    )
    _require(
        model.direct_bits in DIRECT_BITS,
        f"model.direct_bits is {model.direct_bits}, must lie between {DIRECT_BITS[0]} and "
        f"{DIRECT_BITS[-1]}",
    )
    _require(
        0 < es.direct_rate <= INT8_MAX,
        f"es.direct_rate is {es.direct_rate}, must be above 0 and at most {INT8_MAX}",
    )
    _require(
        not model.direct or es.readout == "exact",
        "model.direct needs the readout's exact errors; add --es.readout exact",
    )
    _require(
        es.votes != "unit" or es.readout == "exact",
        "es.votes unit needs the readout's exact errors; add --es.readout exact",
    )
    _require(es.sigma_shift <= 12, f"es.sigma_shift is {es.sigma_shift}, must be at most 12")
    _require(0 < data.holdout < 1, f"data.holdout is {data.holdout}, must lie between 0 and 1")
    _validate_sources(data)
    _validate_distributed(config.distributed)
    _require(run.dir != "", "run.dir is empty; name a directory such as runs/first")
    _require(run.seed < 2**31, f"run.seed is {run.seed}, must lie between 0 and 2^31 - 1")

    for what, bound in bounds.sums(config):
        problem = f"{what} can reach {bound}, above the int32 limit {INT32_MAX}; make it smaller"
        _require(bound <= INT32_MAX, problem)
    return config
