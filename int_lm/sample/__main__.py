"""Sample text: `python -m int_lm.sample --run DIR --prompt TEXT`, or `--export DIR`."""

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from int_lm import export, plugins, programs, progress, runtime, sample
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, explained, reported

PROGRAM = "int_lm.sample"
COMMAND = f"python -m {PROGRAM}"


def stream(prompt: bytes, ids: Iterable[int], decode: Callable[[list[int]], bytes] = bytes) -> None:
    """Write the prompt and then every token as it comes to stdout, as UTF-8 text.

    Bytes that are not UTF-8 become replacement characters. On a terminal, control characters
    become escapes such as `\\x1b`, for a model may well write one that commands the terminal.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where stdout cannot show a character
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(piece: bytes, final: bool = False) -> None:
        text = decoder.decode(piece, final)
        sys.stdout.write(progress.shown(text.encode()) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    write(prompt)
    for token in ids:
        write(decode([token]))
    write(b"", final=True)
    sys.stdout.write("\n")
    sys.stdout.flush()


def parser(program: str = COMMAND) -> OneLineParser:
    """The command line; the defaults of the draw are those of `runtime.Sampler`."""
    default = runtime.Sampler()
    result = OneLineParser(
        prog=program,
        description="Continue a prompt. The same weights and arguments give the same text on every "
        "machine, from a run and from its export alike.",
    )
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run directory that train.py wrote")
    source.add_argument("--export", metavar="DIR", help="directory that int_lm.export wrote")
    result.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")
    result.add_argument("--prompt", metavar="TEXT", default="", help="text to continue")
    result.add_argument(
        "--tokens", type=int, default=256, help="tokens to add at most (default: %(default)s)"
    )
    result.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help="1: the model's own distribution; 0: always the likeliest (default: %(default)s)",
    )
    result.add_argument(
        "--top_k",
        type=int,
        default=default.top_k,
        help="draw among the k likeliest tokens only (default: 0, all)",
    )
    result.add_argument(
        "--top_p",
        type=float,
        default=default.top_p,
        help="draw among the fewest likeliest tokens that have this probability together "
        "(default: %(default)s)",
    )
    result.add_argument(
        "--seed", type=int, default=default.seed, help="seed of the draws (default: %(default)s)"
    )
    result.add_argument(
        "--no_stop",
        action="store_true",
        help="where a text ends, begin another after a separator",
    )
    result.add_plugin_argument()
    return result


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, then load the model: a mistake is answered at once.

    Args:
      program: what the help calls this command.
    """
    arguments = parser(program).parse_strict(argv)
    plugins.trust(*arguments.plugin)
    if arguments.tokens < 1:
        raise UserError(f"--tokens is {arguments.tokens}, must be at least 1")
    if arguments.export and arguments.step is not None:
        raise UserError("--step chooses a checkpoint of --run; an export holds one step only")
    try:
        sampler = runtime.Sampler(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if arguments.export:
        model = export.load(arguments.export)
        read, identity = runtime.reader(model), model.config["tokenizer"]
    else:
        if not Path(arguments.run).is_dir():
            raise UserError(f"no run at {arguments.run}; name the directory that train.py printed")
        from int_lm import run  # with JAX, which an export does not need

        opened = run.open_run(
            arguments.run, arguments.step, say=lambda text: print(text, file=sys.stderr)
        )
        read, identity = sample.reader(opened.recipe.model, opened.weights), opened.tokenizer
    programs.make_importable()
    import tokenization
    from int_lm import resume

    tokenizer = tokenization.load(Path(arguments.export or arguments.run) / "tokenizer")
    resume.check_tokenizer(identity, tokenization.identity(tokenizer))
    prompt = os.fsencode(arguments.prompt)
    ids = tokenizer.encode(prompt).tolist()
    stop = not arguments.no_stop
    drawn = runtime.generate(read, ids, sampler, tokens=arguments.tokens, stop=stop)
    try:
        stream(prompt, drawn, tokenizer.decode)
    except KeyboardInterrupt as stopped:  # enough text
        sys.stdout.write("\n")
        sys.exit(explained(stopped)[0])


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
