"""Ctrl-C while a command still imports: one line and exit code 130, as later (`errors.reported`).

`int_lm/__init__.py` calls `listen`, because the packages of commands are imported before their
`__main__` is. A process that only imports int_lm as a library is left alone.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
SCRIPTS = ("train.py", "eval.py", "data", "tokenization", "benchmarks")  # beside the package


def command() -> str | None:
    """The name of the command of int_lm that this process was started as; None for other ones."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:  # Python looks for the module of `python -m`; or it has another beginning
        options = sys.orig_argv[1:]
        place = options.index("-m") if "-m" in options and "-c" not in options else len(options)
        module = "".join(options[place + 1 : place + 2])
        return module if module.split(".")[0] == "int_lm" else None
    name = os.path.basename(path)
    if name == "int-lm":  # which pip makes
        return name
    place, beside = os.path.realpath(path), FOLDER + os.sep
    ours = place.startswith(beside) and place[len(beside) :].split(os.sep)[0] in SCRIPTS
    return name if ours else None


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
