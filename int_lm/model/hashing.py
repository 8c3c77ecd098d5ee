"""A 64-bit hash of the weights. It does not depend on how they are divided among devices.

    h = sum over tensors and words of mix(word ^ position)     two lanes, modulo 2^32 each

A tensor's int8 values are read as 32-bit words, four along its last axis, lowest byte first. Every
word is mixed with its position and its tensor's key, and the results are added. A sum is the same
in any order and for any division among devices. It costs so little that every logged step has the
hash. The hash detects accidental differences. It is not cryptographic: somebody could construct two
models with the same hash on purpose (`digest` has SHA-256).

`mix` is the 32-bit finaliser of MurmurHash3 (Appleby, 2011). It is one-to-one, so a change of a
single word always changes the hash. Changes of two or more words leave one lane unchanged with a
probability of about 2^-32, and both lanes with 2^-64.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import native
from int_lm.arithmetic import fixed
from int_lm.model.params import Parameters

BLOCK = 1 << 20  # number of weights that are hashed at once


def weights_hash(weights: Parameters) -> str:
    """The hash of int8 weights, arrays of NumPy or JAX: 16 hex digits."""
    return shown(np.asarray(compiled_lanes(weights)))


def shown(lanes: np.ndarray) -> str:
    """The two lanes of a hash, uint32 [2], as 16 hex digits."""
    return f"{int(lanes[0]):08x}{int(lanes[1]):08x}"


def lanes(weights: Parameters) -> Array:
    """The hash as two lanes, uint32 [2]; can be called inside `jax.jit`."""
    total = jnp.zeros(2, jnp.uint32)
    for path, leaf in weights.by_path().items():
        total = total + _tensor(tensor_keys(path, leaf.shape), jnp.asarray(leaf))
    return total


compiled_lanes = jax.jit(lanes)


def tensor_keys(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Keys from a tensor's path and shape, uint32 [3]: two for `of_rows` and a constant to add."""
    named = hashlib.blake2b(f"{path}{shape}".encode(), digest_size=12).digest()
    return np.frombuffer(named, "<u4").astype(np.uint32)


def _tensor(keys: np.ndarray, values: Array) -> Array:
    """Both lanes of one tensor, uint32 [2], with the constant of its path and shape added."""
    return keys[2] + of_rows(keys, values.reshape(-1, values.shape[-1]))


@native.accelerated(cpu="hash_words")
def of_rows(keys: np.ndarray, values_RN: Array) -> Array:
    """Both lanes of a tensor: uint32 [2].

    Blocks of rows are hashed one after another, because reading the values as words makes a copy.

    Args:
      keys: uint32; the first two are used.
      values_RN: the tensor as rows, int8.
    """
    rows, length = values_RN.shape
    height = max(1, BLOCK // length)
    whole = rows // height if rows > height else 0

    def add(block: Array, total: Array) -> Array:
        start = block * height
        block_RN = jax.lax.dynamic_slice_in_dim(values_RN, start, height)
        return total + _block(keys, block_RN, start)

    total = jnp.zeros(2, jnp.uint32)
    if whole:
        total = jax.lax.fori_loop(0, whole, add, total)
    return total + _block(keys, values_RN[whole * height :], whole * height)


def _block(keys: np.ndarray, values_RN: Array, start: Array | int) -> Array:
    """Both lanes, uint32 [2], of some rows of a tensor; `start` is the index of the first one."""
    rows, length = values_RN.shape
    words = -(-length // 4)
    padded = jnp.pad(values_RN, ((0, 0), (0, 4 * words - length))).reshape(rows, words, 4)
    words_RW = jax.lax.bitcast_convert_type(padded, jnp.uint32)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, (rows, words), axis) for axis in (0, 1))
    number = (row + jnp.asarray(start, jnp.uint32)) * np.uint32(words) + column
    first = _mixed(words_RW ^ (number * np.uint32(fixed.GOLDEN_RATIO) + keys[0]))
    second = _mixed(first + keys[1])
    total = functools.partial(jnp.sum, dtype=jnp.uint32)
    return jnp.stack([total(first), total(second)])


def _mixed(x: Array) -> Array:
    """MurmurHash3's finaliser, one-to-one on 32 bits."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(fixed.MIX_FIRST)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(fixed.MIX_SECOND)
    return x ^ (x >> np.uint32(16))
