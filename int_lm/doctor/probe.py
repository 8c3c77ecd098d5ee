"""What JAX says of this machine, as JSON on stdout: `python -m int_lm.doctor.probe`.

It is a process of its own, because JAX may fail to start, or hang, on a machine that needs a
doctor.
"""

import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
from typing import Any

import jax

from int_lm import method, model
from int_lm.measure import rate
from int_lm.native import build, dispatch

SECONDS = 1.0  # that the int8 dots are measured


def main() -> None:
    """Print the answer; what libraries print goes to stderr."""
    answer, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(found()), file=answer)


def found() -> dict[str, Any]:
    """Devices, kernels and compilers.

    Returns:
      platform: the default platform of JAX, such as `cpu` or `gpu`.
      devices: names of the devices, in order.
      int8_gops: 10^9 int8 operations per second of the best dot on the first device.
      kernels: see `kernels`.
      compilers: the first line of `--version` of every C++ compiler that is found, by name.
    """
    return {
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "int8_gops": rate.best_dot_in(SECONDS),
        "kernels": kernels(),
        "compilers": compilers(),
    }


def kernels() -> dict[str, Any]:
    """The state of the kernels.

    Returns:
      possible: whether there are C++ kernels for this kind of processor and system.
      file: name of the file of built kernels; None if they are not built.
      level: see `dispatch.level`.
      used: names of the JAX functions that kernels stand for on the default platform.
    """
    for package in (model, method):  # functions with kernels are known once they are imported
        for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(part.name)
    module = "gpu" if dispatch.on_gpu() else "cpu"
    usable = module == "gpu" or (jax.default_backend() == "cpu" and dispatch.available())
    names = [each.by_jax.__name__ for each in dispatch.attached if module in each.kernels]
    return {
        "possible": build.possible(),
        "file": build.library().name if build.library().exists() else None,
        "level": dispatch.level(),
        "used": sorted(names) if usable else [],
    }


def compilers() -> dict[str, str]:
    """The first line of what each C++ compiler says of its version, by name."""
    found = {}
    for name in filter(shutil.which, build.COMPILERS):
        try:
            done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            found[name] = done.stdout.partition("\n")[0]
    return found


if __name__ == "__main__":
    main()
