"""The next token, chosen from logits in integers: the likeliest one, or one drawn at random.

A token of logit l gets the weight 2^(-(max - l) / (16 temperature)), which is read from a table. A
logit more than 254 below the largest one counts as 254 below it. A random 32-bit word selects the
token: it is scaled to the sum of all weights and looked up in the cumulated weights, in the order
of the ids. `sampling.Sampler`, which samples finished models, uses weights with more bits than
int32 sums can hold.

Axes: P members (or any batch), V vocabulary, B blocks of K tokens.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm import sampling
from int_lm.arithmetic.constants import DISTANCE_MAX

TOTAL_BITS = 30  # the weights of all tokens together are at most 2^30
_HALF_BITS, _HALF = 16, np.uint32(0xFFFF)


def weight_bits(vocab_size: int) -> int:
    """log2 of the weight of the likeliest token: 22 for bytes, 14 for 65 536 tokens."""
    return TOTAL_BITS - max(1, (vocab_size - 1).bit_length())


def weights(temperature: float, vocab_size: int) -> np.ndarray:
    """round(2^bits 2^(-d / (16 temperature))) for d = 0..254: int32 [255]."""
    fine = sampling.sampling_weights(temperature)
    drop = sampling.WEIGHT_BITS - weight_bits(vocab_size)
    return ((fine + (1 << (drop - 1))) >> drop).astype(np.int32)


def greedy(logits_PV: Array) -> Array:
    """The likeliest token (of equal ones, the lowest id): int32 [P]."""
    return jnp.argmax(logits_PV, axis=-1).astype(jnp.int32)


def drawn(logits_PV: Array, weights: Array, words_P: Array) -> Array:
    """A random token, with a probability proportional to its weight: int32 [P].

    Args:
      logits_PV: int8 or int16 in units of 1/16 bit.
      weights: of `weights`, int32 [255].
      words_P: random, uint32.
    """
    logits_PV = logits_PV.astype(jnp.int32)
    most_P1 = jnp.max(logits_PV, axis=-1, keepdims=True)
    weight_PV = weights[jnp.minimum(most_P1 - logits_PV, DISTANCE_MAX)]
    rows, size = weight_PV.shape
    width = math.isqrt(size - 1) + 1
    blocks = -(-size // width)
    weight_PBK = jnp.pad(weight_PV, ((0, 0), (0, blocks * width - size))).reshape(
        rows, blocks, width
    )
    # a block first, then a token of it: two short sums in place of a long one
    upto_PB = jnp.cumsum(jnp.sum(weight_PBK, axis=-1), axis=-1)
    target_P1 = scaled(words_P, upto_PB[:, -1])[:, None]
    block_P1 = jnp.sum(upto_PB <= target_P1, axis=-1, keepdims=True)
    before_PB = jnp.pad(upto_PB[:, :-1], ((0, 0), (1, 0)))
    rest_P1 = target_P1 - jnp.take_along_axis(before_PB, block_P1, axis=-1)
    own_PK = jnp.take_along_axis(weight_PBK, block_P1[..., None], axis=1)[:, 0]
    place_P = jnp.sum(jnp.cumsum(own_PK, axis=-1) <= rest_P1, axis=-1)
    return (block_P1[:, 0] * width + place_P).astype(jnp.int32)


def scaled(words: Array, totals: Array) -> Array:
    """floor(word total / 2^32), int32: uint32 words, int32 totals in [1, 2^30].

    The product of 62 bits is made of products of 16-bit halves, each below 2^32.
    """
    totals = totals.astype(jnp.uint32)
    a, b = words >> _HALF_BITS, words & _HALF
    c, d = totals >> _HALF_BITS, totals & _HALF
    middle = a * d + ((b * d) >> _HALF_BITS)
    low = b * c + (middle & _HALF)
    return (a * c + (middle >> _HALF_BITS) + (low >> _HALF_BITS)).astype(jnp.int32)
