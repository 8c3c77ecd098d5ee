"""A run directory: what lies in it, and how to open the model it holds.

config.yaml      the resolved configuration
metrics.jsonl    one object per logged step
lock             held by the process that trains (see `lock`)
checkpoints/     one directory per step (see `checkpoint`)
tokenizer/       the tokenizer, as `tokenization` saved it
evaluation.json  the last full evaluation, with the hash of the weights it measured
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from int_lm import config
from int_lm.arithmetic.noise import NOISE_VERSION
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.files import checkpoint, digest
from int_lm.method import evolve, recipe, schedules
from int_lm.method.evolve import State
from int_lm.method.recipe import Recipe
from int_lm.model import hashing
from int_lm.model.params import Parameters
from int_lm.runtime import VOCABULARY_MAX


@dataclasses.dataclass(frozen=True)
class Paths:
    """The parts of a run directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """The model of a run at one step.

    Attributes:
      recipe: of `config`. weights: int8 NumPy arrays.
      tokenizer: its identity (kind, vocab_size, separator, digest).
    """

    config: Config
    recipe: Recipe
    step: int
    weights: Parameters
    tokenizer: dict[str, Any]


def host_data(
    settings: Config,
    tokenizer: Mapping[str, Any],
    text_sha256: str,
    mixture: Sequence[Any],
    seconds: float,
) -> dict[str, Any]:
    """What a checkpoint keeps beside the arrays: all that a resumed run must agree with.

    The position in the text is the number of the step, with `mixture`, the rounds at which the
    weights of the sources changed.
    """
    return {
        "config": config.to_dict(settings),
        "tokenizer": dict(tokenizer),
        "text_sha256": text_sha256,
        "mixture": mixture,
        "noise_version": NOISE_VERSION,
        "seconds": seconds,
    }


def check_host(host: Mapping[str, Any], where: Path) -> None:
    """Refuse a checkpoint's host data that are not of the form which `host_data` gives them.

    Raises:
      UserError: names `where` and the entry.
    """
    sections, tokenizer, mixture = (host.get(key) for key in ("config", "tokenizer", "mixture"))
    vocab_size = tokenizer.get("vocab_size") if isinstance(tokenizer, dict) else None
    sound = {
        "config": isinstance(sections, dict)
        and all(isinstance(section, dict) for section in sections.values()),
        "tokenizer": type(vocab_size) is int and 0 < vocab_size <= VOCABULARY_MAX,
        "text_sha256": isinstance(host.get("text_sha256"), str),
        "mixture": _is_mixture(mixture),
        "noise_version": type(host.get("noise_version")) is int,
        "seconds": type(host.get("seconds")) in (int, float),
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise UserError(
                f"the checkpoint in {where} has no valid {key}; restore its files from a copy, or "
                "start again with another --run.dir"
            )


def _is_mixture(value: Any) -> bool:
    """Whether a JSON value is a list of phases, the first from round 0 on, of the same sources."""
    if not (isinstance(value, list) and value and all(map(_is_phase, value))):
        return False
    rounds = [first for first, _ in value]
    in_order = rounds[0] == 0 and all(a < b for a, b in zip(rounds[:-1], rounds[1:], strict=True))
    return in_order and len({len(weights) for _, weights in value}) == 1


def _is_phase(value: Any) -> bool:
    """Whether a JSON value is a phase of a mixture: [first round, [weight, ...]]."""
    return (
        isinstance(value, list)
        and [type(part) for part in value] == [int, list]
        and value[0] >= 0
        and len(value[1]) > 0
        and all(type(weight) in (int, float) and weight > 0 for weight in value[1])
    )


def settings_of(host: Mapping[str, Any], where: Path) -> Config:
    """The configuration that a checkpoint in `where` was written with; errors as of `check_host`.

    Raises:
      UserError: it is none that this program accepts.
    """
    check_host(host, where)
    settings = config.validate(config.from_dict(host["config"], f"the checkpoint in {where}"))
    sources, weights = len(config.sources_of(settings.data)), len(host["mixture"][0][1])
    if sources != weights:
        raise UserError(
            f"the checkpoint in {where} has {sources} sources but a mixture of {weights}; restore "
            "its files from a copy"
        )
    return settings


def check_resumable(
    host: Mapping[str, Any], settings: Config, tokenizer: Mapping[str, Any], text_sha256: str
) -> None:
    """Refuse to go on from a checkpoint that another model, text, tokenizer or noise made.

    Args:
      host: the checkpoint's `host_data`; the others describe the run that wants to go on.

    Raises:
      UserError: names what differs, with both values.
    """
    check_host(host, Path(settings.run.dir))
    checkpoint.check_config(host["config"], config.to_dict(settings))
    checkpoint.check_tokenizer(host["tokenizer"], tokenizer)
    for name, saved, current in (
        ("training text with sha256", host["text_sha256"], text_sha256),
        ("noise version", host["noise_version"], NOISE_VERSION),
    ):
        if saved != current:
            raise UserError(
                f"the checkpoint was written with {name} {saved}, now {current}; "
                "restore what changed or choose another --run.dir"
            )


def resumption_warning(host: Mapping[str, Any], settings: Config) -> str | None:
    """What is to be known of a run that may go on, but not as an undisturbed one; None for nothing.

    Args:
      host: `host_data` of its checkpoint, checked.
    """
    before, now = host["config"].get("run", {}).get("steps"), settings.run.steps
    if type(before) is not int:
        return None
    schedule = settings.es.schedule
    if schedules.decay(schedule, 1, 1.0, before) == schedules.decay(schedule, 1, 1.0, now):
        return None
    return (
        f"es.schedule {schedule} ends at run.steps, which was {before} and is {now}: rates go on "
        f"as those of a run of {now} steps, to other weights than such a run would have"
    )


def shared_configuration(settings: Config) -> dict[str, Any]:
    """What the processes of a run must have in common: all but where each finds its files.

    That these hold the same is for the digest of the text to say.
    """
    tree = config.to_dict(settings)
    files = {"path", "shards", "tokenizer"}
    own = {"distributed": set(tree["distributed"]), "run": {"dir"}, "data": files}
    for source in tree["data"]["mixture"]:
        del source["path"]
    return {
        section: {key: value for key, value in fields.items() if key not in own.get(section, ())}
        for section, fields in tree.items()
    }


def write_config(paths: Paths, settings: Config) -> None:
    """Keep the resolved configuration beside the run."""
    digest.write_atomically(paths.config, config.to_yaml(settings).encode())


def open_run(
    root: str | Path, step: int | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Run:
    """Read the model that a run directory holds.

    Args:
      root: the run directory.
      step: which checkpoint; the newest sound one if None.
      say: told one sentence about every damaged checkpoint that is passed over.

    Raises:
      UserError: no run, no checkpoint, or none that is sound.
    """
    paths = Paths(Path(root))
    if not paths.checkpoints.is_dir():
        raise UserError(f"{root} holds no run; name the directory that train.py printed (--run)")
    host = checkpoint.read_host(paths.checkpoints, step)
    settings = settings_of(host, paths.checkpoints)
    vocab_size = host["tokenizer"]["vocab_size"]
    found = recipe.of(settings, vocab_size)
    abstract = evolve.abstract(found).stored()
    restored = checkpoint.restore(paths.checkpoints, abstract, step=step, say=say)
    if restored is None:
        raise UserError(f"{root} holds no checkpoint yet; let train.py run until it has saved one")
    return Run(
        config=settings,
        recipe=found,
        step=restored.step,
        weights=State.of_stored(restored.state).weights,
        tokenizer=host["tokenizer"],
    )


def write_evaluation(
    paths: Paths, step: int, weights: Parameters, figures: Mapping[str, Any]
) -> None:
    """Keep the figures of a full held-out evaluation for the model card."""
    content = {"step": step, "weights_hash": hashing.weights_hash(weights), **figures}
    digest.write_atomically(paths.evaluation, (json.dumps(content, indent=2) + "\n").encode())
