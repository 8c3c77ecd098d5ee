"""Pretrain an int8 language model in integers.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --data.path books/ --run.dir runs/books

    python train.py --config configs/quickstart.yaml --plan        what it will cost; trains nothing

A run directory that holds a checkpoint is resumed, bit for bit. Ctrl-C (SIGINT), SIGTERM, SIGHUP,
SIGUSR1 and SIGUSR2 save and stop at the next step; a second Ctrl-C or SIGTERM stops at once. The
exit code is 4 if nothing was left to train.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import cache, errors, signals
from int_lm.config import Config, command_line

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from data.corpus import Corpus
    from data.documents import Document
    from int_lm.files.lock import Lock
    from int_lm.run import Paths
    from int_lm.training.origin import Origin
    from int_lm.training.session import Begun
    from int_lm.training.trainer import Documents, Text, Trainer
    from tokenization import Tokenizer


def parse(
    argv: Sequence[str] | None, program: str = "train.py"
) -> tuple[argparse.Namespace, Config]:
    """The command's own flags, and the validated configuration that the command line describes.

    Raises:
      UserError: a mistake in the arguments or in the configuration.
    """
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
    """Print what a run would cost; nothing is trained."""
    import tokenization
    from int_lm.training import cautions, plan

    vocab_size = tokenization.identity(tokenization.load(settings.data.tokenizer))["vocab_size"]
    print(*plan.lines(settings, plan.measure(settings, vocab_size)), sep="\n")
    for sentence in cautions.of(settings):
        errors.say(sentence)


def encoded(tokenizer: "Tokenizer", documents: "dict[str, list[Document]]") -> "Documents":
    """Documents, given by the name of their source, as ids for evaluation."""
    from int_lm.training.trainer import Documents

    flat = [(name, document.text) for name in documents for document in documents[name]]
    return Documents(
        ids=tokenizer.encode_all([text for _, text in flat]),
        text_bytes=[len(text) for _, text in flat],
        sources=[name for name, _ in flat],
    )


def load_tokenizer(settings: Config, host: "Mapping[str, Any] | None") -> "Tokenizer":
    """The tokenizer of a run.

    Args:
      settings: name the tokenizer. If it does not exist any more, a run that is resumed uses the
        copy in its run directory.
      host: host data of the newest checkpoint; None for a new run.

    Raises:
      UserError: the tokenizer cannot be read, or is not that of the checkpoint.
    """
    import tokenization
    from int_lm import resume, run

    own = run.Paths(Path(settings.run.dir)).tokenizer
    gone = settings.data.tokenizer != "bytes" and not Path(settings.data.tokenizer).exists()
    if host and gone and own.is_dir():
        errors.say(
            f"{settings.data.tokenizer} is not there any more; going on with the run's {own}"
        )
        tokenizer = tokenization.load(own)
    else:
        tokenizer = tokenization.load(settings.data.tokenizer)
    if host:
        resume.check_tokenizer(host["tokenizer"], tokenization.identity(tokenizer))
    return tokenizer


def open_text(settings: Config, host: "Mapping[str, Any] | None") -> "Corpus":
    """The text of a run. The first process prepares it, and prints how much there is.

    Args:
      host: host data of the newest checkpoint; None for a new run.

    Raises:
      UserError: text or tokenizer cannot be read.
    """
    from data.open import open_again, open_corpus
    from int_lm.training import distributed

    tokenizer = load_tokenizer(settings, host)

    def opened(say: "Callable[[str], None]") -> "Corpus":
        if host:
            return open_again(settings.data, tokenizer, host["text_sha256"], say=say)
        return open_corpus(settings.data, tokenizer, say=say)

    if not distributed.is_first():
        distributed.wait_for_first()
        return opened(lambda _: None)
    found = opened(print)
    distributed.wait_for_first()
    totals = [source.manifest["totals"] for source in found.sources]
    for name, key in (("train on", ""), ("hold out", "heldout_")):
        count, size = (sum(x[key + what] for x in totals) for what in ("documents", "bytes"))
        print(f"text to {name}: {errors.counted(count, 'document')}, {size:,} bytes")
    return found


def lay_out(opened: "Corpus", begun: "Begun") -> "tuple[Text, dict[str, Any]]":
    """Make the input of the trainer.

    Returns:
      The text, and the entries `text` and `baselines` of the figures of the held-out text.
    """
    import tokenization
    from data import baselines, corpus, split
    from int_lm.measure import evaluate
    from int_lm.training import distributed
    from int_lm.training.trainer import Text

    settings = begun.settings
    weights = [source.weight for source in opened.sources]
    names = [source.name for source in opened.sources]
    phases = begun.host["mixture"] if begun.host else [(0, weights)]
    if begun.host:
        per_round = opened.streams(settings, phases).steps_per_round
        phases = corpus.phases_after(phases, weights, -(-begun.first // per_round), names)

    streams = opened.streams(settings, phases)
    if distributed.is_first() and (missed := streams.shares_missed(settings.run.steps)):
        errors.say(missed)
    heldout = opened.heldout(settings.data.heldout_bytes)
    share = settings.run.eval_bytes // len(heldout)
    validation = {
        name: list(split.spread(heldout[name], share, evaluate.PIECE_BYTES)) for name in heldout
    }
    text = Text(
        tokenizer=opened.tokenizer,
        identity=tokenization.identity(opened.tokenizer),
        streams=streams,
        sha256=opened.sha256(),
        mixture=phases,
        heldout=encoded(opened.tokenizer, heldout),
        validation=encoded(opened.tokenizer, validation),
    )
    flat = [document for documents in heldout.values() for document in documents]
    return text, {"text": opened.figures_of(heldout), "baselines": baselines.baselines(flat)}


def train(settings: Config) -> bool:
    """Start or resume a run, together with the other processes of the run, if there are any.

    Returns:
      False if nothing was done, because the run had reached its end and was evaluated before.

    Raises:
      UserError: a mistake in the configuration, the text or the run directory.
    """
    from int_lm.method import objective, recipe
    from int_lm.training import distributed, memory, track

    memory.one_heap()
    recipe.check(settings)
    track.check(settings.run.track)
    if objective.get(settings.es.objective).written:
        raise errors.UserError(
            f"es.objective {settings.es.objective} is of rewards, not of text; start it with "
            f"{command_line.command('tune')}"
        )
    with (
        signals.Spared(settings.run.saving_signals),
        distributed.processes("train.py", settings.distributed),
    ):
        return train_together(settings)


def train_together(settings: Config) -> bool:
    """The body of `train` in every process of a run. Only the first process prints and writes."""
    settings, host = checked_before(settings)
    start = read_origin(settings) if settings.run.init_from and not host else None
    opened = open_text(settings, host)

    from int_lm.training import distributed

    with distributed.holding(Path(settings.run.dir)) as held:
        return train_locked(settings, opened, held, start)


def checked_before(settings: Config) -> "tuple[Config, Mapping[str, Any] | None]":
    """Check whether a run may go on, before any text is prepared.

    Returns:
      The settings, with the sources of a mixture in the order of the checkpoint, and the host data
      of the newest checkpoint; None for a new run.

    Raises:
      UserError: the run may not go on with these settings.
    """
    from int_lm import config, resume, run
    from int_lm.files import checkpoint
    from int_lm.training import origin

    directory = run.Paths(Path(settings.run.dir)).checkpoints
    if not checkpoint.steps(directory):
        origin.require_named(settings)
        return settings, None
    host = checkpoint.read_host(directory)
    run.check_kind(host, run.TEXT, settings.run.dir)
    resume.check_host(host, directory)
    resume.check_config(host["config"], config.to_dict(settings), f"the checkpoint in {directory}")
    return resume.in_order(settings, host), host


def read_origin(settings: Config) -> "Origin":
    """The weights that a new run starts from, read and checked before any text is prepared."""
    import tokenization
    from int_lm.method import recipe
    from int_lm.training import origin

    found = origin.read(settings.run.init_from, say=errors.say)
    tokenizer = tokenization.load(settings.data.tokenizer)
    origin.check(found, settings, tokenization.identity(tokenizer))
    origin.weights_for(found, recipe.of(settings, tokenizer.vocab_size))
    return found


def train_locked(
    settings: Config, opened: "Corpus", held: "Lock | None", start: "Origin | None"
) -> bool:
    """Start or resume a run; returns what `train` returns.

    Args:
      held: the lock on the run directory; None in processes that do not write.
      start: whose weights a new run starts from; None for random weights.
    """
    import tokenization
    from int_lm import run
    from int_lm.training import distributed, session as sessions
    from int_lm.training.trainer import Trainer

    identity = tokenization.identity(opened.tokenizer)
    begun = sessions.begin(settings, identity, opened.sha256(), start)
    if begun.nothing:
        paths = begun.paths
        whole = run.is_evaluated(paths, begun.weights, opened.sha256())
        whole = whole and paths.config.exists() and paths.tokenizer.exists()
        if not distributed.most(not whole):
            return False
    text, of_heldout = lay_out(opened, begun)
    with sessions.opened(begun, opened.tokenizer, held) as session:
        session.console.table(
            "bits per byte of the held-out text, to compare with:", of_heldout["baselines"]
        )
        sessions.say_resuming(begun, session)
        trainer = Trainer(text=text, **sessions.parts(begun, session))
        sessions.trained(trainer, session, lambda: finish(trainer, opened, begun.paths, of_heldout))
        return True


def finish(
    trainer: "Trainer", opened: "Corpus", paths: "Paths", of_heldout: "dict[str, Any]"
) -> None:
    """Evaluate the held-out text, write the figures, and print the next commands.

    Args:
      of_heldout: the second result of `lay_out`.
    """
    from int_lm import plugins, run
    from int_lm.training import distributed

    lengths = trainer.evaluate(trainer.text.heldout)
    sources = lengths.summaries(trainer.text.heldout.sources)
    measured = lengths.summary()
    figures = measured | of_heldout | {"sources": sources}
    note = trainer.console.note
    whole = sum(source.manifest["totals"]["heldout_bytes"] for source in opened.sources)
    every = "all " if measured["bytes"] >= whole else f"{measured['bytes']:,} of the "
    trainer.console.table(
        f"bits per byte of {every}{whole:,} held-out bytes after "
        f"{errors.counted(trainer.step, 'step')}:",
        {"this model": lengths.bits_per_byte, **of_heldout["baselines"]},
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
    held_out = of_heldout["text"]
    note(f"held out of {held_out['source']}, sha256 {held_out['sha256'][:16]}")
    note(f"run directory: {paths.root}")
    evaluate, sample, export = map(command_line.command, ("eval", "sample", "export"))
    run_flag = f"--run {paths.root}{plugins.flags(plugins.full_names(trainer.settings))}"
    prompt = command_line.prompt(trainer.settings)
    note(
        "next:\n"
        f"  {evaluate} {run_flag}\n"
        f"  {sample} {run_flag} --prompt {prompt} --tokens 200 --temperature 1\n"
        f"  {export} {run_flag} --out {paths.root}/export"
    )


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> None:
    """Train, or print what training would cost; `program` is the command's name in its help."""
    flags, settings = parse(argv, program)
    if flags.plan:
        return show_plan(settings)
    cache.keep()
    if not train(settings):
        sys.exit(errors.EXIT_NOTHING_TO_TRAIN)


if __name__ == "__main__":
    with errors.reported("train.py"):
        main()
