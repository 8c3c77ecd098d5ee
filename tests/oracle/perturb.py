"""A member's tensors: (value, A, B, sign, shift), or (value, None, None, 0, 0) when bare."""

from typing import Any

from int_lm.config import EsConfig
from oracle.arithmetic import Matrix, Vector, rounded_log2_root, saturate, shift_down, shift_floor

Member = tuple[Any, Any, Any, int, int]


def bare(value: Any) -> Member:
    """A matrix without perturbation."""
    return value, None, None, 0, 0


def perturbed_matrix(
    es: EsConfig, value: Matrix, noise: tuple[Matrix, Matrix], sign: int
) -> Member:
    """A matrix as member 2i (sign 1) or 2i + 1 (sign -1) sees it."""
    return value, *noise, sign, 4 + es.sigma_shift + rounded_log2_root(es.rank)


def perturbed_vector(es: EsConfig, value: Vector, noise: Vector, sign: int) -> Vector:
    """v +- n sigma, n sigma rounded half up."""
    moved = []
    for v, n in zip(value, noise, strict=True):
        moved.append(saturate(v + sign * shift_down(n, es.sigma_shift)))
    return moved


def linear(weight: Member, x: Vector) -> Vector:
    """saturate((x W^T + ((+-(x B) A^T) >> shift)) >> (4 + round(log2(N) / 2)))."""
    return [saturate(y) for y in scaled(weight, x)]


def readout(weight: Member, x: Vector) -> Vector:
    """`linear` in 16 bits."""
    return [max(-32767, min(32767, y)) for y in scaled(weight, x)]


def scaled(weight: Member, x: Vector) -> Vector:
    """`linear` before it is narrowed."""
    value, left, right, sign, shift = weight
    y = []
    for m in range(len(value)):
        total = 0
        for n in range(len(x)):
            total += x[n] * value[m][n]
        if left is not None:
            delta = 0
            for r in range(len(left[m])):
                score = 0
                for n in range(len(x)):
                    score += x[n] * right[n][r]
                delta += score * left[m][r]
            total += shift_floor(sign * delta, shift)
        y.append(shift_floor(total, 4 + rounded_log2_root(len(x))))
    return y


def embed(weight: Member, token: int) -> Vector:
    """saturate(E[token] + ((+-A[token] B^T) >> shift))."""
    value, left, right, sign, shift = weight
    row = []
    for n in range(len(value[token])):
        entry = value[token][n]
        if left is not None:
            delta = 0
            for r in range(len(left[token])):
                delta += left[token][r] * right[n][r]
            entry += shift_floor(sign * delta, shift)
        row.append(saturate(entry))
    return row
