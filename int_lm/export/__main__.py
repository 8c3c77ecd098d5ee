"""Export a run: `python -m int_lm.export --run DIR --out DIR2`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import export, hub, plugins, programs
from int_lm.config import command_line
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, reported, say
from int_lm.export import metadata, push

if TYPE_CHECKING:
    from int_lm.run import Run

PROGRAM = "int_lm.export"
COMMAND = f"python -m {PROGRAM}"
PRICED_BYTES = 1 << 20  # about so much held-out text is used to measure the cost of pruning


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, then load the run, so that a mistake is reported at once.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    parser = OneLineParser(
        prog=program,
        description="Write a run's int8 weights, configuration, tokenizer and model card, with a "
        "runtime that needs only NumPy; push it to the Hugging Face hub.",
    )
    parser.add_argument(
        "--run", metavar="DIR", help="run that train.py wrote; without it, --push what is at --out"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="directory to make")
    parser.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    parser.add_argument(
        "--prune",
        type=int,
        default=0,
        metavar="N",
        help="leave out the entries of context tables nearer to 0 than N, and measure what that "
        "costs in bits per byte of held-out text (default: 0, nothing is left out)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export at --out")
    parser.add_argument("--license", metavar="ID", help="licence in the card, such as apache-2.0")
    parser.add_argument(
        "--language",
        metavar="CODE",
        nargs="+",
        default=[],
        help="languages of the text in the card, such as en; code for source code",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="then write the export to this model repository of the Hugging Face hub, which is "
        "made if it is missing",
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch for --push (default: main)")
    parser.add_argument(
        "--private", action="store_true", help="a repository that --push makes is private"
    )
    parser.add_plugin_argument()
    arguments = parser.parse_strict(argv)
    plugins.trust(*arguments.plugin)
    of_card = {
        "license": arguments.license and metadata.checked_license(arguments.license),
        "languages": [metadata.checked_language(code) for code in arguments.language],
    }
    _check_push(arguments)
    if arguments.run is None:
        push.check(arguments.out)
        _push(arguments)
        return
    if not Path(arguments.run).is_dir():
        raise UserError(f"no run at {arguments.run}; name the directory that train.py printed")
    if not 0 <= arguments.prune <= 127:
        raise UserError(f"--prune is {arguments.prune}, must be between 0 and 127")
    export.check_free(arguments.out, arguments.overwrite)

    from int_lm import run  # imports JAX, so only after the arguments are checked

    opened = run.open_run(arguments.run, arguments.step, say=say)
    pruned = None
    if arguments.prune:
        opened, pruned = _pruned(opened, Path(arguments.run), arguments.prune)
        print(
            f"left out {pruned['dropped']:,} entries of context tables nearer to 0 than "
            f"{pruned['least']}: {pruned['price']:+.4f} bits per byte on {pruned['bytes']:,} "
            "held-out bytes"
        )
    export.export_run(
        opened,
        arguments.run,
        arguments.out,
        pruned=pruned,
        overwrite=arguments.overwrite,
        **of_card,
    )
    trusted = plugins.flags(plugins.full_names(opened.config, ["architecture"]))
    print(
        f"exported step {opened.step} to {arguments.out}\n"
        f"next: {command_line.command('sample')} --export {arguments.out}{trusted} "
        f"--prompt {command_line.prompt(opened.config)}"
    )
    if arguments.push:
        _push(arguments)


def _check_push(arguments: argparse.Namespace) -> None:
    """Refuse (`UserError`) arguments of a push that cannot be done, before anything is written."""
    if arguments.push is None:
        for flag in ("revision", "private"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag} is for --push OWNER/NAME; leave it out, or give both")
        if arguments.run is None:
            raise UserError("name the run to export with --run DIR")
        return
    for flag in ("step", "prune", "overwrite", "license", "language"):
        if arguments.run is None and getattr(arguments, flag):
            raise UserError(
                f"--{flag} is for an export of --run DIR; {arguments.out} is one already"
            )
    hub.checked_name(arguments.push)
    if arguments.revision is not None:
        hub.checked_revision(arguments.revision)
    push.check_token()


def _push(arguments: argparse.Namespace) -> None:
    """Push the export at `--out`.

    Raises:
      UserError: as `push.push`; it says how to try again.
    """
    try:
        pushed = push.push(
            arguments.out,
            arguments.push,
            revision=arguments.revision,
            private=arguments.private,
        )
    except UserError as error:
        if arguments.run is None:
            raise
        raise UserError(
            f"{error} (the export is kept; {command_line.command('export')} --out "
            f"{arguments.out} --push OWNER/NAME pushes it)"
        ) from error
    print(f"pushed to {pushed}\nnext: {command_line.command('eval')} --export {pushed} --text FILE")


def _pruned(opened: "Run", root: Path, least: int) -> "tuple[Run, dict[str, Any]]":
    """The run with pruned context tables, and the argument `pruned` of `export_model`.

    Raises:
      UserError: the model has no context tables, or its text or tokenizer cannot be read or has
        changed.
    """
    programs.make_importable()
    import tokenization
    from data.open import open_trained
    from int_lm import run
    from int_lm.export import sparse
    from int_lm.measure import evaluate

    if not opened.weights.tables:
        raise UserError(
            "--prune leaves out entries of context tables, of which this model has none"
        )
    if opened.text_sha256 is None:
        raise UserError(
            "this run does not say which text its weights were trained on, so the price of --prune "
            "is not known; export without it"
        )
    weights, dropped = sparse.prune(opened.weights, least)
    tokenizer = tokenization.load(root / "tokenizer")
    data = opened.config.data
    folders = [Path(data.shards), run.folder_of(root, opened.config) / data.shards]
    corpus = open_trained(data, tokenizer, opened.text_sha256, folders=folders, say=say)
    held_out = corpus.heldout(min(PRICED_BYTES, data.heldout_bytes or PRICED_BYTES))
    texts = [document.text for documents in held_out.values() for document in documents]
    ids = tokenizer.encode_all(texts)
    lengths = [len(text) for text in texts]
    before, after = (
        evaluate.evaluate(opened.recipe.model, each, ids, lengths).bits_per_byte
        for each in (opened.weights, weights)
    )
    of_pruning = {
        "least": least,
        "dropped": dropped,
        "price": after - before,
        "bytes": sum(lengths),
    }
    return dataclasses.replace(opened, weights=weights), of_pruning


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
