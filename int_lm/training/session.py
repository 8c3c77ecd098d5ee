"""A run from its start or its newest checkpoint to its end: what all kinds of training share.

`begin` makes or restores the state. `opened` opens the files and the console that the run writes
to. `parts` gives the arguments of a `Trainer`, which `trained` runs.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from int_lm import config, errors, lengths, resume, run
from int_lm.config import Config, command_line
from int_lm.files import checkpoint
from int_lm.files.checkpointer import Checkpointer
from int_lm.files.lock import Lock
from int_lm.method import evolve, placement, recipe as recipes
from int_lm.method.placement import Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import State
from int_lm.model import params
from int_lm.model.params import Parameters
from int_lm.native import build, dispatch
from int_lm.runtime import WEIGHTS_FILE
from int_lm.training import cautions, distributed, interrupt, origin, runlog, track
from int_lm.training.interrupt import StopFlag
from int_lm.training.metrics_file import MetricsFile
from int_lm.training.origin import Origin
from int_lm.training.outcome import Outcome
from int_lm.training.runlog import Console
from int_lm.training.text import Tokenizer
from int_lm.training.trainer import Trainer


class Begun(NamedTuple):
    """A run that can begin.

    Attributes:
      settings: the configuration; it holds the hash of the weights of `run.init_from`, if any.
      recipe: made of `settings`.
      state: weights, members' states and memory of the update, laid out over the devices.
      place: the devices; None for one device.
      first: the step at which the state was saved; 0 for a new run.
      host: host data of the checkpoint; None for a new run.
      start: whose weights a new run starts from; None for random weights and for a resumed run.
      nothing: why no step is left to train; None if steps are left. It has been printed.
    """

    settings: Config
    recipe: Recipe
    state: State
    place: Placement | None
    first: int
    host: Mapping[str, Any] | None
    start: Origin | None
    nothing: str | None

    @property
    def paths(self) -> run.Paths:
        """The paths in the run directory."""
        return run.Paths(Path(self.settings.run.dir))

    @property
    def weights(self) -> Parameters:
        """The model's weights."""
        return evolve.weights(self.recipe, self.state)


def begin(
    settings: Config,
    identity: Mapping[str, Any],
    text_sha256: str,
    start: Origin | None,
    recipe_of: Callable[[Config], Recipe] | None = None,
) -> Begun:
    """Read the newest sound checkpoint of the run, or make the state before its first step.

    Args:
      settings: the configuration.
      identity: of the tokenizer (kind, vocab_size, separator, digest).
      text_sha256: digest of the text that the run reads.
      start: whose weights a new run starts from; None for random weights.
      recipe_of: makes the recipe of the configuration; None for that of a language model.

    Raises:
      UserError: the run directory holds a run of another configuration, text or tokenizer, or the
        processes of the run see different ones.
    """
    paths = run.Paths(Path(settings.run.dir))
    if checkpoint.steps(paths.checkpoints):
        host = checkpoint.read_host(paths.checkpoints)
        resume.check_resumable(host, settings, identity, text_sha256)
        settings, start = origin.kept(host, settings), None
        if distributed.is_first() and (places := resume.other_places(host, settings)):
            errors.say(f"the same text and tokenizer at another place: {places}")
    else:
        errors.require(
            not (paths.root / WEIGHTS_FILE).exists(),
            f"{paths.root} holds an export, which training would destroy; choose another --run.dir",
        )
    settings = origin.settled(settings, start)
    origin.require_named(settings)
    recipe = recipe_of(settings) if recipe_of else recipes.of(settings, identity["vocab_size"])
    abstract = evolve.abstract(recipe).stored()
    resumed = checkpoint.restore(paths.checkpoints, abstract, say=errors.say)
    weights = origin.weights_for(start, recipe) if start else None
    state = State.of_stored(resumed.state) if resumed else evolve.initial(recipe, weights)
    first, host = (resumed.step, resumed.host) if resumed else (0, None)
    del resumed, weights  # `state` holds their values: free the NumPy arrays
    distributed.require_agreement("newest checkpoint", first)
    distributed.require_agreement("configuration", resume.shared_configuration(settings))
    distributed.require_agreement("text", text_sha256)
    nothing = resume.nothing_to_train(host, settings, first) if host else None
    warning = lengths.changed(host, settings) if host and not nothing else None
    if distributed.is_first():
        doubtful = [] if nothing else cautions.of(settings)
        for sentence in filter(None, (nothing, warning, *doubtful)):
            errors.say(sentence)
    if distributed.is_first() and not nothing and without_kernels():
        errors.say(
            "the kernels for this processor are not built, so that steps take longer; build them "
            f"once with a C++ compiler: {command_line.command('build-kernels')}"
        )
    count = params.count(recipe.model.specs.network)
    place = placement.choose(settings.distributed, settings.es, count)
    state = evolve.placed(recipe, state, place)
    return Begun(settings, recipe, state, place, first, host, start, nothing)


def without_kernels() -> bool:
    """Whether JAX computes on a processor that could have kernels and has none."""
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and build.possible() and dispatch.level() == "not built"


@dataclasses.dataclass(frozen=True)
class Session:
    """The open files, the console and the signal handling of a run.

    Attributes:
      stop: says whether a signal asked the run to stop or to save.
      signals: catches signals until it is closed. Close it when nothing is left to save.
      console: prints lines; it is quiet in processes that do not write.
      metrics: `metrics.jsonl`; None in processes that do not write.
      checkpointer: writes checkpoints; None in processes that do not write.
    """

    stop: StopFlag
    signals: contextlib.ExitStack
    console: Console
    metrics: MetricsFile | None
    checkpointer: Checkpointer | None


@contextlib.contextmanager
def opened(begun: Begun, tokenizer: Tokenizer | None, held: Lock | None) -> Iterator[Session]:
    """Open everything that the run writes to, and print what model is trained.

    Args:
      begun: the run.
      tokenizer: saved in the run directory by the process that writes; None for a policy.
      held: the lock on the run directory; None in processes that do not write.

    Raises:
      UserError: `metrics.jsonl` is damaged.
      OSError: the file system refused.
    """
    settings, paths, writes = begun.settings, begun.paths, distributed.is_first()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(contextlib.ExitStack())
        stop = signals.enter_context(interrupt.StopFlag(settings.run.saving_signals))
        checkpointer = metrics = None
        if writes:
            checkpointer = stack.enter_context(
                Checkpointer(paths.checkpoints, keep=settings.run.keep, lock=held)
            )
            metrics = stack.enter_context(MetricsFile(paths.metrics))
            checkpointer.discard_after(begun.first)
            metrics.truncate_after(begun.first if begun.host else -1)
            # with nothing to train, `settings` may ask for fewer steps than were trained
            if not begun.nothing or not paths.config.exists():
                run.write_config(paths, settings)
            if tokenizer is not None:
                tokenizer.save(paths.tokenizer)
        console = stack.enter_context(
            runlog.Console(steps=settings.run.steps, seconds=settings.run.seconds, quiet=not writes)
        )
        if metrics and settings.run.track:
            trackers = stack.enter_context(
                track.Trackers(settings.run.track, console.note, console.warn)
            )
            resumed = begun.first if begun.host else None
            trackers.start(paths.root, resumed, metrics.rows(), config.to_dict(settings))
            metrics.follow(trackers.add)
        specs = begun.recipe.model.specs
        count, tables = params.count(specs.network), params.count(specs.tables)
        besides = f", {tables:,} of context tables" if tables else ""
        console.note(f"model: {settings.model.architecture}, {count:,} int8 weights{besides}")
        if settings.es.pooled:
            console.note("a pool: train bpb is of the network alone, valid bpb of the whole")
        if begun.start:
            console.note(origin.description(begun.start, begun.recipe))
        if begun.place is not None:
            console.note(placement.description(begun.place))
        yield Session(stop, signals, console, metrics, checkpointer)


def say_resuming(begun: Begun, session: Session) -> None:
    """Print the step at which a resumed run goes on; nothing for a new run."""
    if begun.host:
        session.console.note(f"resuming {begun.paths.root} at step {begun.first}")


def parts(begun: Begun, session: Session) -> dict[str, Any]:
    """The arguments of a `Trainer`, except its text."""
    return {
        "settings": begun.settings,
        "recipe": begun.recipe,
        "console": session.console,
        "metrics": session.metrics,
        "checkpointer": session.checkpointer,
        "stop": session.stop,
        "state": begun.state,
        "place": begun.place,
        "step": begun.first,
        "saved": begun.first if begun.host else -1,
        "resumed": begun.host,
    }


def trained(trainer: Trainer, session: Session, finish: Callable[[], None]) -> bool:
    """Train; then call `finish`, unless a signal asked the run to stop.

    Returns:
      Whether the run reached its end, so that `finish` was called.
    """
    finished = trainer.loop()
    if not finished or distributed.most(session.stop.requested is not None):
        if session.checkpointer:
            session.checkpointer.close()
        session.console.note(f"saved step {trainer.step}; the same command goes on from there")
        return False
    if trainer.kept():  # the last state is saved: Ctrl-C may end the program at once
        session.signals.close()
        trainer.let_go()
    finish()
    return True


def outcome(
    trainer: Trainer, begun: Begun, session: Session, finish: Callable[[], Mapping[str, Any]]
) -> Outcome:
    """`trained`, with a `finish` that returns figures."""
    found: dict[str, Any] = {}
    ended = trained(trainer, session, lambda: found.update(finish()))
    figures = found if ended and distributed.is_first() else None
    return Outcome(figures, begun.nothing is not None)
