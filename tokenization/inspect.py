"""Show a tokenizer: its pieces, bytes per token of every source, and whether it is lossless.

    python -m tokenization.inspect --tokenizer tokenizers/books --config configs/books.yaml

Held-out text is encoded and decoded again, and the command fails if a byte changes. No shards are
written: --bytes says how much of each source is read.
"""

import os
from collections.abc import Iterator, Sequence

import tokenization
from data import split
from data.sources import open_source
from int_lm import config, errors
from int_lm.config import DataConfig, MixtureConfig, command_line
from int_lm.errors import UserError, counted
from tokenization.interface import Tokenizer

COMMAND = "python -m tokenization.inspect"


def heldout(data: DataConfig, source: MixtureConfig, most_bytes: int) -> Iterator[bytes]:
    """The first held-out texts of a source, until about `most_bytes` bytes are read.

    If the whole source has no more bytes than that, all its texts.
    """
    opened = open_source(source, data.document_bytes, notice=print)
    size = opened.size()
    every = size is not None and size <= most_bytes
    read = 0
    for document, _ in opened.read():
        if document.text and (every or split.is_heldout(document.text, data.holdout)):
            yield document.text
            read += len(document.text)
            if read >= most_bytes:
                break
    opened.tally.tell(print)


def pieces(tokenizer: Tokenizer) -> Iterator[str]:
    """One line for each id."""
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index])
        name = "separator" if index == tokenizer.separator else text.decode("utf-8", "replace")
        yield f"{index:>6}  {text.hex(' ') or '-':<24}  {name!r}"


def check(tokenizer: Tokenizer, texts: Sequence[bytes]) -> tuple[int, int]:
    """(bytes, tokens) of texts; checks that decoding gives each of them again.

    Raises:
      UserError: encoding and decoding changes a text.
    """
    size = tokens = 0
    for ids, text in zip(
        tokenizer.encode_all(texts, threads=os.cpu_count() or 1), texts, strict=True
    ):
        back = tokenizer.decode(ids)
        if back != text or tokenizer.count_bytes(ids) != len(text):
            raise UserError(f"the tokenizer loses text: {text[:60]!r} came back as {back[:60]!r}")
        size, tokens = size + len(text), tokens + len(ids)
    return size, tokens


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Print what was found. `program` is what the help calls this command."""
    parser = command_line.ConfigParser(
        prog=program, description=command_line.started_as(__doc__, COMMAND, program)
    )
    parser.add_argument("--tokenizer", required=True, help="as of --data.tokenizer")
    parser.add_argument("--pieces", action="store_true", help="print every piece")
    parser.add_argument(
        "--bytes",
        type=int,
        default=4_000_000,
        help="held-out text of each source to check, at most (default: %(default)s)",
    )
    arguments, settings = parser.parse_config(argv)
    tokenizer = tokenization.load(arguments.tokenizer)
    print(f"{tokenizer.name}, {tokenizer.vocab_size} ids, digest {tokenizer.digest()[:16]}")
    if arguments.pieces:
        for line in pieces(tokenizer):
            print(line)
    for source in config.sources_of(settings.data):
        texts = list(heldout(settings.data, source, arguments.bytes))
        if not texts:
            raise UserError(f"{source.name} holds no held-out text; raise --data.holdout")
        size, tokens = check(tokenizer, texts)
        print(
            f"{source.name}: {counted(len(texts), 'text')}, {size:,} bytes, {tokens:,} tokens, "
            f"{size / tokens:.3f} bytes a token; all came back whole"
        )


if __name__ == "__main__":
    with errors.reported("tokenization.inspect"):
        main()
