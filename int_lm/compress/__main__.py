"""Compress or decompress: `python -m int_lm.compress FILE -o OUT --export DIR [--decompress]`."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from int_lm import compress, errors, export, hub, plugins, programs, progress, signals
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, counted, reported, require, say
from int_lm.files import atomic

PROGRAM = "int_lm.compress"
COMMAND = f"python -m {PROGRAM}"


def parser(program: str = COMMAND) -> OneLineParser:
    """The parser of the command line."""
    result = OneLineParser(
        prog=program,
        description="Compress a file with an exported model, losslessly. The same export reads the "
        "archive on every machine. Any file can be compressed; text like the model's own becomes "
        "smallest.",
    )
    result.add_argument("file", metavar="FILE", help="file to read; - for standard input")
    result.add_argument(
        "-o", "--out", metavar="FILE", required=True, help="file to write; - for standard output"
    )
    result.add_export_argument()
    result.add_argument(
        "--learn",
        action="store_true",
        help="learn while reading, above all what repeats itself: smaller and slower",
    )
    result.add_argument("--decompress", action="store_true", help="FILE is an archive: undo it")
    result.add_argument(
        "--lanes",
        type=int,
        default=0,
        metavar="N",
        help="parts of a block that are coded side by side: more are faster and compress a little "
        "less (default: by the size of the file)",
    )
    result.add_argument("--overwrite", action="store_true", help="replace a file at --out")
    result.add_plugin_argument()
    return result


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file to read; its size in bytes is None for standard input."""
    if name == "-":
        yield errors.standard_input(), None
        return
    path = Path(name)
    if path.is_dir() or not path.exists():
        raise UserError(f"there is no file {name}; name the file to read")
    with path.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size if path.is_file() else None


@contextlib.contextmanager
def _written(name: str) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name until it is complete.

    For `-`, the bytes are kept in memory and written to stdout at the end.
    """
    if name == "-":
        held = io.BytesIO()
        yield held
        sys.stdout.buffer.write(held.getvalue())
        sys.stdout.buffer.flush()
        return
    with atomic.replacement(Path(name)) as file:
        yield file


def codec_of(name: str) -> compress.Codec:
    """The model and tokenizer of an export.

    Args:
      name: its directory, or `hf://OWNER/NAME@REVISION`.

    Raises:
      UserError: the directory is not an export, or it is damaged; or the hub does not give it.
    """
    directory = hub.local(name)
    model = export.load(directory)
    programs.make_importable()
    import tokenization

    tokenizer = tokenization.load_own(directory, model.config["tokenizer"])
    return compress.Codec(model, tokenizer.encode, tokenizer.decode)


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, then load the model, so that a mistake is reported at once.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parser(program).parse_strict(argv)
    plugins.trust(*arguments.plugin)
    if not 0 <= arguments.lanes <= compress.LANES_MAX:
        raise UserError(f"--lanes is {arguments.lanes}, must be between 0 and {compress.LANES_MAX}")
    if arguments.out == "-":
        require(not errors.output_is_closed(), "standard output is closed; name a file with -o")
    else:
        atomic.check_free(Path(arguments.out), overwrite=arguments.overwrite)
    with _opened(arguments.file) as (source, size):
        codec = codec_of(arguments.export)
        what = "decompressing" if arguments.decompress else "compressing"
        of_bytes = codec.model.config["tokenizer"]["kind"] == "bytes"  # else a token is several
        total = size if of_bytes and not arguments.decompress else None
        with progress.bar(what, total) as update, _written(arguments.out) as target:
            if arguments.decompress:
                compress.decompress(codec, source, target, progress=update)
            else:
                compress.compress(
                    codec,
                    source,
                    target,
                    lanes=arguments.lanes,
                    learn=arguments.learn,
                    progress=update,
                )
            after = target.tell()
    if size and after:
        rate = 8 * (size if arguments.decompress else after)
        rate /= after if arguments.decompress and after else size
        say(f"{counted(size, 'byte')} became {after:,}: {rate:.4f} bits per byte")


if __name__ == "__main__":
    with reported(PROGRAM, signals.NOTHING):
        main()
