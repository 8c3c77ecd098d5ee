"""Attaches kernels to JAX functions, and chooses at each call between kernel and function.

What is chosen within a context, such as `without_kernels`, is so in the thread that entered it:
the warm-up of a run traces its programs beside the main thread, which traces the step.
"""

import contextlib
import contextvars
import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, ParamSpec, TypeVar

import jax

from int_lm import switches
from int_lm.native import build

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")  # an array or a tree of arrays


class Accelerated(Generic[Parameters, Result]):
    """A JAX function with kernels of the same signature and the same result.

    Attributes:
      by_jax: the function without its kernels.
      kernels: names of the kernels, by the module of this package that has them (`cpu` or `gpu`).
    """

    def __init__(self, by_jax: Callable[Parameters, Result], kernels: dict[str, str]) -> None:
        self.by_jax, self.kernels = by_jax, kernels
        functools.update_wrapper(self, by_jax)

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """Call the kernel for the platform of the program; without one, the JAX function.

        A kernel returns NotImplemented for operands that it does not support. Then the JAX
        function computes the result.
        """

        def by_kernel(module: str) -> Result:
            result = kernel(module, self.kernels[module])(*args, **kwargs)
            return self.by_jax(*args, **kwargs) if result is NotImplemented else result

        if alone := _alone.get():
            called = self.kernels.get("cpu") in alone
            return by_kernel("cpu") if called else self.by_jax(*args, **kwargs)
        branches = {}
        if "cpu" in self.kernels and available():
            branches["cpu"] = functools.partial(by_kernel, "cpu")
        if "gpu" in self.kernels and on_gpu():
            branches["cuda"] = functools.partial(by_kernel, "gpu")
        if not branches or not wanted():
            return self.by_jax(*args, **kwargs)
        default = functools.partial(self.by_jax, *args, **kwargs)
        return jax.lax.platform_dependent(**branches, default=default)


attached: list[Accelerated] = []  # every function with kernels in the modules imported so far
_wanted = contextvars.ContextVar("whether kernels are called", default=True)
_alone = contextvars.ContextVar("kernels that alone are called", default=frozenset[str]())


def accelerated(
    **kernels: str,
) -> Callable[[Callable[Parameters, Result]], Accelerated[Parameters, Result]]:
    """A decorator that attaches kernels: `@accelerated(cpu="norm")` attaches `cpu.norm`.

    The kernel has the function's signature. It computes the same bits, or returns NotImplemented
    for operands that it does not support.

    Args:
      kernels: the name of the kernel, by module (`cpu` or `gpu`).
    """

    def attach(function: Callable[Parameters, Result]) -> Accelerated[Parameters, Result]:
        attached.append(Accelerated(function, kernels))
        return attached[-1]

    return attach


def kernel(module: str, name: str) -> Callable:
    """The kernel called `name` of the module `cpu` or `gpu`."""
    if module == "gpu":
        from int_lm.native import gpu as kernels  # imports Pallas, which is slow
    else:
        from int_lm.native import cpu as kernels
    return getattr(kernels, name)


def shared_library() -> ctypes.CDLL:
    """The kernels for CPUs, which must be built, with the types of their functions.

    Raises:
      OSError: they cannot be loaded.
    """
    loaded = ctypes.CDLL(str(build.library()))
    for function in (loaded.int_lm_kernels, loaded.int_lm_instructions, loaded.int_lm_add_tile):
        function.restype = ctypes.c_char_p
    loaded.int_lm_use.argtypes = [ctypes.c_char_p]
    loaded.int_lm_add_tile.argtypes = [ctypes.c_int64, ctypes.c_char_p]
    return loaded


def supported() -> tuple[str, ...]:
    """Instruction sets that kernels for CPUs, which must be built, and this processor have.

    Returns:
      Their names, the one that is used first: `vnni` (AVX-512 VNNI), `avx_vnni`, `avx2`; on ARM
      `dotprod` (NEON with dot products), `neon`.
    """
    return tuple(shared_library().int_lm_instructions().decode().split())


def level() -> str:
    """What keeps the kernels for CPUs from being used, or the instructions that they use.

    Returns:
      `switched off` (INT_LM_NATIVE is 0), `not built`, `unsupported` (this processor lacks their
      instructions), or one of the names of `supported`.
    """
    if not switches.on(switches.NATIVE):
        return "switched off"
    if not build.library().exists():
        return "not built"
    return next(iter(supported()), "unsupported")


@functools.cache
def available() -> bool:
    """Whether the kernels for CPUs can be used; if so, they are registered with JAX.

    They can be used if they are built, if this processor has their instructions, and if
    INT_LM_NATIVE is not 0.
    """
    if level() not in build.OPTIONS:
        return False
    loaded = shared_library()
    for name in loaded.int_lm_kernels().decode().split():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return True


def on_gpu() -> bool:
    """Whether JAX's default platform is a GPU and INT_LM_NATIVE is not 0."""
    return switches.on(switches.NATIVE) and jax.default_backend() == "gpu"


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """A context in which traced programs call no kernel. For tests and benchmarks."""
    before = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(before)


def wanted() -> bool:
    """Whether traced programs call kernels: outside of `without_kernels`."""
    return _wanted.get()


@contextlib.contextmanager
def kernels_alone(names: Iterable[str]) -> Iterator[None]:
    """A context in which traced programs call these kernels for CPUs, whatever the platform.

    They call no others.
    """
    before = _alone.set(frozenset(names))
    try:
        yield
    finally:
        _alone.reset(before)


@contextlib.contextmanager
def instructions(name: str) -> Iterator[None]:
    """A context in which kernels for CPUs use this instruction set. For tests and benchmarks.

    Wait for results inside the context: JAX starts programs without waiting for them.

    Args:
      name: one of `supported`; `widest` for the first of them, `narrowest` for the last.

    Raises:
      ValueError: this processor lacks it.
    """
    names = supported()
    name = {"widest": names[0], "narrowest": names[-1]}.get(name, name)
    if name not in names:
        raise ValueError(f"kernels have no instructions {name!r} here; they have {names}")
    use = shared_library().int_lm_use
    use(name.encode())
    try:
        yield
    finally:
        use(b"")
