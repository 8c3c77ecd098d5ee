"""Noise: a pure function of (seed, step, tensor, pair, lane), counter-based and versioned.

The generator is Threefry-2x32-20 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). Every word is computed from its own coordinates. So vmap, sharding, chunking and the
number of devices change no bit. It is written out here so that a change of jax's generators
changes no bit either.

    key   = threefry((seed, NOISE_VERSION), (step, tensor))
    words = threefry(key, (pair, lane))         words 2 lane and 2 lane + 1 of that pair

`pair` is the number i of a pair (members 2i and 2i+1). A word gives 32 rademacher entries: its
lowest bit is the first, and 1 means +16. Or it gives two gaussian entries: those of the table at
its low and at its high 16 bits. Words of the last lane that a pair does not need are dropped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import constants
from int_lm.limits import RADEMACHER_MAX

NOISE_VERSION = 1  # raise it whenever a bit of the noise changes; checkpoints carry it

_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = np.array([[13, 15, 26, 6], [17, 29, 16, 24]], np.uint32)
_GROUPS = 5  # of four rounds each

Words = Array | np.ndarray | np.uint32
Block = tuple[Words, Words, Words, Words, Words]  # left and right word, and the key's three words


def _start(key: tuple[Words, Words], counter: tuple[Words, Words]) -> Block:
    """The block before the first round."""
    words = (*key, key[0] ^ key[1] ^ _PARITY)
    return counter[0] + words[0], counter[1] + words[1], *words


def _group(block: Block, number: Words, rotations: Array | np.ndarray) -> Block:
    """The block after group `number` = 1..5: four rounds, and the key mixed in once."""
    left, right, *words = block
    for place in range(4):
        left = left + right
        right = (right << rotations[place]) | (right >> (np.uint32(32) - rotations[place]))
        right = right ^ left
    first, second, third = words[1], words[2], words[0]
    return left + first, right + second + number, first, second, third


def threefry2x32(key: tuple[Words, Words], counter: tuple[Words, Words]) -> tuple[Words, Words]:
    """Threefry-2x32-20: uint32 words (or NumPy's) of any broadcastable shapes, in and out."""
    block = _start(key, counter)
    for number in range(_GROUPS):
        block = _group(block, np.uint32(number + 1), _ROTATIONS[number % 2])
    return block[:2]


def tensor_key(seed: Words, step: Words, tensor: Words) -> tuple[Words, Words]:
    """Key of one tensor at one step. All arguments are uint32, scalar or broadcastable.

    The rounds are a loop, unlike those of `threefry2x32`, because XLA does not fuse across a loop.
    If the key were fused into the draw, it would be computed again for every use, and LLVM could
    take minutes to compile the result.
    """
    block = _start((seed, np.uint32(NOISE_VERSION)), (step, tensor))
    shape = np.broadcast_shapes(*(np.shape(word) for word in block))

    def group(number: Array, block: Block) -> Block:
        return _group(block, number.astype(jnp.uint32) + 1, jnp.asarray(_ROTATIONS)[number % 2])

    whole = tuple(jnp.broadcast_to(word, shape) for word in block)
    return jax.lax.fori_loop(0, _GROUPS, group, whole)[:2]


@jax.jit  # traced once for every shape: a step draws often
def _lane(key: tuple[Array, Array], counter: tuple[Array, Array]) -> Array:
    """Both words of every block side by side: uint32 [..., 2]."""
    return jnp.stack(threefry2x32(key, counter), axis=-1)


@jax.jit
def _unfused_lane(key: tuple[Array, Array], counter: tuple[Array, Array]) -> Array:
    """`_lane` in a loop of one turn, so that CPUs compute it once and not for every use.

    XLA does not fuse across a loop. It would remove a loop that it knows to have one turn; so the
    number of turns is computed from the data: a word has at most 32 bits set. Without the loop, all
    rounds would be computed for every one of the 32 entries of a word. If all entries read the same
    word, LLVM also checks for both operands of every round whether they change between entries. It
    does so on all paths through 20 rounds, and compiling does not end.
    """
    shape = jnp.broadcast_shapes(*(word.shape for word in (*key, *counter)))
    turns = 1 + (jax.lax.population_count(key[0].ravel()[0]) >> 6).astype(jnp.int32)
    empty = jnp.zeros((*shape, 2), jnp.uint32)
    return jax.lax.fori_loop(0, turns, lambda turn, before: _lane(key, counter), empty)


def _last_axis(row: Array, ndim: int) -> Array:
    """A 1-D array as the last of `ndim` axes."""
    return row.reshape(*([1] * (ndim - 1)), -1)


def _words(key: tuple[Words, Words], pairs: Array, count: int) -> Array:
    """`count` random uint32 words for every pair: [..., pairs, count]."""
    ndim = np.ndim(key[0]) + 2
    lanes = _last_axis(jnp.arange((count + 1) // 2, dtype=jnp.uint32), ndim)
    pairs = jnp.swapaxes(_last_axis(pairs.astype(jnp.uint32), ndim), -1, -2)
    left_key, right_key = (jnp.asarray(word)[..., None, None] for word in key)
    both = jax.lax.platform_dependent(
        (left_key, right_key), (pairs, lanes), cpu=_unfused_lane, default=_lane
    )
    return both.reshape(*both.shape[:-2], -1)[..., :count]


def draw(kind: str, key: tuple[Words, Words], pairs: Array, size: int) -> Array:
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
    return jnp.asarray(constants.gaussian_quantiles())[index]


def uniform(key: tuple[Words, Words], pairs: Array, count: int) -> Array:
    """`count` random uint32 words for every pair: [..., pairs, count]."""
    return _words(key, pairs, count)


def rounding(key: tuple[Words, Words], size: int, bits: int) -> Array:
    """`size` random numbers in [0, 2^bits) for rounding: int32 [..., size].

    They use a pair number that no pair has. So they are independent of every perturbation.

    Args:
      key: of `tensor_key`.
      size: how many numbers.
      bits: at most 31.
    """
    words = _words(key, jnp.array([2**32 - 1], jnp.uint32), size)[..., 0, :]
    return (words >> jnp.uint32(32 - bits)).astype(jnp.int32)
