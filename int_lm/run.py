"""A run directory: its files, and how to read the model that it holds.

config.yaml      the resolved configuration
metrics.jsonl    one object per logged step
lock             held by the process that trains (see `files.lock`)
checkpoints/     one directory per step (see `files.checkpoint`)
tokenizer/       the tokenizer, as `tokenization` saved it
evaluation.json  the last full evaluation, with the hash of the weights it measured
trackers.json    the name of the run in trackers; tensorboard/ and wandb/ are theirs (see run.track)
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from int_lm import config, resume
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.files import atomic, checkpoint, names, untrusted
from int_lm.method import evolve, recipe
from int_lm.method.evolve import State
from int_lm.method.recipe import Recipe
from int_lm.model import hashing
from int_lm.model.params import Parameters

TEXT, TUNING, POLICY = "", "tuning", "control"  # entries that only such host data have
KINDS = {TEXT: "a run of train.py", TUNING: "a run of int_lm.tune", POLICY: "a policy"}


@dataclasses.dataclass(frozen=True)
class Paths:
    """The paths in a run directory.

    Attributes:
      root: the run directory.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The file of the resolved configuration."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The file of the logged metrics."""
        return self.root / names.METRICS

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer."""
        return self.root / "tokenizer"

    @property
    def evaluation(self) -> Path:
        """The file of the last full evaluation."""
        return self.root / "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """The model of a run at one step.

    Attributes:
      config: the configuration of the run.
      recipe: made of `config`.
      step: number of updates that the weights have had.
      weights: int8 NumPy arrays.
      tokenizer: identity of the tokenizer (kind, vocab_size, separator, digest).
      text_sha256: digest of the training tokens, the held-out tokens and their layout. A tuned run
        has the digest of the weights that it started from. None if these do not say.
    """

    config: Config
    recipe: Recipe
    step: int
    weights: Parameters
    tokenizer: dict[str, Any]
    text_sha256: str | None


def write_config(paths: Paths, settings: Config) -> None:
    """Write the resolved configuration into the run directory.

    Raises:
      OSError: the file system refused.
    """
    atomic.write(paths.config, config.to_yaml(settings).encode())


def open_run(
    root: str | Path, step: int | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Run:
    """Read the model that a run directory holds.

    Args:
      root: the run directory.
      step: which checkpoint; None for the newest one that is not damaged.
      say: receives one sentence about every damaged checkpoint that is passed over.

    Raises:
      UserError: `root` holds no run, no such checkpoint, or only damaged ones.
    """
    paths = Paths(Path(root))
    if not paths.checkpoints.is_dir():
        raise UserError(f"{root} holds no run; name the directory that train.py printed (--run)")
    host = checkpoint.read_host(paths.checkpoints, step)
    if POLICY in host:
        raise UserError(
            f"{root} holds a policy, which is no language model; the python -m int_lm.control "
            "command that trained it evaluates it once more"
        )
    settings = resume.settings_of(host, paths.checkpoints)
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
        weights=evolve.weights(found, State.of_stored(restored.state)),
        tokenizer=host["tokenizer"],
        text_sha256=text_of(host),
    )


def check_kind(host: Mapping[str, Any], kind: str, directory: str | Path) -> None:
    """Refuse to go on from a checkpoint that another command wrote.

    Args:
      host: its host data.
      kind: one of `KINDS`.
      directory: of the run.

    Raises:
      UserError: names what the directory holds.
    """
    found = next((name for name in (TUNING, POLICY) if name in host), TEXT)
    if found != kind:
        raise UserError(
            f"{directory} holds {KINDS[found]}, which this command cannot go on with; name a new "
            "directory with --run.dir"
        )


def text_of(host: Mapping[str, Any]) -> str | None:
    """`Run.text_sha256`, from a checkpoint's host data.

    The entry text_sha256 of a tuning is the digest of its prompts.
    """
    if TUNING not in host:
        return host["text_sha256"]
    tuning = host[TUNING]
    found = tuning.get("text_sha256") if isinstance(tuning, dict) else None
    return found if isinstance(found, str) else None


def write_evaluation(
    paths: Paths, step: int, weights: Parameters, figures: Mapping[str, Any]
) -> None:
    """Write the figures of a full evaluation to evaluation.json, for the model card.

    Args:
      paths: of the run.
      step: number of updates that the weights have had.
      weights: the weights that were evaluated; the file holds their hash.
      figures: JSON-able values.

    Raises:
      OSError: the file system refused.
    """
    content = {"step": step, "weights_hash": hashing.weights_hash(weights), **figures}
    atomic.write(paths.evaluation, (json.dumps(content, indent=2) + "\n").encode())


def is_evaluated(paths: Paths, weights: Parameters, text_sha256: str) -> bool:
    """Whether evaluation.json holds figures of these weights on the held-out part of this text."""
    figures = None
    with contextlib.suppress(OSError, untrusted.MalformedError):
        figures = untrusted.read_json(paths.evaluation, untrusted.METADATA_BYTES)
    if not isinstance(figures, dict) or not isinstance(figures.get("text"), dict):
        return False
    known = figures.get("weights_hash"), figures["text"].get("held_out_of")
    return known == (hashing.weights_hash(weights), text_sha256)


def folder_of(root: Path, settings: Config) -> Path:
    """The directory from which relative paths in the run's configuration start.

    It is found if `root` ends with the relative `run.dir` of the configuration. Otherwise the
    current directory is returned.
    """
    own, whole = Path(settings.run.dir), root.resolve()
    if (
        not own.is_absolute()
        and ".." not in own.parts
        and whole.parts[-len(own.parts) :] == own.parts
    ):
        return Path(*whole.parts[: -len(own.parts)])
    return Path()
