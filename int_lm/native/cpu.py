"""Kernels for CPUs: each calls C++ (`kernels.cc`) for the JAX function of the same signature.

The docstring of each kernel names the function that it replaces, and the result.

Axes: P members, I = P/2 pairs, T tokens of a segment, J = T I, N inputs, M outputs, R rank,
D width, E effects, F inputs of a projection, V vocabulary.
"""

from collections.abc import Callable, Sequence
from types import NotImplementedType
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import constants, fixed
from int_lm.limits import CACHE_SLOTS, INT8_MAX


class Weight(Protocol):
    """The fields of `perturb.Weight` that kernels read."""

    @property
    def value(self) -> Array: ...
    @property
    def left(self) -> Array | None: ...
    @property
    def right(self) -> Array | None: ...
    @property
    def layer(self) -> Array | None: ...
    @property
    def shift(self) -> int: ...


class Rounding(Protocol):
    """The fields of `rounding.Rounding` that kernels read."""

    @property
    def numbers_I(self) -> Array: ...  # noqa: N802
    @property
    def step(self) -> Array: ...
    @property
    def spare_bits(self) -> int: ...


def _call(name: str, shape: Sequence[int], dtype: type, width: type | None = None) -> Callable:
    """The kernel int_lm_NAME, whose result has this shape and dtype.

    Args:
      width: int8 or int16, if there is a kernel for each of them.
    """
    bits = "" if width is None else str(8 * jnp.dtype(width).itemsize)
    return jax.ffi.ffi_call(f"int_lm_{name}{bits}", jax.ShapeDtypeStruct(shape, dtype))


def _flat(x: Array) -> Array:
    """An array [..., N] as [J, N]."""
    return x.reshape(-1, x.shape[-1])


def _of_layers(x: Array) -> Array:
    """An array [L, ..., N] as [L, J, N]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def linear(weight: Weight, x_PN: Array, high: int, dtype: type) -> Array:
    """`layers.narrowed`: int8 or int16 [P, M]."""
    arrays, layer = [weight.value, weight.left, weight.right], weight.layer
    if layer is None:
        arrays, layer = [None if array is None else array[None] for array in arrays], jnp.int32(0)
    none = jnp.zeros((1, 0, 0, 0), jnp.int8)
    value, left, right = (none if array is None else array for array in arrays)
    call = _call("linear", (x_PN.shape[0], value.shape[1]), dtype, dtype)
    return call(x_PN, value, left, right, layer, low=np.int64(weight.shift), high=np.int64(high))


def norm(gain_PD: Array, x_PD: Array) -> Array:
    """`layers.norm`: int8 [P, D]."""
    reciprocals = map(jnp.asarray, fixed.reciprocals())
    return _call("norm", x_PD.shape, jnp.int8)(x_PD, gain_PD.astype(jnp.int8), *reciprocals)


def likelihood(logits_PV: Array, targets_P: Array) -> Array:
    """`likelihood.log2_likelihood`: int32 [P]."""
    arrays = map(jnp.asarray, (constants.exp2_octave(), constants.log2_mantissa()))
    call = _call("likelihood", targets_P.shape, jnp.int32, logits_PV.dtype.type)
    return call(logits_PV, targets_P, *arrays)


def outer(left_TIM: Array, x_TIN: Array) -> Array:
    """`outer.outer`: int32 [M, N]. The caller must make sure that the sums fit into int32."""
    shape = left_TIM.shape[-1], x_TIN.shape[-1]
    return _call("outer", shape, jnp.int32)(_flat(left_TIM), _flat(x_TIN))


def outer_of_layers(left_TIM: Array, x_LTIN: Array) -> Array:
    """`outer.outer_of_layers`: int32 [L, M, N], sums that fit into int32."""
    shape = len(x_LTIN), left_TIM.shape[-1], x_LTIN.shape[-1]
    return _call("outer", shape, jnp.int32)(_flat(left_TIM), _of_layers(x_LTIN))


def counts(new: Array, old: Array) -> Array:
    """`params.counts`: int32 [2]."""
    return _call("counts", (2,), jnp.int32)(new, old)


# -- Operands of votes: the first arguments, pairs and step, are for the dither ------------------


def errors(logits_TIV: Array, targets_TI: Array, rounding: Rounding) -> Array:
    """`credit.readout_errors`: int8 [T, I, V]."""
    logits_JV = _flat(logits_TIV)
    arrays = constants.exp2_octave(), constants.log2_mantissa(), constants.exp2_fraction()
    operands = rounding.numbers_I, rounding.step, logits_JV, targets_TI.reshape(-1)
    call = _call("errors", logits_JV.shape, jnp.int8, logits_JV.dtype.type)
    scale = np.int64(INT8_MAX >> rounding.spare_bits)
    return call(*operands, *map(jnp.asarray, arrays), scale=scale).reshape(logits_TIV.shape)


def stream(
    errors_TIV: Array,
    head_VD: Array,
    shift: Array,
    gain_TID: Array,
    residual_TID: Array,
    rounding: Rounding,
) -> Array:
    """`credit.through_head_and_norm`: int8 [T, I, D]."""
    residual_JD, gain_JD = _flat(residual_TID), _flat(gain_TID).astype(jnp.int8)
    credit_JD = _call("stream", residual_JD.shape, jnp.int8)(
        *(rounding.numbers_I, rounding.step, _flat(errors_TIV), head_VD, shift),
        *(gain_JD, residual_JD, *map(jnp.asarray, fixed.reciprocals())),
    )
    return credit_JD.reshape(residual_TID.shape)


def through(
    credit_TID: Array, value_DF: Array, shift: Array, bits: int, rounding: Rounding
) -> Array:
    """`credit.through_projection`: int8 [T, I, F]."""
    credit_JD = _flat(credit_TID)
    call = _call("through", (len(credit_JD), value_DF.shape[1]), jnp.int8)
    operands = rounding.numbers_I, rounding.step, credit_JD, value_DF, shift
    return call(*operands, bits=np.int64(bits)).reshape(*credit_TID.shape[:-1], -1)


def unit(
    weight: Weight,
    x_TIN: Array,
    effect_TIE: Array,
    credit_TIE: Array,
    rounding: Rounding,
    projection_shift: int,
    product_shift: int,
    total_shift: int,
) -> Array:
    """`node.rounded_operand`: int8 [T, I, M]."""
    left_IMR, x_JN = weight.left, _flat(x_TIN)
    assert left_IMR is not None
    shifts = {"projection_shift": projection_shift, "bits": product_shift, "down": total_shift}
    numbers = {**shifts, "spare": rounding.spare_bits}
    operand_JM = _call("unit", (len(x_JN), left_IMR.shape[1]), jnp.int8)(
        *(rounding.numbers_I, rounding.step, x_JN, left_IMR, weight.right),
        *(_flat(effect_TIE), _flat(credit_TIE)),
        **{name: np.int64(value) for name, value in numbers.items()},
    )
    return operand_JM.reshape(*x_TIN.shape[:-1], -1)


def unit_votes(
    weight: Weight,
    x_LTIN: Array,
    effect_LTIE: Array,
    credit_TID: Array,
    through_LDE: Array | None,
    shift_L: Array,
    rounding: Rounding,
    projection_shift: int,
    product_shift: int,
    total_shift: int,
    through_bits: int,
) -> Array:
    """`unit.unit_votes`: int32 [L, M, N], sums that fit into int32."""
    left_LIMR, layers = weight.left, len(x_LTIN)
    assert left_LIMR is not None
    value = jnp.zeros((layers, 0, 0), jnp.int8) if through_LDE is None else through_LDE
    shifts = {"projection_shift": projection_shift, "bits": product_shift, "down": total_shift}
    numbers = {**shifts, "spare": rounding.spare_bits, "through_bits": through_bits}
    shape = layers, left_LIMR.shape[2], x_LTIN.shape[-1]
    return _call("unit_votes", shape, jnp.int32)(
        *(rounding.numbers_I, rounding.step, _of_layers(x_LTIN), left_LIMR, weight.right),
        *(_of_layers(effect_LTIE), _flat(credit_TID), value, shift_L),
        **{name: np.int64(number) for name, number in numbers.items()},
    )


def local_votes(
    responses_LTIM: Array,
    x_LTIN: Array,
    credit_TID: Array,
    through_LDE: Array | None,
    shift_L: Array,
    rounding: Rounding,
    product_shift: int,
    through_bits: int,
) -> Array:
    """`local.local_votes`: int32 [L, M, N], sums that fit into int32."""
    layers, outputs = len(x_LTIN), responses_LTIM.shape[-1]
    value = jnp.zeros((layers, 0, 0), jnp.int8) if through_LDE is None else through_LDE
    return _call("local_votes", (layers, outputs, x_LTIN.shape[-1]), jnp.int32)(
        *(rounding.numbers_I, rounding.step, _of_layers(x_LTIN), _of_layers(responses_LTIM)),
        *(_flat(credit_TID), value, shift_L),
        bits=np.int64(product_shift),
        spare=np.int64(rounding.spare_bits),
        through_bits=np.int64(through_bits),
    )


def to_outputs(
    parts: Sequence[tuple[Array, Array]], downs: Sequence[Array], bits: int, rounding: Rounding
) -> Array:
    """`deep.to_outputs`: int8 [T, I, M]."""
    first = parts[0][1]
    operands = [_flat(x) for part in parts for x in part]
    call = _call("to_outputs", _flat(first).shape, jnp.int8)
    outputs_JM = call(rounding.numbers_I, rounding.step, *operands, *downs, bits=np.int64(bits))
    return outputs_JM.reshape(first.shape)


def to_stream(
    stream_TID: Array,
    credit_TID: Array,
    normed_TID: Array,
    down: Array,
    shift_D: Array,
    starts_TI: Array,
    rounding: Rounding,
) -> Array:
    """`deep.to_stream`: int8 [T, I, D]."""
    operands = [_flat(x) for x in (stream_TID, credit_TID, normed_TID)]
    credit_JD = _call("to_stream", operands[0].shape, jnp.int8)(
        *(rounding.numbers_I, rounding.step, *operands, down, shift_D, starts_TI.reshape(-1)),
        *map(jnp.asarray, fixed.reciprocals()),
    )
    return credit_JD.reshape(stream_TID.shape)


# -- Context tables --------------------------------------------------------------------------------


def direct_added(
    weights: dict[str, Array], picked: dict[str, Array], logits_PV: Array, partial: bool = False
) -> Array:
    """`context_tables.added`: int16 [P, V]; the number of rows never adds anything."""
    call = _call("direct_added", logits_PV.shape, jnp.int16, logits_PV.dtype.type)
    return call(logits_PV, *(weights[name] for name in picked), *picked.values())


def direct_update(
    table: Array,
    counts: Array,
    rows_J: Array,
    errors_JV: Array,
    step: Array,
    rate: int,
    spare_bits: int,
) -> tuple[Array, Array]:
    """`context_tables.learnt`: the table and its counts, changed in place where XLA allows it."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (table, counts)]
    call = jax.ffi.ffi_call("int_lm_direct_update", shapes, input_output_aliases={0: 0, 1: 1})
    operands = table, counts, rows_J, errors_JV, step, jnp.asarray(constants.reciprocal_root())
    table, counts = call(*operands, rate=np.int64(rate), spare=np.int64(spare_bits))
    return table, counts


# -- The document cache ----------------------------------------------------------------------------


class Reading(Protocol):
    """The fields of `document_cache.Reading`."""

    @property
    def weights_PF(self) -> Array: ...  # noqa: N802
    @property
    def tokens_PF(self) -> Array: ...  # noqa: N802


def cache_over_tokens(
    sizes: tuple[int, ...],
    bits: int,
    words: Array,
    places_2P: Array,
    hashes_KP: Array,
    context_KP: Array,
    tokens_TP: Array,
) -> tuple[Array, ...]:
    """`document_cache._over_tokens`; the rows are changed in place where XLA allows it."""
    assert words.shape[2] == 1 << bits
    slots = *tokens_TP.shape, len(sizes) * CACHE_SLOTS
    shapes = [words.shape, places_2P.shape, hashes_KP.shape, slots, slots]
    call = jax.ffi.ffi_call(
        "int_lm_cache_over_tokens",
        [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes],
        input_output_aliases={0: 0, 1: 1, 2: 2},
    )
    operands = words, places_2P, hashes_KP, context_KP, tokens_TP
    return tuple(call(*operands, sizes=np.array(sizes, np.int64)))


def cache_added(table: Array, reading: Reading, logits_PV: Array) -> Array | NotImplementedType:
    """`document_cache.added`: int16 [P, V]; NotImplemented for int8 logits."""
    if logits_PV.dtype != jnp.int16:
        return NotImplemented
    call = _call("cache_added", logits_PV.shape, jnp.int16)
    return call(logits_PV, table, reading.weights_PF, reading.tokens_PF)


# -- The hash of weights ---------------------------------------------------------------------------


def hash_words(keys: np.ndarray, values_RN: Array) -> Array | NotImplementedType:
    """`hashing.of_rows`: uint32 [2]; NotImplemented unless N is a multiple of 4."""
    if values_RN.shape[1] % 4:
        return NotImplemented
    return _call("hash", (2,), jnp.uint32)(values_RN, jnp.asarray(keys[:2]))
