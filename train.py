"""Pretrain an int8 language model with forward passes only.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --data.path books/ --run.dir runs/books

A run directory that holds a checkpoint is resumed, bit for bit. SIGINT and SIGTERM save and stop
at the next step; a second one stops at once.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from int_lm import command_line, config, errors
from int_lm.config import Config

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from data.sources import Document
    from int_lm.run import Paths
    from int_lm.trainer import Documents, Text, Trainer
    from tokenization import Tokenizer

VALIDATION_PIECE_BYTES = 2048  # validation while training reads pieces spread over held-out text


def parse(argv: Sequence[str] | None) -> Config:
    """The validated configuration that the command line describes."""
    parser = command_line.OneLineParser(
        usage="%(prog)s [--config FILE] [--section.field VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_config_arguments(parser)
    return config.validate(command_line.from_arguments(parser.parse_strict(argv)))


def encoded(tokenizer: "Tokenizer", documents: "Sequence[Document]") -> "Documents":
    """Documents as the trainer and the evaluation see them."""
    from int_lm.trainer import Documents

    return Documents(
        ids=[tokenizer.encode(document.text) for document in documents],
        text_bytes=[len(document.text) for document in documents],
    )


def prepare(settings: Config) -> "tuple[Text, dict[str, float]]":
    """Read, split and lay out the text; returns it with the yardsticks of its held-out part."""
    import tokenization
    from data import baselines, sources, split, streams

    documents = sources.read_documents(settings.data, notice=print)
    parts = split.split(documents, settings.data.holdout)
    tokenizer = tokenization.load(settings.data.tokenizer)
    laid = streams.build(
        parts.train,
        tokenizer,
        streams=settings.es.population // settings.es.members_per_stream,
        segment_length=settings.es.segment_length,
    )
    for name, side in (("train on", parts.train), ("hold out", parts.heldout)):
        size = sum(len(document.text) for document in side)
        print(f"text to {name}: {len(side):,} documents, {size:,} bytes")
    validation = split.spread(parts.heldout, settings.run.eval_bytes, VALIDATION_PIECE_BYTES)

    from int_lm.trainer import Text

    text = Text(
        tokenizer=tokenizer,
        identity=tokenization.identity(tokenizer),
        streams=laid,
        sha256=hashlib.sha256(laid.tokens.tobytes()).hexdigest(),
        heldout=encoded(tokenizer, parts.heldout),
        validation=encoded(tokenizer, validation),
    )
    return text, baselines.baselines(parts.heldout)


def train(settings: Config) -> None:
    """Run, or resume, what `settings` describe."""
    text, yardsticks = prepare(settings)

    from int_lm import checkpoint, evolve, interrupt, params, run, runlog
    from int_lm.checkpointer import Checkpointer
    from int_lm.trainer import Trainer

    paths = run.Paths(Path(settings.run.dir))
    state = evolve.initial(settings, text.identity["vocab_size"])
    if checkpoint.steps(paths.checkpoints):
        host = checkpoint.read_host(paths.checkpoints)
        run.check_resumable(host, settings, text.identity, text.sha256)
    resumed = checkpoint.restore(paths.checkpoints, state, say=_say)
    if resumed:
        state = resumed.state
    first = resumed.step if resumed else 0

    with (
        interrupt.StopFlag() as stop,
        Checkpointer(paths.checkpoints, keep=settings.run.keep) as checkpointer,
        runlog.MetricsFile(paths.metrics) as metrics,
        runlog.Console(steps=settings.run.steps, seconds=settings.run.seconds) as console,
    ):
        checkpointer.discard_after(first)
        metrics.truncate_after(first)
        run.write_config(paths, settings)
        text.tokenizer.save(paths.tokenizer)
        count = sum(leaf.size for _, leaf in params.flatten(state.weights))
        console.note(f"model: {settings.model.architecture}, {count:,} int8 weights")
        console.table("bits per byte of the held-out text, to compare with:", yardsticks)
        if resumed:
            console.note(f"resuming {paths.root} at step {first}")
        trainer = Trainer(
            settings=settings,
            text=text,
            console=console,
            metrics=metrics,
            checkpointer=checkpointer,
            stop=stop,
            state=state,
            number=first,
            saved=first if resumed else -1,
            seconds_before=resumed.host["seconds"] if resumed else 0.0,
        )
        trainer.loop()
        checkpointer.close()
        if stop.requested:
            console.note(f"saved step {trainer.number}; the same command goes on from there")
            return
        finish(trainer, paths, yardsticks)


def finish(trainer: "Trainer", paths: "Paths", yardsticks: dict[str, float]) -> None:
    """Evaluate the whole held-out text, keep the figures, and say what can be done next."""
    from int_lm import run

    lengths = trainer.evaluate(trainer.text.heldout)
    figures = lengths.summary() | {"baselines": yardsticks}
    run.write_evaluation(paths, trainer.number, trainer.state.weights, figures)
    note = trainer.console.note
    trainer.console.table(
        f"bits per byte of all {figures['bytes']:,} held-out bytes after {trainer.number} steps:",
        {"this model": lengths.bits_per_byte, **yardsticks},
    )
    trainer.sample()
    note(f"run directory: {paths.root}")
    note(
        "next:\n"
        f"  python eval.py --run {paths.root}\n"
        f"  python -m int_lm.sample --run {paths.root} --prompt 'def ' --tokens 200\n"
        f"  python -m int_lm.export --run {paths.root} --out {paths.root}/export"
    )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    with errors.reported("train.py"):
        train(parse(None))
