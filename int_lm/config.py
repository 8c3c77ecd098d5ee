"""Configuration: frozen dataclasses, read from YAML, overridden by `--section.field value`.

Every field is documented where it is declared; `--help` prints the same text. `validate` refuses,
before anything is compiled or written, every configuration whose integer sums could overflow.
Nothing here imports jax, so that `--help` and a wrong flag answer at once.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from int_lm.errors import UserError

INT32_MAX = 2**31 - 1
INT8_MAX = 127  # -128 never occurs: abs(-128) wraps
GAUSSIAN_MAX = 69  # largest magnitude in tables.gaussian_quantiles (a test holds them together)
RADEMACHER_MAX = 16
FITNESS_MAX = {"sign": 1, "linear": 7}  # largest |fitness| of a pair
LOG2_FRACTION_BITS = 16  # a log-likelihood is an integer in units of 2^-16 bit
WORST_BITS_PER_TOKEN = 32  # (max logit - min logit) / 16 + log2 V <= 15.9 + 16


def described(default: Any, text: str, *, least: int = 0) -> Any:
    """A dataclass field with its documentation, which `--help` prints, and its least number."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: sizes and architecture."""

    architecture: Literal["egg"] = described("egg", "equations to use (see int_lm/models)")
    width: int = described(64, "D, channels of the residual stream and of the state", least=1)
    layers: int = described(2, "L, residual blocks", least=1)
    ffn_multiple: int = described(4, "F / D, feed-forward width as a multiple of D", least=1)


@dataclasses.dataclass(frozen=True)
class EsConfig:
    """Evolution strategy: population, perturbation, fitness, votes and update."""

    population: int = described(2048, "P, members per step; 2i and 2i+1 are a pair", least=2)
    segment_length: int = described(50, "T, tokens each member reads per step", least=1)
    members_per_stream: int = described(2, "members that read one stream (even)", least=2)
    rank: int = described(1, "R, rank of a matrix perturbation A B^T", least=1)
    sigma_shift: int = described(4, "perturbation scale sigma = 2^-sigma_shift (1.0 = 16 in q4)")
    noise: Literal["rademacher", "gaussian"] = described(
        "rademacher", "distribution of A and B: +-16, or int8 with standard deviation 16"
    )
    noise_reuse: int = described(1, "consecutive steps that share perturbations", least=1)
    votes: Literal["eggroll"] = described("eggroll", "estimator: sum of fitness x perturbation")
    readout: Literal["perturbed"] = described("perturbed", "how the readout learns")
    fitness: Literal["sign", "linear"] = described(
        "sign", "of a pair's score difference: its sign, or clipped linear in 15 levels"
    )
    update: Literal["threshold"] = described(
        "threshold", "weights whose |vote| passes a threshold move by one unit (1/16)"
    )
    alpha: float = described(
        1.0,
        "expected share of weights that pass the threshold if votes were pure noise: constant "
        "below 1, from 1 up decaying as min(1, alpha / (1 + step / alpha_halflife))",
    )
    alpha_halflife: float = described(67.0, "steps after which a decaying alpha has halved")
    chunk: int = described(0, "members evaluated at once, to bound memory (0: all; same bits)")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text: where it comes from and what is held out."""

    source: Literal["stdlib", "text"] = described(
        "stdlib", "stdlib: the Python standard library's own sources; text: the files of data.path"
    )
    path: tuple[str, ...] = described((), "text files or directories; implies --data.source text")
    tokenizer: Literal["bytes"] = described("bytes", "bytes: one token per byte, 0 between texts")
    holdout: float = described(0.1, "share of the documents held out, chosen by their hash")
    document_bytes: int = described(
        16384, "longer text files are cut into documents of this size at line ends (0: never)"
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run: directory, length, intervals and seed."""

    dir: str = described("runs/default", "run directory; a checkpoint found in it is resumed")
    steps: int = described(1000, "stop after this many steps")
    seconds: float = described(0.0, "stop after this many seconds of training (0: no limit)")
    seed: int = described(0, "seed of initial weights, perturbations and samples")
    log_every: int = described(10, "steps between lines of the log", least=1)
    eval_every: int = described(100, "steps between evaluations on held-out text (0: only at end)")
    eval_bytes: int = described(131072, "held-out bytes used while training (0: all)")
    checkpoint_every: int = described(100, "steps between checkpoints (0: only at the end)")
    keep: int = described(2, "newest checkpoints kept, beside the best one", least=1)
    sample_prompt: str = described("", "prompt of the sample shown at every evaluation")
    sample_tokens: int = described(160, "tokens of that sample (0: no sample)")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    es: EsConfig = dataclasses.field(default_factory=EsConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)


SECTIONS: dict[str, type] = {field.name: field.type for field in dataclasses.fields(Config)}  # type: ignore[misc]

# What may change between a run and its resumption without changing the meaning of its weights.
RESUMABLE_CHANGES = frozenset({"es.chunk"}) | {
    f"run.{field.name}" for field in dataclasses.fields(RunConfig) if field.name != "seed"
}


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as plain values, ready for YAML and JSON."""
    return {
        section: {key: list(x) if isinstance(x, tuple) else x for key, x in fields.items()}
        for section, fields in dataclasses.asdict(config).items()
    }


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
    if typing.get_origin(hint) is tuple:
        items = [value] if isinstance(value, str | int) else value
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
        hints = typing.get_type_hints(SECTIONS[section])
        if values is None:  # a section with no field under it
            values = {}
        if not isinstance(values, dict):
            raise UserError(f"section {section} in {where} must be a mapping of fields to values")
        if section == "data" and values.get("path"):
            values = {"source": "text", **values}
        checked = {}
        for key, value in values.items():
            suggestion = nearest(str(key), list(hints))
            _require(key in hints, f"unknown key {section}.{key} in {where}{suggestion}")
            checked[key] = _checked(value, hints[key], f"{section}.{key} in {where}")
        sections[section] = SECTIONS[section](**checked)
    return Config(**sections)


def load(path: str | Path) -> Config:
    """Read a configuration from a YAML file; fields it does not name keep their defaults.

    Raises:
      UserError: no such file, not YAML, or not a valid configuration.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read configuration {path}: {reason}") from error
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{path}{line} is not valid YAML: {problem}") from error
    return from_dict({} if tree is None else tree, str(path))


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are `UserError`s: one sentence, nearest flag named.

    Flags cannot be abbreviated: a script that did so would break when a new flag arrives.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (see --help)")

    def parse_strict(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv`; an unknown flag raises `UserError` with the nearest known one."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = list(self._option_string_actions)
            name = unknown[0].split("=")[0]
            raise UserError(f"unknown argument {name}{nearest(name, flags, ' (see --help)')}")
        return known


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one `--section.field` flag for every field of `Config`."""
    parser.add_argument("--config", metavar="FILE", help="YAML file; flags override its values")
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            options: dict[str, Any] = {"type": hint}
            if typing.get_origin(hint) is Literal:
                options = {"choices": typing.get_args(hint)}
            elif typing.get_origin(hint) is tuple:
                options = {"type": typing.get_args(hint)[0], "nargs": "+"}
            shown = "" if field.default in ((), "") else f" (default: {field.default})"
            group.add_argument(
                f"--{section}.{field.name}",
                default=argparse.SUPPRESS,
                metavar=field.name.upper() if "choices" not in options else None,
                help=field.metadata["help"].replace("%", "%%") + shown,
                **options,
            )


def from_arguments(arguments: argparse.Namespace) -> Config:
    """The configuration that `--config` and the flags describe, not yet validated."""
    base = to_dict(load(arguments.config) if arguments.config else Config())
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    if "data.path" in flags:
        flags = {"data.source": "text", **flags}
    elif flags.get("data.source") == "stdlib":
        flags["data.path"] = ()  # a path of the file would contradict the flag
    for name, value in flags.items():
        section, key = name.split(".")
        base[section][key] = value
    return from_dict(base, "the command line")


def shift_for(n_in: int) -> int:
    """Right shift of a linear with `n_in` inputs: 4 (weights are q4) + round(log2(n_in) / 2)."""
    return 4 + round(math.log2(n_in) / 2)


def noise_max(es: EsConfig) -> int:
    """Largest magnitude an entry of A or B can have."""
    return RADEMACHER_MAX if es.noise == "rademacher" else GAUSSIAN_MAX


def validate(config: Config) -> Config:
    """Return `config` if every size is possible and no integer sum can overflow.

    Raises:
      UserError: one sentence with the numbers that do not fit.
    """
    model, es, data, run = config.model, config.es, config.data, config.run
    for section in SECTIONS:
        for field in dataclasses.fields(SECTIONS[section]):
            value, least = getattr(getattr(config, section), field.name), field.metadata["least"]
            if isinstance(value, int | float):
                _require(value >= least, f"{section}.{field.name} is {value}, must be >= {least}")
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
    _require(es.alpha > 0, f"es.alpha is {es.alpha}, must be above 0")
    _require(es.alpha_halflife > 0, f"es.alpha_halflife is {es.alpha_halflife}, must be above 0")
    _require(es.sigma_shift <= 12, f"es.sigma_shift is {es.sigma_shift}, must be at most 12")
    _require(0 < data.holdout < 1, f"data.holdout is {data.holdout}, must lie between 0 and 1")
    _require(
        data.source != "text" or len(data.path) > 0,
        "data.source is text but no file is named; add --data.path FILE",
    )
    _require(
        data.source != "stdlib" or len(data.path) == 0,
        "data.source is stdlib but data.path names files; drop one of the two",
    )
    _require("" not in data.path, "data.path names an empty path; write . for this directory")
    _require(run.dir != "", "run.dir is empty; name a directory such as runs/first")
    _require(run.seed < 2**31, f"run.seed is {run.seed}, must lie between 0 and 2^31 - 1")

    widest, amplitude = model.width * model.ffn_multiple, noise_max(es)
    entry = es.rank * amplitude * amplitude  # the largest entry of A B^T
    votes = es.population // 2 * entry * FITNESS_MAX[es.fitness]
    score = es.segment_length * WORST_BITS_PER_TOKEN * 2**LOG2_FRACTION_BITS
    at_rank = f"at rank {es.rank} ({es.noise}"
    for what, bound in (
        (f"a dot over {widest} inputs", widest * INT8_MAX * INT8_MAX * 2),
        (f"the perturbation of {widest} inputs {at_rank})", widest * INT8_MAX * entry),
        (f"the votes of {es.population} members {at_rank}, {es.fitness})", votes),
        (f"the score of {es.segment_length} tokens", score),
    ):
        problem = f"{what} can reach {bound}, above the int32 limit {INT32_MAX}; make it smaller"
        _require(bound <= INT32_MAX, problem)
    return config
