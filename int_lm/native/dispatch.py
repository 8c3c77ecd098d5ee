"""Attaches kernels to the JAX functions that they stand for, and chooses between them."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Generic, Literal, ParamSpec, TypeVar

import jax

from int_lm.native import build

SWITCH = "INT_LM_NATIVE"  # of the environment: 0 leaves everything to JAX

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")  # an array or a tree of arrays


class Accelerated(Generic[Parameters, Result]):
    """A function in JAX with kernels of the same signature and the same result.

    Attributes:
      by_jax: the function without its kernels.
      kernels: their names, by the module of this package that has them: `cpu`, `gpu`.
    """

    def __init__(self, by_jax: Callable[Parameters, Result], kernels: dict[str, str]) -> None:
        self.by_jax, self.kernels = by_jax, kernels
        functools.update_wrapper(self, by_jax)

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """The kernel of the platform that the program runs on, where there is one; else JAX.

        A kernel that returns NotImplemented does not take such operands: JAX computes the result.
        """

        def by_kernel(module: str) -> Result:
            result = kernel(module, self.kernels[module])(*args, **kwargs)
            return self.by_jax(*args, **kwargs) if result is NotImplemented else result

        branches = {}
        if "cpu" in self.kernels and available():
            branches["cpu"] = functools.partial(by_kernel, "cpu")
        if "gpu" in self.kernels and on_gpu():
            branches["cuda"] = functools.partial(by_kernel, "gpu")
        if not branches or not _wanted:
            return self.by_jax(*args, **kwargs)
        default = functools.partial(self.by_jax, *args, **kwargs)
        return jax.lax.platform_dependent(**branches, default=default)


attached: list[Accelerated] = []  # every function with kernels, of the modules that are imported
_wanted = True


def accelerated(
    **kernels: str,
) -> Callable[[Callable[Parameters, Result]], Accelerated[Parameters, Result]]:
    """Decorates a JAX function with kernels: `@accelerated(cpu="norm")` is `cpu.norm`.

    The kernel has the function's signature. It gives the same bits, or returns NotImplemented for
    operands that it does not take.
    """

    def attach(function: Callable[Parameters, Result]) -> Accelerated[Parameters, Result]:
        attached.append(Accelerated(function, kernels))
        return attached[-1]

    return attach


def kernel(module: str, name: str) -> Callable:
    """The kernel of this name, of `cpu` or `gpu`."""
    if module == "gpu":
        from int_lm.native import gpu as kernels  # imports Pallas, which takes a while
    else:
        from int_lm.native import cpu as kernels
    return getattr(kernels, name)


@functools.cache
def available() -> bool:
    """The kernels are built, wanted, and made for this processor; registers them with JAX."""
    if os.environ.get(SWITCH) == "0" or not build.library().exists():
        return False
    loaded = ctypes.CDLL(str(build.library()))
    if loaded.int_lm_supported() == 0:
        return False
    loaded.int_lm_kernels.restype = ctypes.c_char_p
    for name in loaded.int_lm_kernels().decode().split():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return True


def on_gpu() -> bool:
    """Programs run on a GPU, unless they are told not to, and its kernels are wanted."""
    return os.environ.get(SWITCH) != "0" and jax.default_backend() == "gpu"


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Programs that are traced inside call no kernel. For tests and benchmarks."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


@contextlib.contextmanager
def instructions(name: Literal["widest", "avx2"]) -> Iterator[None]:
    """Kernels for CPUs that run inside use no wider instructions. For tests and benchmarks.

    Results must be waited for inside: JAX starts programs without waiting.
    """
    only = ctypes.CDLL(str(build.library())).int_lm_avx2_only
    only(int(name == "avx2"))
    try:
        yield
    finally:
        only(0)
