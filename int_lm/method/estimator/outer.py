"""Sums of outer products over tokens and voters: the last step of votes made token by token.

    inputs_of                       the right operand, recorded at every token
    outer                           the sum of the products
    scattered                       the same where the right operand is one-hot (EMBEDDING)
    outer_sums, outer_operations    bound and cost of the sum, for `Estimator`

Axes: T tokens of a segment, I voters, J = T I, M outputs, N inputs, K pieces of a sum.
"""

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.limits import INT8_MAX, spare_bits, voters
from int_lm.model.layers import Use
from int_lm.model.params import Spec
from int_lm.settings import StrategySettings

_PIECES = 4  # parts in which the sum over a segment's tokens is computed


def inputs_of(spec: Spec, use: Use) -> Array:
    """The record of a tensor of which only the inputs are needed."""
    return use.inputs


@native.accelerated(cpu="outer")
def outer(left_TIM: Array, x_TIN: Array) -> Array:
    """sum over tokens and voters of left x^T, of int8 operands: int32 [M, N].

    The sum is computed in pieces in a loop, because that is faster on CPUs. There XLA uses an int8
    matmul only if the left operand is summed over its last axis. A transposition in the same
    computation would be merged into the matmul; XLA then computes it in int32, four times slower.
    """
    pieces = _PIECES if len(x_TIN) % _PIECES == 0 else len(x_TIN)
    x_KNJ = jnp.swapaxes(x_TIN.reshape(pieces, -1, x_TIN.shape[-1]), 1, 2)
    left_KJM = left_TIM.reshape(pieces, -1, left_TIM.shape[-1])

    def add(total_NM: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
        product_NM = jax.lax.dot_general(
            *piece, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return total_NM + product_NM, None

    zeros = jnp.zeros((x_TIN.shape[-1], left_TIM.shape[-1]), jnp.int32)
    return jax.lax.scan(add, zeros, (x_KNJ, left_KJM))[0].T


@native.accelerated(cpu="outer_of_layers")
def outer_of_layers(left_TIM: Array, x_LTIN: Array) -> Array:
    """`outer` of every layer's inputs and the same left operand: int32 [L, M, N]."""
    return jax.lax.map(lambda x_TIN: outer(left_TIM, x_TIN), x_LTIN)


def scattered(shape: tuple[int, ...], tokens_TI: Array, row_TIN: Array) -> Array:
    """Sum, for every token id, of the rows of the tokens with this id: int32 [V, N].

    Args:
      shape: (V, N).
      tokens_TI: token ids, int32.
      row_TIN: one row for every token, int8.
    """
    rows_JN = row_TIN.reshape(-1, row_TIN.shape[-1]).astype(jnp.int32)
    return jnp.zeros(shape, jnp.int32).at[tokens_TI.reshape(-1)].add(rows_JN)


def outer_sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    """Bound of a sum, over all voters and tokens, of products of two int8 operands."""
    terms = voters(es) * es.segment_length
    what = f"the votes of {es.population} members over {es.segment_length} tokens"
    return [(what, terms * INT8_MAX * (INT8_MAX >> spare_bits(es)))]


def outer_operations(spec: Spec) -> int:
    """Operations per token and member of one M x N outer product for every pair and token."""
    return spec.shape[0] * spec.shape[1]
