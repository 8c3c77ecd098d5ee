"""Switches in the environment: variables of int_lm that are 0 or 1."""

import os

from int_lm.errors import require

NATIVE = "INT_LM_NATIVE"  # with 0, JAX computes everything
GPU_SEGMENTS = "INT_LM_GPU_SEGMENTS"  # with 1, GPUs have kernels of whole segments, too
DEFAULTS = {NATIVE: True, GPU_SEGMENTS: False}


def on(name: str) -> bool:
    """Whether a switch of `DEFAULTS` is 1; its default, if the variable is not set or empty.

    Raises:
      UserError: it is neither 0 nor 1.
    """
    value = os.environ.get(name, "")
    require(value in ("", "0", "1"), f"{name} is {value!r} in the environment, must be 0 or 1")
    return value == "1" if value else DEFAULTS[name]


def check() -> None:
    """Read all switches, so that a command refuses a wrong one, whether it needs it or not.

    Raises:
      UserError: as `on`.
    """
    for name in DEFAULTS:
        on(name)
