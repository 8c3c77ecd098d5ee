"""Noise: a pure function of (seed, step, tensor, pair, lane), counter-based and versioned.

Threefry-2x32-20 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
written out here so that neither a change of jax's generators nor vmap, sharding, chunking or the
number of devices can change a bit: every word is computed from its own coordinates.

    key   = threefry((seed, NOISE_VERSION), (step, tensor))
    words = threefry(key, (pair, lane))         words 2 lane and 2 lane + 1 of that pair

Pairs are the members' pair numbers i (members 2i and 2i+1). A word yields 32 rademacher entries,
the lowest bit first, 1 for +16; or two gaussian ones, the table's entries at its low and its high
16 bits. The words that a pair's last lane has beyond its entries are dropped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import tables
from int_lm.config import RADEMACHER_MAX

NOISE_VERSION = 1  # raise it whenever a bit of the noise changes; checkpoints carry it

_PARITY = np.uint32(0x1BD11BDA)
_EVEN_ROTATIONS = [np.uint32(count) for count in (13, 15, 26, 6)]
_ODD_ROTATIONS = [np.uint32(count) for count in (17, 29, 16, 24)]

Words = Array | np.ndarray | np.uint32
Block = tuple[Words, Words]


def threefry2x32(key: Block, counter: Block) -> tuple[Array, Array]:
    """Threefry-2x32-20: uint32 words of any broadcastable shapes.

    Five groups of four rounds, four of them in a loop, across which XLA does not fuse. Fused into
    what makes entries of the words, all rounds would be computed anew for every entry; and where
    all entries read one word, LLVM asks of both operands of every round whether they change in
    the loop over entries: for hours.
    """
    keys = jnp.stack(jnp.broadcast_arrays(*key, key[0] ^ key[1] ^ _PARITY))
    shape = jnp.broadcast_shapes(keys.shape[1:], *(np.shape(word) for word in counter))

    def group(number: int | Array, rotations: list[np.uint32], block: Block) -> Block:
        left, right = block
        for count in rotations:
            left = left + right
            right = (right << count) | (right >> (np.uint32(32) - count))
            right = right ^ left
        mixed = right + keys[(number + 1) % 3] + jnp.asarray(number, jnp.uint32)
        return left + keys[number % 3], mixed

    def two_groups(index: Array, block: Block) -> Block:
        block = group(2 * index + 2, _ODD_ROTATIONS, block)
        return group(2 * index + 3, _EVEN_ROTATIONS, block)

    left, right = (jnp.broadcast_to(counter[i] + keys[i], shape) for i in range(2))
    return jax.lax.fori_loop(0, 2, two_groups, group(1, _EVEN_ROTATIONS, (left, right)))


def tensor_key(seed: Words, step: Words, tensor: Words) -> tuple[Array, Array]:
    """Key of one tensor at one step. All arguments are uint32, scalar or broadcastable."""
    return threefry2x32((seed, np.uint32(NOISE_VERSION)), (step, tensor))


def _last_axis(row: Array, ndim: int) -> Array:
    """A 1-D array as the last of `ndim` axes."""
    return row.reshape(*([1] * (ndim - 1)), -1)


def _words(key: Block, pairs: Array, count: int) -> Array:
    """`count` random uint32 words for every pair: [..., pairs, count]."""
    ndim = np.ndim(key[0]) + 2
    lanes = _last_axis(jnp.arange((count + 1) // 2, dtype=jnp.uint32), ndim)
    pairs = jnp.swapaxes(_last_axis(pairs.astype(jnp.uint32), ndim), -1, -2)
    left_key, right_key = (jnp.asarray(word)[..., None, None] for word in key)
    both = jnp.stack(threefry2x32((left_key, right_key), (pairs, lanes)), axis=-1)
    return both.reshape(*both.shape[:-2], -1)[..., :count]


def draw(kind: str, key: Block, pairs: Array, size: int) -> Array:
    """Noise of every pair for one tensor.

    Args:
      kind: `rademacher` (+-16, one bit an entry) or `gaussian` (int8, standard deviation 16).
      key: of `tensor_key`; its leading axes become leading axes of the result.
      pairs: pair numbers, int32 [pairs].
      size: entries per pair.

    Returns:
      int8 [..., pairs, size].
    """
    if kind == "rademacher":
        words = _words(key, pairs, (size + 31) // 32)
        places = _last_axis(jnp.arange(32, dtype=jnp.uint32), words.ndim + 1)
        bits = (words[..., None] >> places) & jnp.uint32(1)
        bits = bits.reshape(*words.shape[:-1], -1)[..., :size].astype(jnp.int8)
        return (2 * bits - 1) * jnp.int8(RADEMACHER_MAX)
    words = _words(key, pairs, (size + 1) // 2)
    halves = jnp.stack([words & jnp.uint32(0xFFFF), words >> jnp.uint32(16)], axis=-1)
    index = halves.reshape(*words.shape[:-1], -1)[..., :size].astype(jnp.int32)
    return jnp.asarray(tables.gaussian_quantiles())[index]


def rounding(key: Block, size: int, bits: int) -> Array:
    """`size` random numbers in [0, 2^bits), int32 [..., size]: to round with, bits at most 31.

    They use a pair number that no pair has, and so are independent of every perturbation.
    """
    words = _words(key, jnp.array([2**32 - 1], jnp.uint32), size)[..., 0, :]
    return (words >> jnp.uint32(32 - bits)).astype(jnp.int32)
