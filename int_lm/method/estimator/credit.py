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
from int_lm.arithmetic import fixed
from int_lm.limits import INT8_MAX
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import layers, likelihood

LEVEL = 9  # log2 of the credit of a channel, times mean|x|, where the error is a large one

THROUGH_BITS = 4  # that a dither rounds off what went through a projection


def readout_errors(logits_TIV: Array, targets_TI: Array, rounding: Rounding) -> Array:
    """onehot(target) - p: int8 [T, I, V]; 127 >> spare_bits make 1."""
    length, pairs, vocabulary = logits_TIV.shape
    logits_JV, targets_J = logits_TIV.reshape(-1, vocabulary), targets_TI.reshape(-1)
    scale = INT8_MAX >> rounding.spare_bits

    def by_jax() -> Array:
        dither = rounding.dither(length, vocabulary, 16).reshape(-1, vocabulary)
        return likelihood.errors(logits_JV, targets_J, scale, dither)

    tables = likelihood.kernel_tables()
    errors_JV = native.either(
        lambda: native.errors(*rounding.place, logits_JV, targets_J, scale, *tables), by_jax
    )
    return errors_JV.reshape(length, pairs, vocabulary)


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
    flat = functools.partial(jnp.reshape, shape=(-1, head_VD.shape[-1]))
    errors_JV, residual_JD = errors.reshape(-1, errors.shape[-1]), flat(residual_TID)
    bits = INT8_MAX.bit_length() - rounding.spare_bits + _level(head_VD) - LEVEL

    def by_kernel() -> Array:
        gain_JD = flat(gain_TID).astype(jnp.int8)
        operands = errors_JV, head_VD, bits, gain_JD, residual_JD, *fixed.reciprocals()
        credit_JD = native.stream(*rounding.place, *operands, bits=layers.CREDIT_FRACTION_BITS)
        return credit_JD.reshape(residual_TID.shape)

    def by_jax() -> Array:
        credit_JD = jax.lax.dot_general(
            errors_JV, head_VD, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        most = (1 << layers.CREDIT_BITS) - 1
        credit_JD = jnp.clip(_shifted(credit_JD, bits), -most, most)
        credit_JD = layers.norm_credit(flat(gain_TID).astype(jnp.int32), residual_JD, credit_JD)
        credit_TID = credit_JD.reshape(residual_TID.shape)
        return rounding.narrowed(credit_TID, layers.CREDIT_FRACTION_BITS)

    return native.either(by_kernel, by_jax)


def through(value_DF: Array, credit_TID: Array, rounding: Rounding) -> Array:
    """Credit of a PROJECTION's inputs from that of the stream: int8 [T, I, F]."""
    bits = _level(value_DF) + round(math.log2(value_DF.shape[-2]) / 2) - 2

    def by_kernel() -> Array:
        operands = credit_TID.reshape(-1, credit_TID.shape[-1]), value_DF, bits
        credit_JF = native.through(*rounding.place, *operands, bits=THROUGH_BITS)
        return credit_JF.reshape(*credit_TID.shape[:-1], -1)

    def by_jax() -> Array:
        credit_TIF = jax.lax.dot_general(
            credit_TID, value_DF, (((2,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return rounding.narrowed(_shifted(credit_TIF, bits), THROUGH_BITS)

    return native.either(by_kernel, by_jax)
