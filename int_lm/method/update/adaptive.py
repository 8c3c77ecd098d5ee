"""`adaptive`: Adam (Kingma and Ba, arXiv 1412.6980) in integers, with moments of 8 bits.

The votes are divided by the mean magnitude of their tensor's votes. Two running means are kept of
each weight: m of these votes, and v of their squares.

    m = beta1 m + (1 - beta1) u        v = beta2 v + (1 - beta2) u^2

The weight moves by m / sqrt(v) times the learning rate, which includes the correction of the bias
that both means have in the first steps. Fractions of a unit are kept as `carry` keeps them.

A moment is stored as a number of 8 bits with 3 bits of mantissa, like a small floating-point number
(`encoded`). It is rounded up or down by a dither, so that small changes add up over the steps: a
mean that was rounded to the nearest could not move by less than a sixteenth of itself.

Four bytes are kept of each weight: two of the remainder and one of each moment.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import LEARNING_RATE_MIN
from int_lm.method.update import Memory, Scalars, Tensor, Update, Values, Votes, carry
from int_lm.method.update.scale import coarse_votes
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

VOTE_BITS = 16  # of the votes that are divided by their mean magnitude
UNIT_BITS = 7  # a vote u of 1 << UNIT_BITS is the mean magnitude
VOTE_MAX = 4000  # largest |u|, some 31 mean magnitudes; the sums of squares then fit 32 bits
MEAN_BITS = 3  # fractional bits of m beside those of u
BETA_BITS = 7  # beta1 and beta2 are multiples of 2^-7
MANTISSA_BITS = 3
_LEAST_EXPONENT = BETA_BITS + MANTISSA_BITS  # below this one the steps of `encoded` are equal
_ROOT_BITS = 14  # fractional bits of the inverse roots
_RATIO_BITS = 7  # fractional bits of m / sqrt(v)
_RATIO_MAX = 8 << _RATIO_BITS
Number = TypeVar("Number", Array, int)


def beta_units(beta: float) -> int:
    """A decay as a multiple of 2^-7, in [1, 127]."""
    return min(max(round(beta * (1 << BETA_BITS)), 1), (1 << BETA_BITS) - 1)


def learning_rate(settings: Settings, step: int) -> int:
    """`carry.learning_rate` with the correction of the bias of both means: 0 to below 2^19."""
    first, second = (
        beta_units(beta) / (1 << BETA_BITS) for beta in (settings.es.beta1, settings.es.beta2)
    )
    correction = math.sqrt(1.0 - second ** (step + 1)) / (1.0 - first ** (step + 1))
    return round(carry.learning_rate(settings, step) * correction)


def _values(settings: Settings, step: int) -> Values:
    return {"rate": learning_rate(settings, step)}


def normalised(votes: Array) -> Array:
    """Votes in units of 2^-7 of their mean magnitude: int32 in +-`VOTE_MAX`.

    Args:
      votes: int32, of any shape with at least one axis.
    """
    coarse, mean = coarse_votes(votes, VOTE_BITS)
    mean = jnp.maximum(mean, 1)
    width = 32 - jax.lax.clz(mean)  # 1 to 16 bits
    # reciprocal <= 2^14, so that its product with a vote of 16 bits fits
    reciprocal = (1 << 27) // ((mean << 14) >> width)
    bits = 27 - 14 - UNIT_BITS + width
    quotient = (coarse * reciprocal + (1 << (bits - 1))) >> bits
    return jnp.clip(quotient, -VOTE_MAX, VOTE_MAX)


def encoded(x: Array, dither: Array) -> Array:
    """x / 2^7 as a number of 8 bits: uint32, in order of the values, 0 for 0.

    A number has four significant bits; from 16 on they are followed by zeros. It is one of the two
    that lie next to x / 2^7. Over evenly spread `dither` its mean is exactly x / 2^7.

    Args:
      x: uint32 below 2^31.
      dither: uint32, evenly spread over all 32 bits.
    """
    exponent = jnp.maximum(31 - jax.lax.clz(x | 1), _LEAST_EXPONENT)
    step_bits = exponent - MANTISSA_BITS
    significand = (x + (dither >> (32 - step_bits))) >> step_bits
    return ((exponent - _LEAST_EXPONENT) << MANTISSA_BITS) + significand


def decoded(code: Number) -> Number:
    """The numbers that `encoded` stands for, in units of 2^7 of its argument: int32.

    Args:
      code: int32, or an int: 0 to 176.
    """
    exponent = code >> MANTISSA_BITS  # below 32
    shift = exponent - ((exponent + 31) >> 5)  # one less, but 0 for 0
    return (code - (shift << MANTISSA_BITS)) << shift


def inverse_roots() -> np.ndarray:
    """1 / sqrt(v) in units of 2^-14 for the 256 codes of v, v = 0 taken for 1: int32."""
    # floor(2^14 / sqrt(v)) = floor(sqrt(floor(2^28 / v)))
    one = 1 << (2 * _ROOT_BITS)
    return np.array([math.isqrt(one // max(decoded(v), 1)) for v in range(256)], np.int32)


def _dithers(shape: tuple[int, ...], step: Array) -> Array:
    """A word of 32 bits for every weight, evenly spread over the steps and over the weights."""
    word = step.astype(jnp.uint32) * np.uint32(fixed.GOLDEN_RATIO)
    multipliers = fixed.DITHER_COLUMN, fixed.DITHER_POSITION, fixed.DITHER_LAYER
    for axis, multiplier in zip(reversed(range(len(shape))), multipliers, strict=False):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        word = word + index * np.uint32(multiplier)
    return word


def adapted(
    weight: Array,
    remainder: Array,
    mean: Array,
    square: Array,
    votes: Array,
    step: Array,
    rate: Array,
    beta1: int,
    beta2: int,
) -> tuple[Array, Array, Array, Array]:
    """The moved weights of one tensor, their remainders and their moments.

    Args:
      weight: int8.
      remainder: int16 in [-2^11, 2^11), in units of 2^-12 of the weight's unit.
      mean: m, int8. Its sign is that of m. Its magnitude is the code of |m| (`encoded`), in units
        of 2^-10 mean magnitudes.
      square: v, uint8. It is the code of v (`encoded`), in units of u^2.
      votes: int32.
      step: uint32 scalar, for the dither.
      rate: int32 scalar, of `learning_rate`.
      beta1: in units of 2^-7, of `beta_units`.
      beta2: in units of 2^-7, of `beta_units`.

    Returns:
      Arrays like the first four.
    """
    u = normalised(votes)
    dither = _dithers(weight.shape, step)
    one = 1 << BETA_BITS
    code = mean.astype(jnp.int32)
    m = jnp.sign(code) * decoded(jnp.abs(code))
    m = beta1 * m + (one - beta1) * (u << MEAN_BITS)
    code = jnp.sign(m) * encoded(jnp.abs(m).astype(jnp.uint32), dither).astype(jnp.int32)
    v = beta2 * decoded(square.astype(jnp.int32)) + (one - beta2) * u * u
    square = encoded(v.astype(jnp.uint32), ~dither)
    inverse = jnp.asarray(inverse_roots())[square.astype(jnp.int32)]
    m = jnp.sign(code) * decoded(jnp.abs(code))
    ratio = fixed.shift_down(m * inverse, _ROOT_BITS + MEAN_BITS - _RATIO_BITS)
    ratio = jnp.clip(ratio, -_RATIO_MAX, _RATIO_MAX)
    move = fixed.shift_down(ratio * rate, _RATIO_BITS)
    weight, remainder = carry.moved(weight, remainder, move)
    return weight, remainder, code.astype(jnp.int8), square.astype(jnp.uint8)


def _memory(spec: Spec) -> Memory:
    return {
        "remainders": jnp.zeros(spec.full_shape, jnp.int16),
        "means": jnp.zeros(spec.full_shape, jnp.int8),
        "squares": jnp.zeros(spec.full_shape, jnp.uint8),
    }


def _move(
    es: StrategySettings,
    tensor: Tensor,
    weight: Array,
    memory: Memory,
    votes: Votes,
    values: Scalars,
) -> tuple[Array, Memory]:
    weight, remainder, mean, square = adapted(
        weight,
        memory["remainders"],
        memory["means"],
        memory["squares"],
        votes.sums,
        jnp.asarray(tensor.clock.step),
        values["rate"],
        beta_units(es.beta1),
        beta_units(es.beta2),
    )
    return weight, {"remainders": remainder, "means": mean, "squares": square}


ADAPTIVE = Update(
    memory=_memory,
    values=_values,
    move=_move,
    settings_used=lambda es: {
        "learning rate": carry.rate_used(es),
        "beta1, beta2": f"{es.beta1:g}, {es.beta2:g}",
    },
    least_rate=LEARNING_RATE_MIN,
)
