"""Sample text: `python -m int_lm.sample --run DIR --prompt TEXT`, or `--export DIR`."""

import argparse
import codecs
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from int_lm import errors, export, hub, plugins, programs, progress, runtime, sample
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, explained, reported
from int_lm.sample import saved, writing
from int_lm.sample.stops import until

PROGRAM = "int_lm.sample"
COMMAND = f"python -m {PROGRAM}"


def stream(
    prompt: bytes,
    ids: Iterable[int],
    decode: Callable[[list[int]], bytes] = bytes,
    stops: Sequence[bytes] = (),
) -> None:
    """Write the prompt, and then every token as soon as it is drawn, to stdout as UTF-8 text.

    Bytes that are not UTF-8 become replacement characters. On a terminal, control characters
    become escapes such as `\\x1b`, so that the text of a model cannot control the terminal.

    Args:
      prompt: UTF-8.
      ids: the tokens.
      decode: turns ids into bytes.
      stops: the text ends before the first of these that occurs in it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for characters that stdout cannot show
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(piece: bytes, final: bool = False) -> None:
        text = decoder.decode(piece, final)
        sys.stdout.write(progress.shown(text.encode()) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    write(prompt)
    for piece in until((decode([token]) for token in ids), stops):
        write(piece)
    write(b"", final=True)
    sys.stdout.write("\n")
    sys.stdout.flush()


def parser(program: str = COMMAND) -> OneLineParser:
    """The parser of the command line; its defaults of draws are those of `runtime.Sampler`."""
    default = runtime.Sampler()
    result = OneLineParser(
        prog=program,
        description="Continue a prompt. The same weights and arguments give the same text on every "
        "machine, from a run and from its export alike.",
    )
    result.add_model_arguments()
    prompt = result.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", default="", help="text to continue")
    prompt.add_argument(
        "--prompt_file", metavar="FILE", help="file that holds the prompt; - for standard input"
    )
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
        "--min_p",
        type=float,
        default=default.min_p,
        help="draw among tokens at least so likely as this times the likeliest (default: 0)",
    )
    result.add_argument(
        "--repetition_penalty",
        type=float,
        default=default.repetition_penalty,
        help="makes tokens of the text so far less likely (default: 1, no penalty)",
    )
    result.add_argument(
        "--repetition_window",
        type=int,
        default=default.repetition_window,
        help="the penalty is for the last so many tokens only (default: 0, all)",
    )
    result.add_argument(
        "--samples",
        type=int,
        default=1,
        help="texts to write; each is that of the next seed (default: %(default)s)",
    )
    result.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    result.add_argument("--save_state", metavar="FILE", help="save where the text stopped")
    result.add_argument(
        "--state", metavar="FILE", help="go on where a saved text stopped, the prompt after it"
    )
    result.add_argument(
        "--no_stop",
        action="store_true",
        help="where a text ends, begin another after a separator",
    )
    result.add_plugin_argument()
    return result


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, then load the model, so that a mistake is reported at once.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parser(program).parse_strict(argv)
    plugins.trust(*arguments.plugin)
    samplers = _samplers(arguments)
    prompt = _prompt(arguments)
    if arguments.export:
        arguments.export = str(hub.local(arguments.export))
        model = export.load(arguments.export)
        identity, V = model.config["tokenizer"], model.config["vocab_size"]
        initial_state, weights_hash = model.initial_state(1), model.config["weights_hash"]
        open_reader = functools.partial(runtime.reader, model)
    else:
        if not Path(arguments.run).is_dir():
            raise UserError(f"no run at {arguments.run}; name the directory that train.py printed")
        from int_lm import cache, run  # imports JAX, which an export does not need
        from int_lm.model import hashing

        cache.keep()
        opened = run.open_run(
            arguments.run, arguments.step, say=lambda text: print(text, file=sys.stderr)
        )
        network, identity = opened.recipe.model, opened.tokenizer
        initial_state, V = network.initial_state(1), network.vocab_size
        needed = arguments.state or arguments.save_state
        weights_hash = hashing.weights_hash(opened.weights) if needed else ""
        open_reader = functools.partial(sample.reader, network, opened.weights)
    programs.make_importable()
    import tokenization

    tokenizer = tokenization.load_own(arguments.export or arguments.run, identity)
    ids = tokenizer.encode(prompt).tolist()
    start = saved.beginning(initial_state)
    if arguments.state:
        start = saved.read(arguments.state, initial_state, weights_hash, V)
    stops = [os.fsencode(text) for text in arguments.stop]
    with progress.bar("reading the prompt", len(ids)) as update:
        written = writing.texts(
            start,
            ids,
            open_reader,
            samplers,
            tokens=arguments.tokens,
            stop=not arguments.no_stop,
            progress=update,
        )
        text = next(written)
    try:
        for sampler in samplers:
            if len(samplers) > 1:
                print(f"=== seed {sampler.seed}")
            stream(prompt, text, tokenizer.decode, stops)
            last, text = text, next(written, text)
    except KeyboardInterrupt as stopped:  # the user has enough text
        sys.stdout.write("\n")
        sys.exit(explained(stopped)[0])
    if arguments.save_state:
        saved.write(arguments.save_state, last.stopped(), weights_hash)


def _samplers(arguments: argparse.Namespace) -> list[runtime.Sampler]:
    """One sampler for each text, with consecutive seeds.

    Raises:
      UserError: an argument is outside its range, or arguments contradict one another.
    """
    for name in ("tokens", "samples"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}, must be at least 1")
    if arguments.export and arguments.step is not None:
        raise UserError("--step chooses a checkpoint of --run; an export holds one step only")
    if "" in arguments.stop:
        raise UserError("--stop is empty; give a text that ends the sample")
    if arguments.save_state and arguments.samples > 1:
        raise UserError("--save_state saves one text; use it with --samples 1")
    names = [field.name for field in dataclasses.fields(runtime.Sampler)]
    settings = {name: getattr(arguments, name) for name in names}
    seeds = range(arguments.seed, arguments.seed + arguments.samples)
    try:
        return [runtime.Sampler(**settings | {"seed": seed}) for seed in seeds]
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _prompt(arguments: argparse.Namespace) -> bytes:
    """The bytes of the prompt.

    Raises:
      UserError: the file with the prompt cannot be read.
    """
    name = arguments.prompt_file
    if name is None:
        return os.fsencode(arguments.prompt)
    try:
        return errors.standard_input().read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the prompt {name}: {error.strerror}; name a file of text, or -"
        ) from error


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
