"""Kernels: what some JAX functions compute, to the bit and faster.

    @native.accelerated(cpu="likelihood")
    def log2_likelihood(logits_PV, targets_P): ...

attaches a kernel to a function: of `cpu` (C++) or of `gpu` (Pallas). The function is called as
before; `log2_likelihood.by_jax` is the plain one. Kernels for CPUs are built by
`python -m int_lm.native`, which `make` does; those for GPUs are compiled where they run. Without
them, on other platforms, or with INT_LM_NATIVE=0 in the environment, JAX computes everything: the
same integers.
"""

from int_lm.native.dispatch import accelerated, available, instructions, on_gpu, without_kernels

__all__ = ["accelerated", "available", "instructions", "on_gpu", "without_kernels"]
