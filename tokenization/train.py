"""Train a SentencePiece tokenizer on a configuration's text.

    python -m tokenization.train --data.path books/ --vocab_size 8192 --out tokenizers/books

The tokenizer is trained on a sample of --sample_bytes of the training documents: those with the
smallest hashes, whatever their order. So memory does not grow with the text. Settings keep every
text as it is: no normalisation, no added spaces, bytes for characters without a piece. Id 0 is the
separator.
"""

import hashlib
import heapq
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data import split
from data.documents import Notice
from data.sources import open_source
from int_lm import config, errors, progress
from int_lm.config import DataConfig
from int_lm.errors import UserError
from tokenization.sentence_piece import SentencePieceTokenizer

COMMAND = "python -m tokenization.train"
VOCABULARY = range(512, 65537)
LINE_BYTES = 4096  # longer lines are cut; the trainer's own limit is far higher


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


def lines(texts: Iterable[bytes]) -> Iterator[str]:
    """The lines of texts, in pieces of at most about `LINE_BYTES`, for the trainer."""
    for text in texts:
        for line in text.decode().splitlines():
            for start in range(0, len(line), LINE_BYTES):
                yield line[start : start + LINE_BYTES]


def train(texts: Sequence[bytes], *, vocab_size: int, model_type: str) -> SentencePieceTokenizer:
    """A tokenizer of `vocab_size` ids.

    Args:
      texts: UTF-8, at least one.
      vocab_size: V, with the separator, 256 bytes and every character of the texts.
      model_type: `bpe` or `unigram`.

    Raises:
      UserError: a vocabulary that the texts cannot fill, or that has no room for their characters.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=0.9999,  # rarer characters are encoded as bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            pad_id=0,
            pad_piece="<separator>",
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=8 * LINE_BYTES,
            num_threads=1,  # with more the model depends on their number
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


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Sample, train, check, save; `program` is what the help calls this command."""
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
    arguments, settings = parser.parse_config(argv)
    if arguments.vocab_size not in VOCABULARY:
        raise UserError(f"--vocab_size is {arguments.vocab_size}, must lie between 512 and 65536")
    if arguments.sample_bytes < 1:
        raise UserError(f"--sample_bytes is {arguments.sample_bytes}, must be at least 1")
    texts = sample(settings.data, arguments.sample_bytes, print)
    size = sum(map(len, texts))
    print(f"training on {len(texts):,} documents, {size:,} bytes")
    began = time.monotonic()
    tokenizer = train(texts, vocab_size=arguments.vocab_size, model_type=arguments.model_type)
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
