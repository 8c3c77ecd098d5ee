"""Pretrain int8 recurrent language models in integers, and use them.

    model = int_lm.train("quickstart", data={"path": "book.txt"}, run={"dir": "runs/book"})
    model.evaluate(["some text"])["bits_per_byte"]
    int_lm.load("runs/book").sample("The ", tokens=100, seed=1)

Every name below is documented where it is defined (`int_lm.api`, `int_lm.config`), and imported
from there when it is first used: `import int_lm` itself imports nothing, JAX least of all. Where it
is imported by a command, Ctrl-C ends that without a traceback (`int_lm.starting`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from int_lm import starting

if TYPE_CHECKING:
    from int_lm.api import Model as Model, load as load, train as train
    from int_lm.config import (
        Config as Config,
        DataConfig as DataConfig,
        DistributedConfig as DistributedConfig,
        EsConfig as EsConfig,
        MixtureConfig as MixtureConfig,
        ModelConfig as ModelConfig,
        RunConfig as RunConfig,
        SourceConfig as SourceConfig,
    )
    from int_lm.errors import UserError as UserError

_DEFINED_IN = {
    "int_lm.api": ("Model", "load", "train"),
    "int_lm.config": (
        "Config",
        "DataConfig",
        "DistributedConfig",
        "EsConfig",
        "MixtureConfig",
        "ModelConfig",
        "RunConfig",
        "SourceConfig",
    ),
    "int_lm.errors": ("UserError",),
    "int_lm.programs": ("__version__",),
}
_MODULES = {name: module for module, names in _DEFINED_IN.items() for name in names}

__all__ = [name for name in _MODULES if name != "__version__"]  # pyright: ignore


starting.listen()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'int_lm' has no attribute {name!r}")
    if name == "__version__":
        return importlib.import_module("int_lm.programs").version()
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
