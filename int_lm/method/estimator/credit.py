"""Credit: the gradient of the log-likelihood with respect to the residual stream, in int8.

Errors are the derivative of log p(target) with respect to the logits: onehot(target) - p. Taken
back through the head and the norm before it, and no further, they give the credit of the residual
stream's channels. Taken back through one PROJECTION more, they give the credit of its inputs. Every
result is rounded to int8 with a dither, so that its mean is right.

Axes: T tokens of a segment, I pairs, J = T I, D width, F inputs of a projection, V vocabulary, N
columns.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic.constants import ERROR_BITS
from int_lm.arithmetic.fixed import CREDIT_BITS, CREDIT_FRACTION_BITS
from int_lm.limits import INT8_MAX
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import layers, likelihood

LEVEL = 9  # a large error gives a channel a credit of about 2^LEVEL / mean|x|

THROUGH_BITS = 4  # low bits that the dither rounds off in `through`
LEAST_LEVEL = -5  # of weights whose mean magnitude is below 1/16


@native.accelerated(cpu="errors")
def readout_errors(logits_TIV: Array, targets_TI: Array, rounding: Rounding) -> Array:
    """onehot(target) - p, int8 [T, I, V] in units of 1 / (127 >> spare_bits).

    Args:
      logits_TIV: int8 or int16 in units of 1/16 bit.
      targets_TI: int32; `NO_TARGET` for padding, which has no errors.
      rounding: the dithers of the segment.
    """
    length, _, vocabulary = logits_TIV.shape
    logits_JV, targets_J = logits_TIV.reshape(-1, vocabulary), targets_TI.reshape(-1)
    dither = rounding.dither(length, vocabulary, ERROR_BITS).reshape(-1, vocabulary)
    scale = INT8_MAX >> rounding.spare_bits
    return likelihood.errors(logits_JV, targets_J, scale, dither).reshape(logits_TIV.shape)


def _level(value_MN: Array) -> Array:
    """floor(log2(mean magnitude)) of int8 [M, N], from -5 (`LEAST_LEVEL`) to 6: int32 scalar."""
    row_M = 16 * jnp.sum(jnp.abs(value_MN.astype(jnp.int32)), axis=-1) // value_MN.shape[-1]
    return 27 - jax.lax.clz(jnp.sum(row_M) // value_MN.shape[-2])


def shifted(x: Array, bits: Array) -> Array:
    """x / 2^bits, rounded half up, for an int32 scalar `bits` of either sign."""
    right = jnp.broadcast_to(jnp.maximum(bits, 0), x.shape)
    left = jnp.broadcast_to(jnp.maximum(-bits, 0), x.shape)
    half = (jnp.int32(1) << right) >> 1
    return ((x + half) >> right) << left


def of_stream(
    gain_TID: Array, residual_TID: Array, head_VD: Array, errors: Array, rounding: Rounding
) -> Array:
    """Credit: derivative of log p(target) with respect to the last residual stream.

    Its unit is a power of two, the same for all tokens of a step. It follows from the mean
    magnitude of the head's weights: a large error gives a credit of about 2^LEVEL / mean|x|.

    Args:
      gain_TID: weight of the last norm, int8.
      residual_TID: residual stream, int8 q4.
      head_VD: weights of the head, int8.
      errors: of `readout_errors`, int8 [T, I, V].
      rounding: the dithers of the segment.

    Returns:
      int8 [T, I, D].
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
    """(errors W_head) / 2^shift, taken back through the norm, rounded by a dither: int8 [T, I, D].

    Args:
      errors_TIV: int8.
      head_VD: int8.
      shift: int32 scalar of either sign.
      gain_TID: weight of the last norm, int8.
      residual_TID: residual stream, the input of the norm, int8 q4.
      rounding: the dithers of the segment.
    """
    flat = functools.partial(jnp.reshape, shape=(-1, head_VD.shape[-1]))
    credit_JD = _times(errors_TIV.reshape(-1, errors_TIV.shape[-1]), head_VD)
    most = (1 << CREDIT_BITS) - 1
    credit_JD = jnp.clip(shifted(credit_JD, shift), -most, most)
    gain_JD = flat(gain_TID).astype(jnp.int32)
    credit_JD = layers.norm_credit(gain_JD, flat(residual_TID), credit_JD)
    return rounding.narrowed(credit_JD.reshape(residual_TID.shape), CREDIT_FRACTION_BITS)


def through(value_DF: Array, credit_TID: Array, rounding: Rounding) -> Array:
    """Credit of a PROJECTION's inputs, from the credit of the residual stream: int8 [T, I, F].

    Args:
      value_DF: weights of the PROJECTION, int8.
      credit_TID: of `of_stream`, int8.
      rounding: the dithers of the segment.
    """
    return through_projection(credit_TID, value_DF, through_shift(value_DF), THROUGH_BITS, rounding)


def through_shift(value_DF: Array) -> Array:
    """The shift of `through_projection` for these weights: int32 scalar."""
    return _level(value_DF) + _through_shift(value_DF.shape[-2])


def through_shifts(value_LDF: Array | None, layers: int) -> Array:
    """`through_shift` of every layer: int32 [L]; zeros, which nobody reads, without weights."""
    if value_LDF is None:
        return jnp.zeros(layers, jnp.int32)
    return jax.vmap(through_shift)(value_LDF)


def answered(credit_TIE: Array, responses_TIM: Array) -> Array:
    """Credit of effects times `layers.responses`: int32 [T, I, M], below 2^14 in magnitude.

    Args:
      credit_TIE: int8; output m has effect m mod E.
      responses_TIM: int8.
    """
    groups = responses_TIM.shape[-1] // credit_TIE.shape[-1]
    credit_TIM = jnp.concatenate([credit_TIE] * groups, axis=-1).astype(jnp.int32)
    return credit_TIM * responses_TIM.astype(jnp.int32)


def _through_shift(outputs: int) -> int:
    """`through_shift` of weights of level 0."""
    return round(math.log2(outputs) / 2) - 2


def through_sum(outputs: int) -> int:
    """The largest magnitude in `through` with so many outputs: the sum, shifted to the left.

    What roundings add, half of a right shift of at most 4 + log2(outputs) / 2 bits and a dither of
    `THROUGH_BITS`, is below 2^16.
    """
    left = max(0, -(LEAST_LEVEL + _through_shift(outputs)))
    return (outputs * INT8_MAX * INT8_MAX << left) + (1 << 16)


@native.accelerated(cpu="through")
def through_projection(
    credit_TID: Array, value_DF: Array, shift: Array, bits: int, rounding: Rounding
) -> Array:
    """(credit W) / 2^shift / 2^bits, the second division rounded by a dither: int8 [T, I, F].

    Args:
      credit_TID: int8.
      value_DF: weights W of the PROJECTION, int8.
      shift: int32 scalar of either sign.
      bits: number of low bits that the dither rounds off.
      rounding: the dithers of the segment.
    """
    return rounding.narrowed(shifted(_times(credit_TID, value_DF), shift), bits)


def _times(x: Array, value_DF: Array) -> Array:
    """x W of int8 x [..., D] and int8 W [D, F]: int32 [..., F]."""
    summed = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, value_DF, summed, preferred_element_type=jnp.int32)
