"""Serve an export over HTTP: `python -m int_lm.serve --export DIR --port N`."""

import dataclasses
import importlib.util
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from int_lm import export, hub, plugins, programs
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, reported, require, say
from int_lm.serve.request import Limits, Served

PROGRAM = "int_lm.serve"
COMMAND = f"python -m {PROGRAM}"
HELP = {
    "concurrent": "texts that are written at once, and by one request at most",
    "queued": "requests that wait for room; more are refused with status 503",
    "max_tokens": "tokens of one text at most",
    "max_prompt_tokens": "tokens of the prompts of a request at most",
    "max_body_bytes": "bytes of a request at most",
    "timeout": "seconds a client has to send a request, or to take a piece of the response",
}
LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))


def parser(program: str = COMMAND) -> OneLineParser:
    """The parser of the command line."""
    result = OneLineParser(
        prog=program,
        description="Serve an exported model over HTTP, with the OpenAI completions interface "
        "(POST /v1/completions, GET /v1/models, GET /health) and a page to try it in a browser "
        "(/). The same seed gives the text of int_lm.sample, whatever else is computed.",
    )
    result.add_export_argument()
    result.add_argument(
        "--host",
        default="127.0.0.1",
        help="interface to listen at (default: %(default)s, this machine alone)",
    )
    result.add_argument(
        "--port", type=int, default=8000, help="port; 0 for a free one (default: %(default)s)"
    )
    result.add_argument(
        "--name", default="", help="name of the model in requests (default: that of DIR)"
    )
    for field in dataclasses.fields(Limits):
        result.add_argument(
            f"--{field.name}",
            type=int,
            default=field.default,
            metavar="N",
            help=f"{HELP[field.name]} (default: %(default)s)",
        )
    result.add_argument("--log_requests", action="store_true", help="print a line for each request")
    result.add_plugin_argument()
    return result


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Check the arguments, load the model, and serve it until a signal comes.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parser(program).parse_strict(argv)
    limits = Limits(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    )
    for name in HELP:
        least = 0 if name == "queued" else 1
        value = getattr(limits, name)
        require(value >= least, f"--{name} is {value}, must be at least {least}")
    require(0 <= arguments.port < 2**16, f"--port is {arguments.port}, must be 0 to 65535")
    for module in ("starlette", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"the server needs {module}; pip install 'int-lm[serve]'")
    plugins.trust(*arguments.plugin)
    directory = hub.local(arguments.export)
    model = export.load(directory)
    programs.make_importable()
    import tokenization
    from int_lm.serve import app, server
    from int_lm.serve.writing import Spelling

    tokenizer = tokenization.load_own(directory, model.config["tokenizer"])
    name = arguments.name or _name(arguments.export)
    served = Served(name, model.config["vocab_size"], tokenizer.encode)
    at = server.bound(arguments.host, arguments.port)
    port = at.getsockname()[1]
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    own = _is_loopback(at.getsockname()[0])
    if not own:
        say(f"{program}: whoever reaches {shown}:{port} can use the model; there is no password")
    desk = app.Desk(served, model.config["weights_hash"], Spelling(model, tokenizer.decode), limits)
    hosts = LOOPBACK | {shown.lower()} if own else frozenset()
    server.serve(
        app.application(desk, hosts),
        desk.worker,
        at,
        lambda: print(f"serving {name} at http://{shown}:{port} (Ctrl-C stops)", flush=True),
        arguments.log_requests,
    )


def _name(export: str) -> str:
    """The last part of a directory's name, or of a repository's."""
    if export.startswith(hub.PREFIX):
        return export.partition("@")[0].rpartition("/")[2]
    return Path(export).resolve().name


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
