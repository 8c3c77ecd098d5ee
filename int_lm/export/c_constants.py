"""Constants as C text: the tables that traced functions read, and roots of 1/2 for the draw."""

import decimal
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from int_lm.compile import expressions, layout, reading

ROOTS = 96  # roots of 1/2, of 128 fractional bits, that powers of it are products of


def lines_of(values: Sequence[str]) -> Iterator[str]:
    """Lines with the values of an array, as many in a line as fit."""
    line = "   "
    for value in values:
        if len(line) + len(value) + 2 > reading.WIDTH:
            yield line
            line = "   "
        line += f" {value},"
    yield line


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The tables that the traced functions read."""
    for name, array in arrays.items():
        dtype = str(array.dtype)
        yield f"static const {layout.TYPES[dtype]} {name}[{array.size}] = {{"
        yield from lines_of([expressions.literal(int(value), dtype) for value in array.reshape(-1)])
        yield "};"
        yield ""


def of_roots() -> Iterator[str]:
    """2^(-2^-i) for i = 1..ROOTS in units of 2^-128: words of 32 bits, lowest first."""
    context = decimal.Context(prec=80)
    yield f"enum {{ ROOTS = {ROOTS} }};"
    yield ""
    yield "/* 2^(-2^-(i + 1)) in units of 2^-128, lowest words first: `sampling_weight` */"
    yield f"static const uint32_t roots[{ROOTS}][4] = {{"
    for i in range(1, ROOTS + 1):
        exponent = -context.divide(decimal.Decimal(1), decimal.Decimal(2**i))
        scaled = context.multiply(context.power(2, exponent), decimal.Decimal(2**128))
        number = int(scaled.to_integral_value(decimal.ROUND_HALF_EVEN))
        words = [f"0x{number >> 32 * k & 0xFFFFFFFF:08X}" for k in range(4)]
        yield f"    {{{', '.join(words)}}},"
    yield "};"
    yield ""
