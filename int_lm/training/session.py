"""A run from its start or its newest checkpoint to its end: what all kinds of training share.

`begin` finds the state to go on from, `opened` holds what the run writes to, and a `Trainer` is
made of the parts of both.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from int_lm import errors, resume, run
from int_lm.config import Config
from int_lm.files import checkpoint
from int_lm.files.checkpointer import Checkpointer
from int_lm.files.lock import Lock
from int_lm.method import evolve, placement, recipe as recipes
from int_lm.method.placement import Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import State
from int_lm.model import params
from int_lm.training import distributed, interrupt, origin, runlog
from int_lm.training.interrupt import StopFlag
from int_lm.training.origin import Origin
from int_lm.training.runlog import Console, MetricsFile
from int_lm.training.text import Tokenizer
from int_lm.training.trainer import Trainer


class Begun(NamedTuple):
    """A run that can begin.

    Attributes:
      settings: with the hash of the weights that it started from, if they are others'.
      state: laid out over the devices of `place`, None for one.
      first: step that the state was saved at, 0 for a new run.
      host: host data of the checkpoint; None for a new run.
      start: what a new run starts from; None for random weights, and for a resumed run.
      nothing: why no step is left, if none is; it has been said.
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
        return run.Paths(Path(self.settings.run.dir))


def begin(
    settings: Config, identity: Mapping[str, Any], text_sha256: str, start: Origin | None
) -> Begun:
    """Read the newest sound checkpoint of the run, or make the state before its first step.

    Args:
      identity: of the tokenizer.
      text_sha256: of what the run reads.
      start: what a new run starts from; None for random weights.

    Raises:
      UserError: the run directory holds a run of another configuration, text or tokenizer, or the
        processes see different things.
    """
    paths = run.Paths(Path(settings.run.dir))
    if checkpoint.steps(paths.checkpoints):
        host = checkpoint.read_host(paths.checkpoints)
        resume.check_resumable(host, settings, identity, text_sha256)
        settings, start = origin.kept(host, settings), None
        if distributed.is_first():
            if places := resume.other_places(host, settings):
                errors.say(f"the same text and tokenizer at another place: {places}")
            if warning := resume.resumption_warning(host, settings):
                errors.say(warning)
    settings = origin.settled(settings, start)
    origin.require_named(settings)
    recipe = recipes.of(settings, identity["vocab_size"])
    abstract = evolve.abstract(recipe).stored()
    resumed = checkpoint.restore(paths.checkpoints, abstract, say=errors.say)
    weights = origin.weights_for(start, recipe) if start else None
    state = State.of_stored(resumed.state) if resumed else evolve.initial(recipe, weights)
    first, host = (resumed.step, resumed.host) if resumed else (0, None)
    del resumed, weights  # what JAX makes of their arrays takes their place
    distributed.require_agreement("newest checkpoint", first)
    distributed.require_agreement("configuration", resume.shared_configuration(settings))
    distributed.require_agreement("text", text_sha256)
    nothing = resume.nothing_to_train(host, settings, first) if host else None
    if nothing and distributed.is_first():
        errors.say(nothing)
    count = params.count(recipe.model.specs.network)
    place = placement.choose(settings.distributed, settings.es, count)
    state = evolve.placed(recipe, state, place)
    return Begun(settings, recipe, state, place, first, host, start, nothing)


@dataclasses.dataclass(frozen=True)
class Session:
    """What a run watches and writes to. In processes that do not write, the last two are None.

    Attributes:
      signals: what catches signals; close it where nothing is left to save.
    """

    stop: StopFlag
    signals: contextlib.ExitStack
    console: Console
    metrics: MetricsFile | None
    checkpointer: Checkpointer | None


@contextlib.contextmanager
def opened(begun: Begun, tokenizer: Tokenizer, held: Lock | None) -> Iterator[Session]:
    """Open everything that the run writes to, and say what it is.

    Args:
      tokenizer: kept beside the run.
      held: the lock on the run directory, in the process that writes.
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
            if not begun.nothing:  # the length that the run has, not one that it is beyond
                run.write_config(paths, settings)
            tokenizer.save(paths.tokenizer)
        console = stack.enter_context(
            runlog.Console(steps=settings.run.steps, seconds=settings.run.seconds, quiet=not writes)
        )
        specs = begun.recipe.model.specs
        count, tables = params.count(specs.network), params.count(specs.tables)
        besides = f", {tables:,} of context tables" if tables else ""
        console.note(f"model: {settings.model.architecture}, {count:,} int8 weights{besides}")
        if begun.start:
            console.note(origin.description(begun.start, begun.recipe))
        if begun.place is not None:
            console.note(placement.description(begun.place))
        yield Session(stop, signals, console, metrics, checkpointer)


def say_resuming(begun: Begun, session: Session) -> None:
    """Say at which step the run goes on, if it does."""
    if begun.host:
        session.console.note(f"resuming {begun.paths.root} at step {begun.first}")


def parts(begun: Begun, session: Session) -> dict[str, Any]:
    """The arguments of a `Trainer` but its text."""
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
        "seconds_before": begun.host["seconds"] if begun.host else 0.0,
    }


def trained(trainer: Trainer, session: Session, finish: Callable[[], None]) -> bool:
    """Train; then call `finish` if the run has come to its end, and was not asked to stop.

    Returns:
      Whether it has.
    """
    finished = trainer.loop()
    if not finished or distributed.most(session.stop.requested is not None):
        if session.checkpointer:
            session.checkpointer.close()
        session.console.note(f"saved step {trainer.step}; the same command goes on from there")
        return False
    if trainer.kept():  # with nothing left to save, Ctrl-C ends the program at once
        session.signals.close()
    finish()
    return True
