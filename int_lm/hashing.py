"""A hash of weights that does not depend on where they lie: equal iff the models are equal.

    h = sum over tensors and words of mix(word ^ position)     two lanes, modulo 2^32 each

A tensor's int8 values are read as 32-bit words, four along its last axis, lowest byte first. Every
word is mixed with its place and its tensor's key, and the results are added: a sum, so that any
order and any division among devices gives the same, and one that costs next to nothing, so that
every logged step can carry it. It tells models apart that differ by accident; a forger could make
two that agree (`digest` has SHA-256).

`mix` is the 32-bit finaliser of MurmurHash3 (Appleby, 2011): each change of a word changes its
lane's sum, for the finaliser is one-to-one; two changed words escape one lane with odds of 2^-32
and both with 2^-64.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import params
from int_lm.params import Tree

_POSITION = np.uint32(0x9E3779B1)


def weights_hash(weights: Tree) -> str:
    """The hash of an int8 tree of NumPy or JAX arrays: 16 hex digits."""
    return shown(np.asarray(compiled_lanes(weights)))


def shown(lanes: np.ndarray) -> str:
    """The two lanes of a hash, uint32 [2], as 16 hex digits."""
    return f"{int(lanes[0]):08x}{int(lanes[1]):08x}"


def lanes(weights: Tree) -> Array:
    """The hash as uint32 [2]; may be traced."""
    total = jnp.zeros(2, jnp.uint32)
    for path, leaf in params.flatten(weights):
        total = total + _tensor(_keys(path, leaf.shape), jnp.asarray(leaf))
    return total


compiled_lanes = jax.jit(lanes)


def _keys(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor's name and shape bring in, uint32 [3]."""
    named = hashlib.blake2b(f"{path}{shape}".encode(), digest_size=12).digest()
    return np.frombuffer(named, "<u4").astype(np.uint32)


def _tensor(keys: np.ndarray, values: Array) -> Array:
    """Both lanes of one tensor, with a constant of its own for its name and shape."""
    padding = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % 4)]
    grouped = jnp.pad(values, padding).reshape(*values.shape[:-1], -1, 4)
    words = jax.lax.bitcast_convert_type(grouped, jnp.uint32)
    positions = [
        jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        * np.uint32(int(np.prod(words.shape[axis + 1 :], dtype=np.int64)) & 0xFFFFFFFF)
        for axis in range(words.ndim)
    ]
    position = functools.reduce(jnp.add, positions) * _POSITION
    first = _mixed(words ^ (position + keys[0]))
    second = _mixed(first + keys[1])
    total = functools.partial(jnp.sum, dtype=jnp.uint32)
    return jnp.stack([total(first), total(second)]) + keys[2]


def _mixed(x: Array) -> Array:
    """MurmurHash3's finaliser, one-to-one on 32 bits."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
