"""Perturbation: every member's linear, embedding and vector equals the oracle's, bit for bit."""

import contextlib
import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import limits, native
from int_lm.config import EsConfig
from int_lm.limits import INT8_MAX, INT32_MAX
from int_lm.model import layers, perturb
from int_lm.model.perturb import Weight

PAIRS = 3
KINDS = ["rademacher", "gaussian"]
linear = jax.jit(layers.linear)
embed = jax.jit(layers.embed)
readout = jax.jit(layers.readout)


def pairwise(first: list[int], second: list[int]) -> list[tuple[str, int, int]]:
    """Triples in which every kind of noise and every two values of two lists meet."""
    return [(KINDS[(i + j) % 2], a, b) for i, a in enumerate(first) for j, b in enumerate(second)]


@functools.partial(jax.jit, static_argnames="es")
def member_weight(es: EsConfig, value, noises) -> Weight:
    """`perturb.perturbed`, compiled."""
    return perturb.perturbed(es, value, noises)


def factors_of(es: EsConfig, shape: tuple[int, int]):
    """A and B of some pairs: drawn, and for the last pair the largest entries there are."""
    noises = [oracle.matrix_noise(es, shape, 9, 4, 2, pair) for pair in range(PAIRS)]
    most = limits.noise_max(es)
    noises[-1] = tuple([[most] * es.rank] * size for size in shape)
    left, right = zip(*noises, strict=True)
    return noises, (jnp.array(left, jnp.int8), jnp.array(right, jnp.int8))


def activations(size: int) -> np.ndarray:
    """Inputs of every member: random ones, zeros, all 127, all -127."""
    x = np.random.default_rng(size).integers(-127, 128, (2 * PAIRS, size))
    x[1], x[2], x[4], x[5] = 0, -127, 127, -127
    return x


@pytest.mark.parametrize(("kind", "rank", "sigma_shift"), pairwise([1, 2, 3, 4], [0, 4, 12]))
def test_linear_equals_the_oracle(kind: str, rank: int, sigma_shift: int):
    """Member by member, at all +-127 and zeros, from sums that saturate to perturbations of 0."""
    es = EsConfig(noise=kind, rank=rank, sigma_shift=sigma_shift)
    value = np.random.default_rng(rank).integers(-127, 128, (5, 12))
    value[0], value[1] = 127, -127
    noises, arrays = factors_of(es, (5, 12))
    x = activations(12)
    value_MN = jnp.asarray(value.astype(np.int8))
    weight = member_weight(es, value_MN, arrays)
    y = linear(weight, jnp.asarray(x.astype(np.int8)))
    assert y.dtype == jnp.int8
    for p in range(2 * PAIRS):
        member = oracle.perturbed_matrix(es, value.tolist(), noises[p // 2], 1 - 2 * (p % 2))
        assert y[p].tolist() == oracle.linear(member, x[p].tolist())
    bare = linear(Weight(value_MN), jnp.asarray(x.astype(np.int8)))
    assert bare[3].tolist() == oracle.linear(oracle.bare(value.tolist()), x[3].tolist())


@pytest.mark.parametrize("inputs, sigma_shift", [(12, 2), (12, 12), (1100, 2)])
def test_readout_is_a_linear_of_16_bits(inputs: int, sigma_shift: int):
    """Member by member; at all +-127 and 1100 inputs it saturates at +-32767."""
    es = EsConfig(rank=2, sigma_shift=sigma_shift)
    value = np.random.default_rng(inputs).integers(-127, 128, (4, inputs))
    value[0], value[1] = 127, -127
    noises, arrays = factors_of(es, (4, inputs))
    x = activations(inputs)
    value_VN = jnp.asarray(value.astype(np.int8))
    weight = member_weight(es, value_VN, arrays)
    y = readout(weight, jnp.asarray(x.astype(np.int8)))
    assert y.dtype == jnp.int16
    for p in range(2 * PAIRS):
        member = oracle.perturbed_matrix(es, value.tolist(), noises[p // 2], 1 - 2 * (p % 2))
        assert y[p].tolist() == oracle.readout(member, x[p].tolist())
    assert (int(jnp.max(jnp.abs(y))) == 32767) == (inputs > 1000)
    np.testing.assert_array_equal(
        jnp.clip(y, -127, 127), linear(weight, jnp.asarray(x.astype(np.int8)))
    )


def test_without_noise_a_tensor_is_bare():
    """`perturbed` of None, as for tensors with exact gradients: no factors, no shift."""
    value = jnp.ones((5, 4), jnp.int8)
    weight = perturb.perturbed(EsConfig(), value, None)
    assert weight == Weight(value) and weight.left is None and weight.shift == 0


@pytest.mark.parametrize(("kind", "rank", "sigma_shift"), pairwise([1, 3], [0, 4]))
def test_embed_equals_the_oracle(kind: str, rank: int, sigma_shift: int):
    """Both members of a pair may read different tokens; rows at +-127 saturate."""
    es = EsConfig(noise=kind, rank=rank, sigma_shift=sigma_shift)
    value = np.random.default_rng(rank).integers(-127, 128, (7, 6))
    value[0], value[1] = 127, -127
    noises, arrays = factors_of(es, (7, 6))
    tokens = [0, 1, 6, 3, 0, 0]
    value_VN = jnp.asarray(value.astype(np.int8))
    weight = member_weight(es, value_VN, arrays)
    row = embed(weight, jnp.array(tokens, jnp.int32))
    assert row.dtype == jnp.int8
    for p, token in enumerate(tokens):
        member = oracle.perturbed_matrix(es, value.tolist(), noises[p // 2], 1 - 2 * (p % 2))
        assert row[p].tolist() == oracle.embed(member, token)
    bare = embed(Weight(value_VN), jnp.array(tokens, jnp.int32))
    assert bare.tolist() == [value[token].tolist() for token in tokens]


@pytest.mark.parametrize(("kind", "sigma_shift", "layers"), pairwise([0, 3, 4, 5], [0, 2]))
def test_vector_equals_the_oracle(kind: str, sigma_shift: int, layers: int):
    """v + n sigma for one member and v - n sigma for the other, with saturation, in every layer."""
    es = EsConfig(noise=kind, sigma_shift=sigma_shift)
    value = np.random.default_rng(1).integers(-127, 128, (max(1, layers), 6))
    value[0, 0], value[0, 1] = 127, -127
    noises = [
        [oracle.vector_noise(es, 6, 9, 4, layer, pair) for pair in range(PAIRS)]
        for layer in range(max(1, layers))
    ]
    value_N, noise_IN = jnp.asarray(value.astype(np.int8)), jnp.array(noises, jnp.int8)
    if not layers:
        value_N, noise_IN = value_N[0], noise_IN[0]
    weight = member_weight(es, value_N, (noise_IN, None))
    members = weight.value.reshape(max(1, layers), 2 * PAIRS, 6)
    assert members.dtype == jnp.int8 and weight.left is None
    for layer in range(max(1, layers)):
        for p in range(2 * PAIRS):
            expected = oracle.perturbed_vector(
                es, value[layer].tolist(), noises[layer][p // 2], 1 - 2 * (p % 2)
            )
            assert members[layer, p].tolist() == expected


@pytest.mark.parametrize("rank, root", [(1, 1), (4, 2), (16, 4)])
def test_linear_is_the_perturbed_matrix_of_the_paper(rank: int, root: int):
    """In rationals, y = floor((x (W +- sigma A B^T / sqrt R)^T, floored) / 2^shift): q4 units.

    A, B and W hold value x 16, so A B^T / 16 has the units of W.
    """
    es = EsConfig(rank=rank, sigma_shift=2)
    value = np.random.default_rng(5).integers(-20, 21, (4, 16))
    noises, arrays = factors_of(es, (4, 16))
    x = np.random.default_rng(6).integers(-30, 31, (2 * PAIRS, 16))
    weight = member_weight(es, jnp.asarray(value.astype(np.int8)), arrays)
    y = linear(weight, jnp.asarray(x.astype(np.int8)))
    for p in range(2 * PAIRS):
        left, right = (np.array(factor) for factor in noises[p // 2])
        product = (left @ right.T) * (1 - 2 * (p % 2))
        for m in range(4):
            exact = fractions.Fraction(int(x[p] @ product[m]), 16 * 4 * root)
            total = int(x[p] @ value[m]) + exact
            assert int(y[p, m]) == max(-127, min(127, (total // 1) // 2**6))


def test_members_of_a_pair_stand_on_both_sides_of_the_bare_weight():
    """The two members' outputs enclose, and within a rounding centre on, the unperturbed one."""
    es = EsConfig(sigma_shift=0)
    value = jnp.asarray(np.random.default_rng(2).integers(-9, 10, (8, 16)).astype(np.int8))
    _, arrays = factors_of(es, (8, 16))
    x = np.repeat(np.random.default_rng(3).integers(-9, 10, (PAIRS, 16)), 2, axis=0)
    x_PN = jnp.asarray(x.astype(np.int8))
    members = linear(member_weight(es, value, arrays), x_PN)
    centre = np.asarray(linear(Weight(value), x_PN))[::2].astype(np.int32)
    plus, minus = (np.asarray(members)[side::2].astype(np.int32) for side in (0, 1))
    assert np.any(plus != minus)
    assert np.abs(plus + minus - 2 * centre).max() <= 2
    assert np.all((plus - centre) * (minus - centre) <= 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_largest_perturbation_that_config_allows_is_exact(kind: str, rank: int):
    """The bound of `recipe.of`, N R 127 max|A| max|B| < 2^31, with all at their most."""
    es = EsConfig(noise=kind, rank=rank, sigma_shift=0)
    most = limits.noise_max(es)
    inputs = min(
        INT32_MAX // (INT8_MAX * rank * most * most), INT32_MAX // (2 * INT8_MAX * INT8_MAX)
    )
    left = jnp.full((1, 1, rank), most, jnp.int8)
    right = jnp.full((1, inputs, rank), most, jnp.int8)
    value = jnp.full((1, inputs), INT8_MAX, jnp.int8)
    weight = member_weight(es, value, (left, right))
    x = jnp.full((2, inputs), INT8_MAX, jnp.int8)
    delta = inputs * rank * INT8_MAX * most * most >> weight.shift
    bare = inputs * INT8_MAX * INT8_MAX
    assert bare + delta <= INT32_MAX
    score = jnp.einsum("pn,nr->pr", x, right[0], preferred_element_type=jnp.int32)
    assert score[0, 0] == inputs * INT8_MAX * most
    assert linear(weight, x)[:, 0].tolist() == [
        oracle.saturate(total >> layers.shift_for(inputs)) for total in (bare + delta, bare - delta)
    ]


@pytest.mark.parametrize("kernels", ["kernels", "jax"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_layer_by_its_number_is_that_layer_cut_out(rank: int, kernels: str):
    """`of_layer` of stacked tensors: linears, readouts and vectors of every one of three layers."""
    generator = np.random.default_rng(rank)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.integers(-127, 128, shape, dtype=np.int8))

    noises = (draw(3, PAIRS, 70, rank), draw(3, PAIRS, 20, rank)) if rank else (None, None)
    stacked = {
        "matrix": Weight(draw(3, 70, 20), *noises, shift=7),
        "vector": Weight(draw(3, 2 * PAIRS, 20)),
    }
    x_PN = draw(2 * PAIRS, 20)

    @jax.jit
    def used(weights: dict[str, Weight]) -> tuple[jax.Array, ...]:
        matrix, vector = weights["matrix"], weights["vector"]
        return (
            layers.linear(matrix, x_PN),
            layers.readout(matrix, x_PN),
            layers.vector(vector, x_PN),
        )

    results = []
    for layer in range(3):
        alone = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        with native.without_kernels() if kernels == "jax" else contextlib.nullcontext():
            got = used(layers.of_layer(stacked, jnp.int32(layer)))
            of_one = used(alone)
        for by_number, cut_out in zip(got, of_one, strict=True):
            np.testing.assert_array_equal(by_number, cut_out)
        results.append(np.asarray(got[0]))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[1], results[2])
