"""Evaluate a run or an export: bits per byte and perplexity of held-out text, beside baselines.

python eval.py --run runs/quickstart                 the documents that the run held out
python eval.py --run runs/quickstart --text FILE     any text
python eval.py --export exports/quickstart           the same numbers, from NumPy alone
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import cache, errors, plugins, subject as subjects
from int_lm.config import command_line
from int_lm.subject import Subject

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from data.documents import Document


def parse(argv: Sequence[str] | None, program: str = "eval.py") -> argparse.Namespace:
    """The parsed command line."""
    from data.formats import LAST_WORD, PAIR

    own = program == "eval.py"
    parser = command_line.OneLineParser(
        prog=program,
        description=__doc__ if own else command_line.started_as(__doc__, "python eval.py", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_model_arguments()
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="files or directories of text, JSON or Parquet, told apart by name and contents "
        "(default: the documents that the run held out)",
    )
    for name, kind, text in (
        ("path", str, "where the text of the run is now, if it was moved; its digest must be that"),
        ("shards", str, "where the token shards of the run are now, if they were moved"),
        ("source", str, "format of --text: text, json or parquet (default: as files say)"),
        ("field", str, "field of records that holds the text of --text (default: as of the run)"),
        ("skip_damaged", int, "damaged records left out of the files named here (default: 0)"),
    ):
        several: dict[str, Any] = {"nargs": "+"} if name == "path" else {}
        shown = {"path": "FILE", "shards": "DIR"}.get(name, "VALUE")
        parser.add_argument(
            f"--data.{name}", dest=name, type=kind, metavar=shown, help=text, **several
        )
    parser.add_argument(
        "--last_word",
        metavar="FILE",
        help="accuracy of the last word of the `text` of JSON lines, as in LAMBADA, instead: "
        f"{LAST_WORD}",
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="how often `sentence_good` is likelier than `sentence_bad` in JSON lines, as in "
        f"BLiMP, instead: {PAIR}",
    )
    parser.add_argument(
        "--word_perplexity", action="store_true", help="also perplexity per word (split at spaces)"
    )
    parser.add_argument(
        "--told",
        action="store_true",
        help="also zstd and PPMd that have read the training text before (its first 64 MiB); takes "
        "up to minutes",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_plugin_argument()
    arguments = parser.parse_strict(argv)
    if arguments.export and arguments.step is not None:
        raise errors.UserError("--step chooses a checkpoint of --run; an export holds one step")
    if arguments.source not in (None, "text", "json", "parquet"):
        raise errors.UserError(
            f"--data.source is {arguments.source!r}, must be text, json or parquet"
        )
    if arguments.skip_damaged is not None and arguments.skip_damaged < 0:
        raise errors.UserError(
            f"--data.skip_damaged is {arguments.skip_damaged}, must be at least 0"
        )
    _refuse_ignored(arguments)
    return arguments


# flags that say how to read or to show text, and what of the command line they have no meaning with
MEANINGLESS = (
    ("told", "--told compares on the text that was held out", ("text", "last_word", "pairs")),
    ("path", "--data.path says where the text of the run is", ("text", "last_word", "pairs")),
    ("shards", "--data.shards says where the text of the run is", ("last_word", "pairs")),
    ("word_perplexity", "--word_perplexity is of documents", ("last_word", "pairs")),
    ("text", "--text has documents to evaluate on", ("last_word", "pairs")),
    ("source", "--data.source is the format of --text", ("last_word", "pairs", "")),
    ("field", "--data.field is a field of --text", ("last_word", "pairs", "")),
)


def _refuse_ignored(arguments: argparse.Namespace) -> None:
    """Refuse flags that would have no effect with the others (`UserError`)."""
    for name, meaning, others in MEANINGLESS:
        given = [f"--{other}" for other in others if other and getattr(arguments, other)]
        if "" in others and not arguments.text and not given:
            given = ["the text that was held out"]
        if getattr(arguments, name) and given:
            raise errors.UserError(f"{meaning}; leave it out with {' and '.join(given)}")
    named = arguments.text or arguments.last_word or arguments.pairs
    errors.require(
        arguments.skip_damaged is None or bool(named),
        "--data.skip_damaged is of files that are named; leave it out with the text that was held "
        "out",
    )


def documents_of(
    subject: Subject, arguments: argparse.Namespace
) -> "tuple[dict[str, list[Document]], dict[str, Any], dict[str, float]]":
    """The documents to evaluate on: those of `--text`, or those that the subject held out.

    Returns:
      The documents by source, the entry `text` of the figures, and with `--told` the baselines that
      have read the training text.
    """
    from data import baselines, corpus, known, sources
    from data.open import open_trained

    data = subject.data
    if arguments.text:
        data = dataclasses.replace(
            data,
            path=tuple(arguments.text),
            mixture=(),
            field=arguments.field or data.field,
            skip_damaged=arguments.skip_damaged or 0,
        )
        if arguments.source:
            data = dataclasses.replace(data, source=arguments.source)
            documents = sources.read_documents(data, notice=errors.say)
        else:
            documents = sources.read_files(arguments.text, data, notice=errors.say)
        text = corpus.text_figures(" ".join(arguments.text), documents, None)
        trained_on = known.count_trained(
            documents,
            subject.data,
            subject.tokenizer,
            subject.text_sha256,
            folders_of(subject, arguments),
            say=errors.say,
        )
        return {"text": documents}, text | {"trained_on": trained_on}, {}
    if subject.text_sha256 is None:
        raise errors.UserError(
            f"{subject.name} does not say which text it was trained on, so none can be called held "
            "out; export the run again, or name text with --text FILE"
        )
    if arguments.path and data.mixture:
        raise errors.UserError(
            f"{subject.name} has several sources of text; say with --data.shards where their token "
            "shards are"
        )
    if arguments.path:
        data = dataclasses.replace(data, path=tuple(arguments.path))
    if arguments.shards:
        data = dataclasses.replace(data, shards=arguments.shards)
    opened = open_trained(
        data,
        subject.tokenizer,
        subject.text_sha256,
        folders=[] if arguments.path else folders_of(subject, arguments),
        say=errors.say,
    )
    heldout, told = opened.heldout(data.heldout_bytes), {}
    if arguments.told:
        flat = [document for documents in heldout.values() for document in documents]
        told = baselines.told(flat, opened.training_text(baselines.TOLD_BYTES))
    return heldout, opened.figures_of(heldout), told


def folders_of(subject: Subject, arguments: argparse.Namespace) -> list[Path]:
    """Directories that may have the token shards of the text that the subject was trained on."""
    shards = arguments.shards or subject.data.shards
    return [Path(shards), subject.folder / shards]


def measure(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate on `--text`, or on the held-out text; returns the object that `--json` prints.

    With `--word_perplexity` it has the perplexity per word, too; None if that is above 2^1000.
    """
    from int_lm.measure import code_length

    by_source, text, told = documents_of(subject, arguments)
    figures = figures_of(subject, by_source, text)
    figures["baselines"] |= told
    if not arguments.text:
        try:
            subject.keep(figures)
        except OSError as error:
            errors.say(f"the figures are not kept in {subject.name}: {error.strerror or error}")
    if arguments.word_perplexity:
        texts = (document.text for documents in by_source.values() for document in documents)
        count = sum(len(text.split()) for text in texts)
        bits = figures["bits_per_byte"] * figures["bytes"] / max(1, count)
        figures["words"] = count
        figures["word_perplexity"] = code_length.perplexity(bits) if bits < 1000 else None
    return figures


def figures_of(
    subject: Subject, by_source: "dict[str, list[Document]]", text: dict[str, Any]
) -> dict[str, Any]:
    """The figures of documents by source, at least one; `text` becomes their entry `text`."""
    import numpy as np

    from data import baselines
    from int_lm import progress
    from int_lm.measure.code_length import CodeLengths

    flat = [(name, document) for name in by_source for document in by_source[name]]
    texts = [document.text for _, document in flat]
    ids = subject.tokenizer.encode_all(texts)
    tokens = np.array([len(document) + 1 for document in ids], np.int64)
    with progress.bar("evaluating", int(tokens.sum())) as update:
        lengths = CodeLengths(
            log2_likelihoods=subject.log2_likelihoods(ids, update),
            text_bytes=np.array([len(text) for text in texts], np.int64),
            tokens=tokens,
        )
    return lengths.summary() | {
        "text": text,
        "baselines": baselines.baselines([document for _, document in flat]),
        "sources": lengths.summaries([name for name, _ in flat]),
    }


def last_words(subject: Subject, path: str, skip_damaged: int) -> dict[str, Any]:
    """The share of texts in which every token of the last word is the likeliest one."""
    import numpy as np

    from data import tasks
    from int_lm import progress

    documents, firsts = tasks.last_words(
        path, subject.tokenizer, skip_damaged=skip_damaged, notice=errors.say
    )
    with progress.bar("evaluating", sum(len(ids) + 1 for ids in documents)) as update:
        hits = subject.hits(documents, firsts, update)
    lengths = np.array([len(ids) for ids in documents]) - firsts
    correct = int((hits == lengths).sum())
    return {"examples": len(documents), "last_word_accuracy": correct / len(documents)}


def pairs(subject: Subject, path: str, skip_damaged: int) -> dict[str, Any]:
    """The share of pairs in which the good sentence is likelier; ties count as failures."""
    from data import tasks
    from int_lm import progress

    documents = tasks.pairs(path, subject.tokenizer, skip_damaged=skip_damaged, notice=errors.say)
    with progress.bar("evaluating", sum(len(ids) + 1 for ids in documents)) as update:
        likelihoods = subject.log2_likelihoods(documents, update)
    good = int((likelihoods[0::2] > likelihoods[1::2]).sum())
    count = len(documents) // 2
    return {"pairs": count, "pair_accuracy": good / count}


def show_task(figures: dict[str, Any]) -> None:
    """Print the figures of a task."""
    print(f"{figures['model']} at step {figures['step']}")
    for name, value in figures.items():
        if name not in ("model", "step"):
            print(f"  {name.replace('_', ' '):<24}  {value:.4f}".removesuffix(".0000"))


def trained_on(figures: dict[str, Any]) -> str:
    """What is known of text that was named, as the beginning of a line."""
    known = figures["text"]["trained_on"]
    if known is None:
        return "named, perhaps trained on:"
    if known["documents"] == 0:
        return "named; no document of it is one of the training text's, though parts may be:"
    return (
        f"named; {known['documents']:,} of its {errors.counted(figures['documents'], 'document')} "
        f"({known['bytes']:,} of {figures['bytes']:,} bytes) were trained on:"
    )


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    interval = figures["interval_95"]
    spread = f"   95 % over documents: {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    text = figures["text"]
    kind = "held out of" if text["held_out_of"] else trained_on(figures)
    print(f"{figures['model']} at step {figures['step']}")
    print(f"  text                      {kind} {text['source']}   sha256 {text['sha256'][:16]}")
    print(
        f"  documents, bytes, tokens  {figures['documents']:,} {figures['bytes']:,} "
        f"{figures['tokens']:,}"
    )
    print(f"  bits per byte             {figures['bits_per_byte']:.4f}{spread}")
    print(f"  token perplexity          {figures['token_perplexity']:.4f}")
    print(f"  byte perplexity           {figures['byte_perplexity']:.4f}")
    if figures.get("word_perplexity"):
        print(f"  word perplexity           {figures['word_perplexity']:.4g}")
    if len(figures["sources"]) > 1:
        for name, of_source in figures["sources"].items():
            documents, size = of_source["documents"], of_source["bytes"]
            size = f"{errors.counted(documents, 'document')}, {size:,} bytes"
            print(f"  {name:<24}  {of_source['bits_per_byte']:.4f}   {size}")
    print("bits per byte of the same bytes by")
    for name, value in figures["baselines"].items():
        print(f"  {name:<24}  {value:.4f}")


def main(argv: Sequence[str] | None = None, program: str = "eval.py") -> None:
    """Parse, evaluate and print; `program` is the command's name in its help."""
    arguments = parse(argv, program)
    plugins.trust(*arguments.plugin)
    if arguments.run:
        cache.keep()
        subject = subjects.open_run(Path(arguments.run), arguments.step)
    else:
        from int_lm import hub

        subject = subjects.open_export(hub.local(arguments.export))
    figures = {"model": subject.name, "step": subject.step}
    present = show_task if arguments.last_word or arguments.pairs else show
    if arguments.last_word:
        figures |= last_words(subject, arguments.last_word, arguments.skip_damaged or 0)
    if arguments.pairs:
        figures |= pairs(subject, arguments.pairs, arguments.skip_damaged or 0)
    if present is show:
        figures |= measure(subject, arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        present(figures)


if __name__ == "__main__":
    with errors.reported("eval.py"):
        main()
