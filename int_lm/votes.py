"""Votes: the population's fitness-weighted sum of its perturbations, one int32 per weight.

Plain EGGROLL votes (arXiv 2511.16652): Z = sum_i f_i A_i B_i^T for a matrix or embedding and
Z = sum_i f_i n_i for a vector. They need nothing of the model but one score per member, so they
work with any black-box fitness. No member's A B^T is ever formed: the sum is one matmul over
(pair, rank).

Axes: I pairs, R rank, M outputs, N inputs; leading layer axes are free.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.config import FITNESS_MAX, INT8_MAX, EsConfig, noise_max


def eggroll(es: EsConfig, noises: tuple[Array, Array | None], fitness_I: Array) -> Array:
    """Votes of one tensor.

    Args:
      noises: (A [..., I, M, R], B [..., I, N, R]) or (n [..., I, N], None), int8.
      fitness_I: int8.

    Returns:
      int32 [..., M, N] or [..., N]. Contract: |Z| <= R I max|A| max|B| max|f| < 2^31, checked by
      `config.validate`.
    """
    left, right = noises
    # int8 operands where f A fits them: the matmul is then an int8 one
    dtype = jnp.int8 if FITNESS_MAX[es.fitness] * noise_max(es) <= INT8_MAX else jnp.int32
    fitness_I = fitness_I.astype(dtype)
    if right is None:
        return jnp.einsum(
            "...in,i->...n", left.astype(dtype), fitness_I, preferred_element_type=jnp.int32
        )
    weighted = left.astype(dtype) * fitness_I.reshape(*([1] * (left.ndim - 3)), -1, 1, 1)
    return jnp.einsum(
        "...imr,...inr->...mn", weighted, right.astype(dtype), preferred_element_type=jnp.int32
    )
