"""How large the votes on a tensor are, for updates that measure one vote by the others."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def coarse_votes(votes: Array, most_bits: int) -> tuple[Array, Array]:
    """(votes of fewer bits, their mean magnitude, rounded down).

    All votes are shifted down by the same number of bits, so that they have at most `most_bits`
    bits; fewer if an axis is so long that the sum of the magnitudes would overflow int32.
    """
    bits = min(most_bits, 30 - max(math.ceil(math.log2(size)) for size in votes.shape))
    width = 32 - jax.lax.clz(jnp.max(jnp.abs(votes)))
    shift = jnp.maximum(width - bits, 0)
    coarse = jnp.sign(votes) * (jnp.abs(votes) >> shift)
    mean = jnp.abs(coarse)
    while mean.ndim:
        mean = jnp.sum(mean, axis=-1) // mean.shape[-1]
    return coarse, mean
