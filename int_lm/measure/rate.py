"""The speed of this machine: the best int8 dot that JAX's own compiler makes, without kernels."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from int_lm.arithmetic import fixed

Shape = tuple[int, int, int]  # rows, inputs, outputs

SHAPES: tuple[Shape, ...] = ((8192, 64, 64), (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256))
GPU_SHAPES: tuple[Shape, ...] = ((65536, 256, 256), (65536, 1024, 1024), (16384, 8192, 8192))


def dots_of(shapes: Sequence[Shape]) -> Callable[[], Any]:
    """int8 dots of random operands, (rows, inputs, outputs) each, in one compiled function."""
    generator = np.random.default_rng(0)

    def operand(*shape: int) -> jax.Array:
        return jax.device_put(generator.integers(-127, 128, shape, dtype=np.int8))

    pairs = [(operand(rows, inputs), operand(outputs, inputs)) for rows, inputs, outputs in shapes]
    return functools.partial(jax.jit(lambda pairs: [fixed.dot(*pair) for pair in pairs]), pairs)


def best_dot(seconds_of: Callable[[Callable[[], Any]], float]) -> float:
    """The best int8 dot of some shapes on the default device, in 10^9 operations per second.

    Args:
      seconds_of: measures a call of a function, in seconds.
    """
    shapes = GPU_SHAPES if jax.default_backend() == "gpu" else SHAPES
    return max(2 * math.prod(shape) / seconds_of(dots_of([shape])) / 1e9 for shape in shapes)


def best_dot_in(seconds: float) -> float:
    """`best_dot`, in about so many seconds, compilation not counted."""
    shapes = GPU_SHAPES if jax.default_backend() == "gpu" else SHAPES
    return best_dot(functools.partial(_median, seconds=seconds / len(shapes)))


def _median(function: Callable[[], Any], seconds: float) -> float:
    """The median time of a call, in seconds, after one that compiles; calls take `seconds`."""
    jax.block_until_ready(function())
    return statistics.median(_times(function, seconds))


def _times(function: Callable[[], Any], seconds: float) -> Iterable[float]:
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        jax.block_until_ready(function())
        now = time.perf_counter()
        yield now - start
        if now >= end:
            return
