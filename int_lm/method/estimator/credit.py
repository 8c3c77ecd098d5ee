"""Credit: the readout's errors, and what they say of the residual stream, in dithered int8.

Errors are the derivative of log p(target) by the logits, onehot(target) - p. Taken back through
the head and the norm before it, and no further, they are the credit of the stream's channels;
through one PROJECTION more, that of its inputs. `votes` uses them.

Axes: T tokens of a segment, I pairs, J = T I, D width, F inputs of a projection, V vocabulary, N
columns.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic.fixed import CREDIT_BITS, CREDIT_FRACTION_BITS
from int_lm.arithmetic.tables import ERROR_BITS
from int_lm.limits import INT8_MAX
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import layers, likelihood

LEVEL = 9  # log2 of the credit of a channel, times mean|x|, where the error is a large one

THROUGH_BITS = 4  # that a dither rounds off what went through a projection


@native.accelerated(cpu="errors")
def readout_errors(logits_TIV: Array, targets_TI: Array, rounding: Rounding) -> Array:
    """onehot(target) - p: int8 [T, I, V]; 127 >> spare_bits make 1."""
    length, _, vocabulary = logits_TIV.shape
    logits_JV, targets_J = logits_TIV.reshape(-1, vocabulary), targets_TI.reshape(-1)
    dither = rounding.dither(length, vocabulary, ERROR_BITS).reshape(-1, vocabulary)
    scale = INT8_MAX >> rounding.spare_bits
    return likelihood.errors(logits_JV, targets_J, scale, dither).reshape(logits_TIV.shape)


def _level(value_MN: Array) -> Array:
    """floor(log2 of the mean magnitude), at least -5: int32 scalar, of int8 [M, N]."""
    row_M = 16 * jnp.sum(jnp.abs(value_MN.astype(jnp.int32)), axis=-1) // value_MN.shape[-1]
    return 27 - jax.lax.clz(jnp.sum(row_M) // value_MN.shape[-2])


def _shifted(x: Array, bits: Array) -> Array:
    """x / 2^bits for either sign of the scalar `bits`, rounded half up."""
    right = jnp.broadcast_to(jnp.maximum(bits, 0), x.shape)
    left = jnp.broadcast_to(jnp.maximum(-bits, 0), x.shape)
    half = (jnp.int32(1) << right) >> 1
    return ((x + half) >> right) << left


def of_stream(
    gain_TID: Array, residual_TID: Array, head_VD: Array, errors: Array, rounding: Rounding
) -> Array:
    """Derivative of log p(target) by the residual stream at its end: int8 [T, I, D].

    In units that keep a large error's credit near 2^LEVEL / mean|x|, however large the head's
    weights: one power of two for all tokens of a step.
    """
    shift = INT8_MAX.bit_length() - rounding.spare_bits + _level(head_VD) - LEVEL
    return through_head_and_norm(errors, head_VD, shift, gain_TID, residual_TID, rounding)


@native.accelerated(cpu="stream")
def through_head_and_norm(
    errors_TIV: Array,
    head_VD: Array,
    shift: Array,
    gain_TID: Array,
    residual_TID: Array,
    rounding: Rounding,
) -> Array:
    """Errors times the head, / 2^shift, back through the norm, and rounded: int8 [T, I, D].

    Args:
      shift: int32 scalar of either sign.
    """
    flat = functools.partial(jnp.reshape, shape=(-1, head_VD.shape[-1]))
    credit_JD = _times(errors_TIV.reshape(-1, errors_TIV.shape[-1]), head_VD)
    most = (1 << CREDIT_BITS) - 1
    credit_JD = jnp.clip(_shifted(credit_JD, shift), -most, most)
    gain_JD = flat(gain_TID).astype(jnp.int32)
    credit_JD = layers.norm_credit(gain_JD, flat(residual_TID), credit_JD)
    return rounding.narrowed(credit_JD.reshape(residual_TID.shape), CREDIT_FRACTION_BITS)


def through(value_DF: Array, credit_TID: Array, rounding: Rounding) -> Array:
    """Credit of a PROJECTION's inputs from that of the stream: int8 [T, I, F]."""
    shift = _level(value_DF) + round(math.log2(value_DF.shape[-2]) / 2) - 2
    return through_projection(credit_TID, value_DF, shift, THROUGH_BITS, rounding)


@native.accelerated(cpu="through")
def through_projection(
    credit_TID: Array, value_DF: Array, shift: Array, bits: int, rounding: Rounding
) -> Array:
    """Credit times a projection, / 2^shift, of which the dither rounds off `bits`: int8 [T, I, F].

    Args:
      shift: int32 scalar of either sign.
    """
    return rounding.narrowed(_shifted(_times(credit_TID, value_DF), shift), bits)


def _times(x: Array, value_DF: Array) -> Array:
    """x W, int8 [..., D] and [D, F]: int32 [..., F]."""
    summed = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, value_DF, summed, preferred_element_type=jnp.int32)
