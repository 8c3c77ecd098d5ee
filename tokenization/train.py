"""Train a SentencePiece tokenizer on a configuration's text.

    python -m tokenization.train --data.path books/ --vocab_size 8192 --out tokenizers/books

The tokenizer is trained on a sample of --sample_bytes of the training documents: those with the
smallest hashes, whatever their order. So memory does not grow with the text. Settings keep every
text as it is: no normalisation, no added spaces, bytes for characters without a piece. White space
has pieces of its own: line ends, and indentations of several spaces. Id 0 is the separator.
"""

import hashlib
import heapq
import io
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import split
from data.documents import Document, Notice
from data.sources import open_source
from data.text import cut
from int_lm import config, errors, progress
from int_lm.config import DataConfig
from int_lm.errors import UserError, counted
from int_lm.files import names
from tokenization.sentence_piece import SPACE, SentencePieceTokenizer

COMMAND = "python -m tokenization.train"
VOCABULARY = range(512, 65537)
FIXED = 2 + 256  # the separator, SentencePiece's id for what is unknown, and the bytes
PART_BYTES = 4096  # of text, cut at line ends, given to the trainer at once
COVERAGE = 0.9999  # of the characters of a text
CHARACTERS_AT_MOST = 0.5  # of the ids for pieces: the others are for pieces of several characters
# SentencePiece leaves out all of what it is given at once where this character is in it.
RESERVED = "\u2585"


def sample(data: DataConfig, most_bytes: int, say: Notice | None = None) -> list[bytes]:
    """Documents to train on, about `most_bytes` of them, in the order of their hashes.

    Args:
      say: called with one sentence about each kind of thing that is left out.

    Raises:
      UserError: the errors of the sources; or there is no text.
    """
    kept: list[tuple[int, bytes]] = []  # a heap; its first entry has the largest hash
    size = 0
    for source in config.sources_of(data):
        opened = open_source(source, data.document_bytes, notice=say)
        with progress.bar(f"reading {source.name}, bytes", opened.size()) as update:
            for document, _ in opened.read():
                update(len(document.text))
                if not document.text or split.is_heldout(document.text, data.holdout):
                    continue
                word = hashlib.blake2b(document.text, digest_size=8, person=b"sample").digest()
                heapq.heappush(kept, (-int.from_bytes(word, "big"), document.text))
                size += len(document.text)
                while size > most_bytes and len(kept) > 1:
                    size -= len(heapq.heappop(kept)[1])
        opened.tally.tell(say)
    if not kept:
        raise UserError("there is no text to train a tokenizer on; name some with --data.path")
    return [text for _, text in sorted(kept, reverse=True)]


@dataclass(frozen=True)
class Alphabet:
    """The characters that get a piece.

    Attributes:
      kept: how many they are.
      rare: the text's other characters, and `RESERVED`; they are encoded as bytes.
      covered: share of the text that has a piece.
    """

    kept: int
    rare: frozenset[str]
    covered: float

    def __str__(self) -> str:
        return (
            f"characters: {self.kept:,} get a piece, {self.covered:.4%} of the text; "
            f"{len(self.rare - {RESERVED}):,} rarer ones are encoded as bytes"
        )


def alphabet(texts: Iterable[bytes], vocab_size: int, coverage: float | None = None) -> Alphabet:
    """Choose the most frequent characters, and the space.

    SentencePiece refuses a coverage below 0.98, and a vocabulary without room for all characters
    that the coverage asks for. A small vocabulary for a script with many characters needs a lower
    coverage, so the characters are chosen here.

    Args:
      texts: UTF-8.
      vocab_size: ids for pieces, without those of `FIXED` and own symbols.
      coverage: share of the text's characters that must have a piece; None for `COVERAGE`, or less
        if `CHARACTERS_AT_MOST` does not allow so many.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.decode())
    total, covered, kept = counts.total(), 0, 0
    most = len(counts) if coverage else max(1, int(CHARACTERS_AT_MOST * vocab_size))
    wanted = (coverage or COVERAGE) * total
    del counts[RESERVED]
    frequent = sorted(
        counts, key=lambda character: (character != " ", -counts[character], character)
    )
    while kept < min(most, len(frequent)) and covered < wanted:
        covered += counts[frequent[kept]]
        kept += 1
    return Alphabet(kept, frozenset(frequent[kept:]) | {RESERVED}, covered / max(1, total))


def parts(texts: Iterable[bytes], rare: Iterable[str]) -> Iterator[str]:
    """Texts for the trainer, in parts of several whole lines and without rare characters.

    Line ends stay in the parts, so that they can become pieces.
    """
    gaps = {ord(character): RESERVED for character in rare}
    for text in texts:
        for piece in cut(Document("", text), PART_BYTES):
            yield from filter(None, piece.text.decode().translate(gaps).split(RESERVED))


def train(
    texts: Sequence[bytes],
    *,
    vocab_size: int,
    model_type: str,
    coverage: float | None = None,
    symbols: Sequence[str] = (),
    say: Notice = lambda _: None,
) -> SentencePieceTokenizer:
    """A tokenizer of `vocab_size` ids.

    Args:
      texts: UTF-8, at least one.
      vocab_size: V, with the separator, 256 bytes, own symbols and the characters of `alphabet`.
      model_type: `bpe` or `unigram`.
      coverage: as for `alphabet`.
      symbols: pieces of the user, checked by `check_symbols`: always one token, never part of one.
      say: called with one sentence about the characters.

    Raises:
      UserError: a vocabulary that the texts cannot fill, or without room for what must be in it.
    """
    import sentencepiece

    room = vocab_size - FIXED - len(symbols)
    chosen = alphabet(texts, room, coverage)
    if room < max(chosen.kept, 1):
        raise UserError(
            f"--vocab_size {vocab_size} has {max(0, room)} ids beside {FIXED} fixed ones and "
            f"{len(symbols)} symbols, {chosen.kept} characters ask for a piece; give a larger "
            "--vocab_size, or a smaller --character_coverage, which makes bytes of the rarest"
        )
    say(str(chosen))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=parts(texts, chosen.rare),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            user_defined_symbols=list(symbols),
            character_coverage=1.0,  # of the characters that `parts` leaves
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            pad_id=0,
            pad_piece="<separator>",
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=8 * PART_BYTES,
            num_threads=1,  # with more threads, the model depends on their number
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        size = sum(map(len, texts))
        reason = str(error).split("] ")[-1].splitlines()[0] if str(error) else "no reason given"
        raise UserError(
            f"no {model_type} vocabulary of {vocab_size} can be made of {size:,} bytes of text "
            f"({reason}); choose another --vocab_size or give more text"
        ) from error
    return SentencePieceTokenizer(model.getvalue(), "the tokenizer just trained")


def check_symbols(symbols: Sequence[str]) -> None:
    """Refuse own symbols that SentencePiece would read as something else.

    Raises:
      UserError: names the symbol.
    """
    for symbol in symbols:
        taken = re.fullmatch(r"<unk>|<separator>|<0x[0-9A-F]{2}>", symbol)
        if not symbol or taken or re.search(rf"[\s\0{SPACE}{RESERVED}\ud800-\udfff]", symbol):
            raise UserError(
                f"--symbols names {symbol!r}; a symbol is text without white space, and none of "
                "the vocabulary's own names such as <unk>"
            )
    if len(set(symbols)) < len(symbols):
        raise UserError("--symbols names a symbol twice; leave one of them out")


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Sample, train, check and save; `program` is the command's name in its help."""
    from int_lm.config import command_line

    parser = command_line.ConfigParser(
        prog=program, description=command_line.started_as(__doc__, COMMAND, program)
    )
    parser.add_argument("--vocab_size", type=int, required=True, help="V, 512 to 65536")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--model_type",
        choices=["bpe", "unigram"],
        default="bpe",
        help="how pieces are chosen (default: bpe; unigram takes far longer)",
    )
    parser.add_argument(
        "--sample_bytes",
        type=int,
        default=100_000_000,
        help="text to train on, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        help="share of the text's characters that get a piece, above 0, at most 1; the rarest are "
        f"encoded as bytes (default: {COVERAGE}, but no more than half of the vocabulary)",
    )
    parser.add_argument(
        "--symbols",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="pieces of your own, such as '<user>': one token wherever the text has them",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the tokenizer that --out holds"
    )
    arguments, settings = parser.parse_config(argv)
    if names.tokenizer_file(arguments.out).exists() and not arguments.overwrite:
        raise UserError(
            f"{arguments.out} already holds a tokenizer; choose another --out, or replace it with "
            "--overwrite"
        )
    coverage = arguments.character_coverage
    if coverage is not None and not 0 < coverage <= 1:
        raise UserError(f"--character_coverage is {coverage}, must be above 0 and at most 1")
    check_symbols(arguments.symbols)
    if arguments.vocab_size not in VOCABULARY:
        raise UserError(f"--vocab_size is {arguments.vocab_size}, must lie between 512 and 65536")
    if arguments.sample_bytes < 1:
        raise UserError(f"--sample_bytes is {arguments.sample_bytes}, must be at least 1")
    texts = sample(settings.data, arguments.sample_bytes, print)
    size = sum(map(len, texts))
    print(f"training on {counted(len(texts), 'document')}, {counted(size, 'byte')}")
    began = time.monotonic()
    tokenizer = train(
        texts,
        vocab_size=arguments.vocab_size,
        model_type=arguments.model_type,
        coverage=coverage,
        symbols=arguments.symbols,
        say=print,
    )
    tokens = sum(map(len, tokenizer.encode_all(texts, threads=os.cpu_count() or 1)))
    tokenizer.save(Path(arguments.out))
    print(
        f"{arguments.out}: {tokenizer.vocab_size} pieces in {time.monotonic() - began:.0f} s, "
        f"{size / tokens:.3f} bytes a token\n"
        f"next: {command_line.command('inspect-tokenizer')} --tokenizer {arguments.out}"
    )


if __name__ == "__main__":
    with errors.reported("tokenization.train"):
        main()
