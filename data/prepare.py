"""Prepare every source of a configuration: write its token shards.

    python -m data.prepare --config configs/minipile.yaml

`train.py` does the same if shards are missing. If the command is killed, the next one continues at
the first unfinished shard and writes the same bytes. The shards of a source lie in
`<data.shards>/<name>-<key>`. The key is a digest of all that they depend on: the configuration, the
tokenizer, and the names, sizes and times of the files.
"""

from collections.abc import Sequence

from int_lm import errors, signals
from int_lm.config import command_line
from int_lm.errors import counted

COMMAND = "python -m data.prepare"


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Prepare every source of a configuration; `program` is the command's name in its help."""
    parser = command_line.ConfigParser(
        prog=program, description=command_line.started_as(__doc__, COMMAND, program)
    )
    _, settings = parser.parse_config(argv)

    import tokenization  # both imports are here, so that --help answers at once
    from data.open import open_corpus

    tokenizer = tokenization.load(settings.data.tokenizer)
    try:
        opened = open_corpus(settings.data, tokenizer, say=print)
        for done in opened.sources:
            print(f"{done.name}: {done.directory}, {counted(len(done.shards), 'shard')}, sound")
        if settings.data.window_bytes:
            print("this is the first stage; training makes the others while it reads")
    except signals.Stopped as stopped:
        kept = "the same command goes on after the last finished shard"
        raise signals.Stopped(stopped.number, kept) from None


if __name__ == "__main__":
    with errors.reported("data.prepare"):
        main()
