"""Kernels: faster programs that compute the same bits as some JAX functions.

    @native.accelerated(cpu="likelihood")
    def log2_likelihood(logits_PV, targets_P): ...

attaches a kernel of `cpu` (C++) or of `gpu` (Pallas) to a function. Callers call the function as
if it had none; `log2_likelihood.by_jax` is the function without its kernels. `make` builds the
kernels for CPUs with `python -m int_lm.native`; JAX compiles those for GPUs when they run. Without
kernels, on other platforms, or with INT_LM_NATIVE=0 in the environment, JAX computes the same
integers.
"""

from int_lm.native.dispatch import (
    accelerated,
    available,
    instructions,
    on_gpu,
    supported,
    without_kernels,
)
from int_lm.native.segment import Members, at_once, over_tokens, segments

__all__ = [
    "Members",
    "accelerated",
    "at_once",
    "available",
    "instructions",
    "on_gpu",
    "over_tokens",
    "segments",
    "supported",
    "without_kernels",
]
