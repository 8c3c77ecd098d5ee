"""The magnitude of the votes on a tensor, for updates that compare each vote with the others."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def coarse_votes(votes: Array, most_bits: int) -> tuple[Array, Array]:
    """Votes with fewer bits, and their mean magnitude, rounded down.

    All votes are shifted right by the same number of bits, so that they have at most `most_bits`
    bits. They have fewer bits if an axis is so long that the sum of their magnitudes would
    otherwise overflow int32.
    """
    bits = min(most_bits, 30 - max(math.ceil(math.log2(size)) for size in votes.shape))
    width = 32 - jax.lax.clz(jnp.max(jnp.abs(votes)))
    shift = jnp.maximum(width - bits, 0)
    coarse = jnp.sign(votes) * (jnp.abs(votes) >> shift)
    mean = jnp.abs(coarse)
    while mean.ndim:
        mean = jnp.sum(mean, axis=-1) // mean.shape[-1]
    return coarse, mean
