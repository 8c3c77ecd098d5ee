"""Pretrain an int8 language model with forward passes only.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --data.path books/ --run.dir runs/books

    python train.py --config configs/quickstart.yaml --plan        what it will cost; trains nothing

A run directory that holds a checkpoint is resumed, bit for bit. SIGINT and SIGTERM save and stop
at the next step; a second one stops at once.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from int_lm import errors
from int_lm.config import Config, command_line

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from data.corpus import Corpus
    from data.documents import Document
    from int_lm.files.checkpoint import Restored
    from int_lm.files.lock import Lock
    from int_lm.run import Paths
    from int_lm.training.origin import Origin
    from int_lm.training.trainer import Documents, Text, Trainer
    from tokenization import Tokenizer


def parse(
    argv: Sequence[str] | None, program: str = "train.py"
) -> tuple[argparse.Namespace, Config]:
    """The command's own flags, and the validated configuration that the command line describes."""
    own = program == "train.py"
    parser = command_line.ConfigParser(
        prog=program,
        usage="%(prog)s [--config FILE] [--section.field VALUE ...]",
        description=__doc__
        if own
        else command_line.started_as(__doc__, "python train.py", program),
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print weights, memory, operations and speed on this machine, and stop: nothing is "
        "written, nothing of the run's size allocated, and of files only a tokenizer's read",
    )
    return parser.parse_config(argv)


def show_plan(settings: Config) -> None:
    """Print what a run would cost."""
    import tokenization
    from int_lm.training import plan

    vocab_size = tokenization.identity(tokenization.load(settings.data.tokenizer))["vocab_size"]
    print(*plan.lines(settings, plan.measure(settings, vocab_size)), sep="\n")


def encoded(tokenizer: "Tokenizer", documents: "dict[str, list[Document]]") -> "Documents":
    """Documents of every source as ids, as the trainer and the evaluation read them."""
    from int_lm.training.trainer import Documents

    flat = [(name, document.text) for name in documents for document in documents[name]]
    return Documents(
        ids=tokenizer.encode_all([text for _, text in flat]),
        text_bytes=[len(text) for _, text in flat],
        sources=[name for name, _ in flat],
    )


def open_text(settings: Config) -> "Corpus":
    """The text of a run, prepared by the first process. Prints how much there is."""
    import tokenization
    from data.open import open_corpus
    from int_lm.training import distributed

    tokenizer = tokenization.load(settings.data.tokenizer)
    if not distributed.is_first():
        distributed.wait_for_first()
        return open_corpus(settings.data, tokenizer, say=lambda _: None)
    opened = open_corpus(settings.data, tokenizer, say=print)
    distributed.wait_for_first()
    totals = [source.manifest["totals"] for source in opened.sources]
    for name, key in (("train on", ""), ("hold out", "heldout_")):
        count, size = (sum(x[key + what] for x in totals) for what in ("documents", "bytes"))
        print(f"text to {name}: {count:,} documents, {size:,} bytes")
    return opened


def lay_out(
    opened: "Corpus", settings: Config, resumed: "Restored | None"
) -> "tuple[Text, dict[str, float]]":
    """(the text that the trainer reads, baselines of the held-out text)."""
    import tokenization
    from data import baselines, corpus, split
    from int_lm.measure import evaluate
    from int_lm.training.trainer import Text

    weights = [source.weight for source in opened.sources]
    names = [source.name for source in opened.sources]
    phases = resumed.host["mixture"] if resumed else [(0, weights)]
    if resumed:
        per_round = opened.streams(settings, phases).steps_per_round
        phases = corpus.phases_after(phases, weights, -(-resumed.step // per_round), names)

    heldout = opened.heldout(settings.data.heldout_bytes)
    share = settings.run.eval_bytes // len(heldout)
    validation = {
        name: list(split.spread(heldout[name], share, evaluate.PIECE_BYTES)) for name in heldout
    }
    text = Text(
        tokenizer=opened.tokenizer,
        identity=tokenization.identity(opened.tokenizer),
        streams=opened.streams(settings, phases),
        sha256=opened.sha256(),
        mixture=phases,
        heldout=encoded(opened.tokenizer, heldout),
        validation=encoded(opened.tokenizer, validation),
    )
    return text, baselines.baselines([document for name in heldout for document in heldout[name]])


def train(settings: Config) -> None:
    """Start or resume the run of `settings`, with the other processes of the run if any."""
    from int_lm.method import recipe
    from int_lm.training import distributed

    recipe.check(settings)
    with distributed.processes("train.py", settings.distributed):
        train_together(settings)


def train_together(settings: Config) -> None:
    """The work of every process of a run. Only the first one prints and writes."""
    start = read_origin(settings)
    opened = open_text(settings)

    from int_lm.files import lock
    from int_lm.training import distributed

    remedy = "wait until it ends, or choose another --run.dir"
    alone = lock.hold(Path(settings.run.dir), remedy)
    with alone if distributed.is_first() else contextlib.nullcontext() as held:
        train_locked(settings, opened, held, start)


def read_origin(settings: Config) -> "Origin | None":
    """What a new run starts from, checked; None for random weights, or where the run goes on."""
    from int_lm import run
    from int_lm.files import checkpoint

    if not settings.run.init_from or checkpoint.steps(
        run.Paths(Path(settings.run.dir)).checkpoints
    ):
        return None
    import tokenization
    from int_lm.method import recipe
    from int_lm.training import origin

    found = origin.read(settings.run.init_from, say=_say)
    tokenizer = tokenization.load(settings.data.tokenizer)
    origin.check(found, settings, tokenization.identity(tokenizer))
    origin.weights_for(found, recipe.of(settings, tokenizer.vocab_size))
    return found


def train_locked(
    settings: Config, opened: "Corpus", held: "Lock | None", start: "Origin | None"
) -> None:
    """Start or resume.

    Args:
      held: the lock on the run directory, in the process that writes.
      start: what a new run starts from; None for random weights.
    """
    import tokenization
    from int_lm import resume, run
    from int_lm.files import checkpoint
    from int_lm.files.checkpointer import Checkpointer
    from int_lm.method import evolve, placement, recipe as recipes
    from int_lm.method.evolve import State
    from int_lm.model import params
    from int_lm.training import distributed, interrupt, origin, runlog
    from int_lm.training.trainer import Trainer

    paths = run.Paths(Path(settings.run.dir))
    vocab_size = opened.tokenizer.vocab_size
    if checkpoint.steps(paths.checkpoints):
        host = checkpoint.read_host(paths.checkpoints)
        identity = tokenization.identity(opened.tokenizer)
        resume.check_resumable(host, settings, identity, opened.sha256())
        settings, start = origin.kept(host, settings), None
        if distributed.is_first() and (warning := resume.resumption_warning(host, settings)):
            _say(warning)
    settings = origin.settled(settings, start)
    recipe = recipes.of(settings, vocab_size)
    abstract = evolve.abstract(recipe).stored()
    resumed = checkpoint.restore(paths.checkpoints, abstract, say=_say)
    weights = origin.weights_for(start, recipe) if start else None
    state = State.of_stored(resumed.state) if resumed else evolve.initial(recipe, weights)
    if resumed:  # what JAX makes of its arrays takes their place
        resumed = dataclasses.replace(resumed, state=None)
    first = resumed.step if resumed else 0
    distributed.require_agreement("newest checkpoint", first)
    distributed.require_agreement("configuration", resume.shared_configuration(settings))
    distributed.require_agreement("text", opened.sha256())
    text, baselines = lay_out(opened, settings, resumed)

    specs = recipe.model.specs
    count = params.count(specs.network)
    place = placement.choose(settings.distributed, settings.es, count)
    state = evolve.placed(recipe, state, place)
    writes = distributed.is_first()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(contextlib.ExitStack())
        stop = signals.enter_context(interrupt.StopFlag())
        checkpointer = metrics = None
        if writes:
            checkpointer = stack.enter_context(
                Checkpointer(paths.checkpoints, keep=settings.run.keep, lock=held)
            )
            metrics = stack.enter_context(runlog.MetricsFile(paths.metrics))
            checkpointer.discard_after(first)
            metrics.truncate_after(first)
            run.write_config(paths, settings)
            text.tokenizer.save(paths.tokenizer)
        console = stack.enter_context(
            runlog.Console(steps=settings.run.steps, seconds=settings.run.seconds, quiet=not writes)
        )
        tables = params.count(specs.tables)
        besides = f", {tables:,} of context tables" if tables else ""
        console.note(f"model: {settings.model.architecture}, {count:,} int8 weights{besides}")
        if start:
            console.note(origin.description(start, recipe))
        if place is not None:
            console.note(placement.description(place))
        console.table("bits per byte of the held-out text, to compare with:", baselines)
        if resumed:
            console.note(f"resuming {paths.root} at step {first}")
        trainer = Trainer(
            settings=settings,
            recipe=recipe,
            text=text,
            console=console,
            metrics=metrics,
            checkpointer=checkpointer,
            stop=stop,
            state=state,
            place=place,
            step=first,
            saved=first if resumed else -1,
            seconds_before=resumed.host["seconds"] if resumed else 0.0,
        )
        finished = trainer.loop()
        if not finished or distributed.most(stop.requested is not None):
            if checkpointer:
                checkpointer.close()
            console.note(f"saved step {trainer.step}; the same command goes on from there")
            return
        if trainer.kept():  # with nothing left to save, Ctrl-C ends the program at once
            signals.close()
        finish(trainer, paths, baselines)


def finish(trainer: "Trainer", paths: "Paths", baselines: dict[str, float]) -> None:
    """Evaluate the whole held-out text, keep the figures, and say what can be done next."""
    from int_lm import plugins, run
    from int_lm.training import distributed

    lengths = trainer.evaluate(trainer.text.heldout)
    sources = lengths.summaries(trainer.text.heldout.sources)
    figures = lengths.summary() | {"baselines": baselines, "sources": sources}
    note = trainer.console.note
    trainer.console.table(
        f"bits per byte of all {figures['bytes']:,} held-out bytes after {trainer.step} steps:",
        {"this model": lengths.bits_per_byte, **baselines},
    )
    if len(sources) > 1:
        shares = trainer.text.streams.shares(trainer.step)
        trainer.console.table(
            "bits per byte by source (and its share of what was read):",
            {f"{name} ({shares[name]:.1%})": sources[name]["bits_per_byte"] for name in sources},
        )
    trainer.sample()
    trainer.secure()
    if distributed.is_first():
        run.write_evaluation(paths, trainer.step, trainer.weights, figures)
    note(f"run directory: {paths.root}")
    evaluate, sample, export = map(command_line.command, ("eval", "sample", "export"))
    run_flag = f"--run {paths.root}{plugins.flags(plugins.full_names(trainer.settings))}"
    note(
        "next:\n"
        f"  {evaluate} {run_flag}\n"
        f"  {sample} {run_flag} --prompt 'def ' --tokens 200\n"
        f"  {export} {run_flag} --out {paths.root}/export"
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> None:
    """Train, or show what training would cost; `program` is what the help calls this command."""
    flags, settings = parse(argv, program)
    show_plan(settings) if flags.plan else train(settings)


if __name__ == "__main__":
    with errors.reported("train.py"):
        main()
