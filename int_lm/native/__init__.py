"""Kernels: what `perturb`, `layers` and votes compute, to the bit, and faster. For CPUs, in C++:

    python -m int_lm.native         builds them with the C++ compiler of the machine (`make` does)

and for GPUs, in Pallas (`triton`), compiled where they run. Without them, on other platforms, or
with INT_LM_NATIVE=0 in the environment, the same is computed by the JAX code beside every call:
nothing else changes, for all of it is integers.

Axes: P members, I = P/2 pairs, N inputs, M outputs, R rank, D width, J
tokens and pairs.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

HERE = Path(__file__).parent
PARTS = ("vectors", "tile", "outer", "credit", "direct", "hash", "handlers")
SOURCES = ("kernels.cc", *(f"{part}.inc" for part in PARTS))
KERNELS = (
    "linear8 linear16 norm likelihood8 likelihood16 outer errors8 errors16 stream through unit"
    " direct_added8 direct_added16 direct_update hash"
)
TARGETS = tuple(f"int_lm_{kernel}" for kernel in KERNELS.split())
COMPILERS = ("c++", "g++", "clang++")
SWITCH = "INT_LM_NATIVE"

Result = TypeVar("Result")  # an array or a tree of arrays


def library() -> Path:
    """Where the kernels of these sources, for this jaxlib and machine, are when they are built."""
    import jaxlib.version

    digest = hashlib.blake2b(digest_size=6)
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    digest.update(f"{jaxlib.version.__version__} {platform.machine()}".encode())
    return HERE / f"kernels-{digest.hexdigest()}.so"


def build() -> str:
    """Compile the kernels; says what came of it. They replace older ones."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return f"no kernels for {platform.machine()}: JAX computes everything"
    path = library()
    if path.exists():
        return f"kernels are built: {path.name}"
    if not os.access(HERE, os.W_OK):
        return f"no kernels: {HERE} cannot be written to; JAX computes everything"
    with tempfile.TemporaryDirectory(dir=HERE) as directory:
        fresh = Path(directory) / path.name
        for compiler in COMPILERS:
            command = [compiler, "-O3", "-std=c++17", "-fPIC", "-shared", "-w", "-pthread"]
            command += [f"-I{jax.ffi.include_dir()}", "-o", str(fresh), str(HERE / "kernels.cc")]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                for old in HERE.glob("kernels-*.so"):
                    old.unlink(missing_ok=True)
                fresh.replace(path)
                return f"kernels built with {compiler}: {path.name}"
    return "no C++ compiler could build the kernels: JAX computes everything"


@functools.cache
def available() -> bool:
    """The kernels are built, wanted, and made for this processor; registers them with JAX."""
    if os.environ.get(SWITCH) == "0" or not library().exists():
        return False
    loaded = ctypes.CDLL(str(library()))
    if loaded.int_lm_supported() == 0:
        return False
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return True


def on_gpu() -> bool:
    """Programs run on a GPU, unless they are told not to, and its kernels are wanted."""
    return os.environ.get(SWITCH) != "0" and jax.default_backend() == "gpu"


def either(
    kernel: Callable[[], Result],
    otherwise: Callable[[], Result],
    gpu: Callable[[], Result] | None = None,
) -> Result:
    """`kernel()` where it is available and the program runs on CPUs, else `otherwise()`.

    Args:
      gpu: likewise on NVIDIA's GPUs, if there is a kernel for these shapes.
    """
    kernels = {"cpu": kernel} if available() else {}
    if gpu is not None and on_gpu():
        kernels["cuda"] = gpu
    return jax.lax.platform_dependent(**kernels, default=otherwise) if kernels else otherwise()


def linear(
    x_PN: Array,
    weight_MN: Array,
    left_IMR: Array | None,
    right_INR: Array | None,
    layer: Array | None = None,
    *,
    low: int,
    high: int,
    dtype: type = jnp.int8,
    avx2_only: bool = False,
) -> Array:
    """saturate((x W^T + ((+-(x B) A^T) >> low)) >> high), + for even rows: int8 or int16 [P, M].

    Args:
      x_PN, weight_MN, left_IMR, right_INR: int8; no perturbation for None.
      layer: int32 scalar, which of the layers to take of operands that hold several: all but x.
      low, high: right shifts.
      dtype: int8, clipped to +-127, or int16, to +-32767.
      avx2_only: take the slower path even where VNNI is to be had, for tests.
    """
    arrays = [weight_MN, left_IMR, right_INR]
    if layer is None:
        arrays, layer = [None if array is None else array[None] for array in arrays], jnp.int32(0)
    none = jnp.zeros((1, 0, 0, 0), jnp.int8)
    weight, left, right = (none if array is None else array for array in arrays)
    shape = jax.ShapeDtypeStruct((x_PN.shape[0], weight.shape[1]), dtype)
    call = jax.ffi.ffi_call("int_lm_linear8" if dtype == jnp.int8 else "int_lm_linear16", shape)
    shifts = {"low": np.int64(low), "high": np.int64(high)}
    return call(x_PN, weight, left, right, layer, **shifts, avx2_only=avx2_only)


def norm(
    x_PD: Array,
    gain_PD: Array,
    multipliers: np.ndarray,
    shifts: np.ndarray,
    *,
    avx2_only: bool = False,
) -> Array:
    """saturate(floor(x g / max(1, mean|x|))): int8 and int8 [P, D] give int8 [P, D].

    Args:
      multipliers, shifts: of `fixed.reciprocals`. avx2_only: as for `linear`.
    """
    call = jax.ffi.ffi_call("int_lm_norm", jax.ShapeDtypeStruct(x_PD.shape, jnp.int8))
    tables = jnp.asarray(multipliers), jnp.asarray(shifts)
    return call(x_PD, gain_PD, *tables, avx2_only=avx2_only)


def likelihood(
    logits_PV: Array, targets_P: Array, *arrays: np.ndarray, avx2_only: bool = False
) -> Array:
    """`likelihood.log2_likelihood`: int8 or int16 logits [P, V] give int32 [P].

    Args:
      arrays: the first two of `likelihood.kernel_tables`. avx2_only: as for `linear`.
    """
    name = "int_lm_likelihood8" if logits_PV.dtype == jnp.int8 else "int_lm_likelihood16"
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(targets_P.shape, jnp.int32))
    return call(logits_PV, targets_P, *map(jnp.asarray, arrays), avx2_only=avx2_only)


def outer(left_JM: Array, right_JN: Array, *, avx2_only: bool = False) -> Array:
    """left^T right, of int8 operands: int32 [M, N]. Contract: the sums fit int32.

    Args:
      avx2_only: as for `linear`.
    """
    shape = jax.ShapeDtypeStruct((left_JM.shape[1], right_JN.shape[1]), jnp.int32)
    call = jax.ffi.ffi_call("int_lm_outer", shape)
    return call(left_JM, right_JN, avx2_only=avx2_only)


# -- What votes are made of: the pairs' numbers and the step's, for the dither, come first ---------


def errors(
    pairs_I: Array,
    number: Array,
    logits_JV: Array,
    targets_J: Array,
    scale: int,
    *arrays: np.ndarray,
    avx2_only: bool = False,
) -> Array:
    """`likelihood.errors`: int8 or int16 logits [J, V] give int8 [J, V].

    Args:
      scale: what makes 1. arrays: `likelihood.kernel_tables`. avx2_only: as for `linear`.
    """
    name = "int_lm_errors8" if logits_JV.dtype == jnp.int8 else "int_lm_errors16"
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(logits_JV.shape, jnp.int8))
    operands = pairs_I, number, logits_JV, targets_J, *map(jnp.asarray, arrays)
    return call(*operands, scale=np.int64(scale), avx2_only=avx2_only)


def stream(
    pairs_I: Array,
    number: Array,
    errors_JV: Array,
    head_VD: Array,
    shift: Array,
    gain_JD: Array,
    residual_JD: Array,
    multipliers: np.ndarray,
    shifts: np.ndarray,
    *,
    bits: int,
    avx2_only: bool = False,
) -> Array:
    """`credit.of_stream`: errors times the head, back through the norm: int8 [J, D].

    Args:
      shift: right shift of the product, int32 scalar of either sign.
      multipliers, shifts: of `fixed.reciprocals`. bits: that the dither rounds off.
    """
    shape = jax.ShapeDtypeStruct(residual_JD.shape, jnp.int8)
    tables = jnp.asarray(multipliers), jnp.asarray(shifts)
    operands = pairs_I, number, errors_JV, head_VD, shift, gain_JD, residual_JD, *tables
    return jax.ffi.ffi_call("int_lm_stream", shape)(
        *operands, bits=np.int64(bits), avx2_only=avx2_only
    )


def through(
    pairs_I: Array,
    number: Array,
    credit_JD: Array,
    value_DF: Array,
    shift: Array,
    *,
    bits: int,
    avx2_only: bool = False,
) -> Array:
    """`credit.through`: credit times a projection, int8 [J, F]; arguments as for `stream`."""
    shape = jax.ShapeDtypeStruct((len(credit_JD), value_DF.shape[1]), jnp.int8)
    operands = pairs_I, number, credit_JD, value_DF, shift
    return jax.ffi.ffi_call("int_lm_through", shape)(
        *operands, bits=np.int64(bits), avx2_only=avx2_only
    )


def unit(
    pairs_I: Array,
    number: Array,
    x_JN: Array,
    left_IMR: Array,
    right_INR: Array,
    effect_JE: Array,
    credit_JE: Array,
    *,
    score_shift: int,
    bits: int,
    spare: int,
    down: int,
    avx2_only: bool = False,
) -> Array:
    """`units.operand`: int8 operands give int8 [J, M].

    Args:
      score_shift: of B x. bits: that the dither rounds off the product, beside `spare` ones, by
        which what comes of it is narrower than int8. down: of the sum over the rank, rounded.
    """
    shape = jax.ShapeDtypeStruct((len(x_JN), left_IMR.shape[1]), jnp.int8)
    numbers = {"score_shift": score_shift, "bits": bits, "spare": spare, "down": down}
    return jax.ffi.ffi_call("int_lm_unit", shape)(
        *(pairs_I, number, x_JN, left_IMR, right_INR, effect_JE, credit_JE),
        **{name: np.int64(value) for name, value in numbers.items()},
        avx2_only=avx2_only,
    )


# -- Direct connections ----------------------------------------------------------------------------


def direct_added(
    tables: Sequence[Array], rows: Sequence[Array], logits_PV: Array, *, avx2_only: bool = False
) -> Array:
    """`direct.added`: int8 or int16 [P, V] + a row of every int8 table [.., V] give int16 [P, V].

    Args:
      rows: int32 [P] for each of the tables. avx2_only: as for `linear`.
    """
    name = "int_lm_direct_added8" if logits_PV.dtype == jnp.int8 else "int_lm_direct_added16"
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(logits_PV.shape, jnp.int16))
    return call(logits_PV, *tables, *rows, avx2_only=avx2_only)


def direct_update(
    table: Array,
    counts: Array,
    rows_J: Array,
    errors_JV: Array,
    number: Array,
    roots: np.ndarray,
    *,
    rate: int,
    spare: int,
    avx2_only: bool = False,
) -> tuple[Array, Array]:
    """`direct.update`: the table and its counts, changed in place where XLA lets them be.

    Args:
      roots: `tables.reciprocal_root`. rate: the learning rate in units of 2^-8. spare: bits that
        errors are short of int8. avx2_only: as for `linear`.
    """
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (table, counts)]
    call = jax.ffi.ffi_call("int_lm_direct_update", shapes, input_output_aliases={0: 0, 1: 1})
    operands = table, counts, rows_J, errors_JV, number, jnp.asarray(roots)
    table, counts = call(*operands, rate=np.int64(rate), spare=np.int64(spare), avx2_only=avx2_only)
    return table, counts


# -- The hash of weights ---------------------------------------------------------------------------


def hashed(values_RN: Array, keys: np.ndarray, *, avx2_only: bool = False) -> Array:
    """Both lanes of the hash of a tensor, int8 [R, N], N a multiple of 4: uint32 [2].

    Args:
      keys: uint32, the first two that `hashing` makes of its name and shape.
      avx2_only: as for `linear`.
    """
    call = jax.ffi.ffi_call("int_lm_hash", jax.ShapeDtypeStruct((2,), jnp.uint32))
    return call(values_RN, jnp.asarray(keys), avx2_only=avx2_only)
