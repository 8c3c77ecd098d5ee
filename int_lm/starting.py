"""Ctrl-C while a command still imports: one line and exit code 130, as later (`errors.reported`).

`int_lm/__init__.py` calls `listen`, because the packages of commands are imported before their
`__main__` is. A process that only imports int_lm as a library is left alone.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
SCRIPTS = ("train.py", "eval.py", "data", "tokenization", "benchmarks")  # beside the package


def command() -> str | None:
    """The name of the command of int_lm that this process was started as; None for other ones.

    While Python looks for the module of `python -m`, `sys.argv[0]` is "-m"; later it is the path of
    the program.
    """
    started = sys.argv[0] if sys.argv else ""
    if started == "-m":
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
        ours = module and module[0].split(".")[0] == "int_lm"
        return module[0] if ours else None
    name = os.path.basename(started)
    if name == "int-lm":
        return name
    path = os.path.realpath(started)
    if path.startswith(FOLDER + os.sep) and path[len(FOLDER) + 1 :].split(os.sep)[0] in SCRIPTS:
        return name
    return None


def listen() -> None:
    """If this process is a command of int_lm, let Ctrl-C end it without a traceback from now on.

    What the command does later about signals goes before this.
    """
    program = command()
    if program is None:
        return
    import signal  # imported here, because `import int_lm` alone is to import nothing

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, as in the background, or somebody else's

    def end(number: int, frame: object) -> None:
        del frame
        os.write(2, f"{program}: error: interrupted; nothing was begun\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGINT, end)
