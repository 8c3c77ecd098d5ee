"""Noise: the published generator, a pure function of its coordinates, and statistically noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import USERS

from int_lm.arithmetic import noise
from int_lm.config import EsConfig
from int_lm.model import perturb
from int_lm.model.params import Role, Spec

KINDS = ["rademacher", "gaussian"]
SEED, STEP, TENSOR = 2**31 - 1, 2**32 - 2, 41

# Random123 1.09, kat_vectors, threefry2x32 with 20 rounds: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
GOLDEN = {
    "rademacher": [-16, -16, -16, 16, 16, 16, 16, -16, 16, -16, -16, 16],
    "gaussian": [-16, 0, 23, 17, -12, -5, 12, -10, 27, -2, 3, -28],
}


@functools.partial(jax.jit, static_argnames=("kind", "size"))
def draw_jitted(kind: str, seed, step, tensor, pairs, size: int):
    """`noise.draw` at the key of (seed, step, tensor)."""
    return noise.draw(kind, noise.tensor_key(seed, step, tensor), pairs, size)


def draw(kind: str, pairs: list[int], size: int, *coordinates: int) -> np.ndarray:
    """Noise of some pairs, at (SEED, STEP, TENSOR) unless told."""
    key = [jnp.uint32(word) for word in coordinates or (SEED, STEP, TENSOR)]
    return np.asarray(draw_jitted(kind, *key, jnp.array(pairs, jnp.int32), size))


@pytest.mark.parametrize("counter, key, result", KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers(counter, key, result):
    """The library's generator and the oracle's both equal Random123's vectors."""
    assert oracle.threefry2x32(key, counter) == result
    words = noise.threefry2x32(
        tuple(jnp.uint32(word) for word in key), tuple(jnp.uint32(word) for word in counter)
    )
    assert tuple(int(word) for word in words) == result
    assert [word.dtype for word in words] == [jnp.uint32] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 130])
def test_draw_equals_the_oracle(kind: str, size: int):
    """Entry by entry, at sizes on both sides of every word and lane, and at extreme coordinates."""
    pairs = [0, 1, 77, 2**31 - 1]
    entries = draw(kind, pairs, size)
    assert entries.dtype == np.int8
    expected = [oracle.draw(kind, SEED, STEP, TENSOR, pair, size) for pair in pairs]
    assert entries.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_the_noise_it_has_always_been(kind: str):
    """Golden entries: runs and checkpoints of other machines and versions rely on them."""
    entries = draw(kind, [3], 12, 5, 7, 11)[0].tolist()
    assert entries == GOLDEN[kind], (
        "the noise changed: every run and checkpoint would differ; if this is meant, raise "
        "noise.NOISE_VERSION and put the new entries here"
    )
    assert noise.NOISE_VERSION == oracle.NOISE_VERSION


@pytest.mark.optimised
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="words are fused elsewhere")
@pytest.mark.parametrize(("pairs", "size"), [(1, 32), (1, 64), (4, 96)])
def test_entries_are_not_made_in_the_loop_of_words(pairs: int, size: int):
    """Fused, every entry costs 20 rounds, and some programs never end compiling."""
    key, numbers = jnp.zeros(2, jnp.uint32), jnp.arange(pairs, dtype=jnp.int32)
    draw_from = jax.jit(lambda key, pairs: noise.draw("rademacher", (key[0], key[1]), pairs, size))
    program = draw_from.lower(key, numbers).compile(compiler_options=USERS).as_text()
    assert " while(" in program
    computations = program.split("\n\n")  # what was fused is a computation of its own
    rounds = [text for text in computations if text.count(" xor(") > 2]
    assert rounds and not any("s8[" in text for text in rounds)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_depends_on_its_coordinates_only(kind: str):
    """Any subset or order of pairs, jit, vmap, leading axes and longer draws give the same bits."""
    all_pairs = draw(kind, list(range(9)), 50)
    np.testing.assert_array_equal(draw(kind, [8, 2, 5], 50), all_pairs[[8, 2, 5]])
    np.testing.assert_array_equal(draw(kind, [4], 50), all_pairs[4:5])
    np.testing.assert_array_equal(draw(kind, list(range(9)), 99)[:, :50], all_pairs)

    seed, step, tensor = jnp.uint32(SEED), jnp.uint32(STEP), jnp.uint32(TENSOR)
    pairs = jnp.arange(9, dtype=jnp.int32)
    mapped = jax.vmap(lambda pair: draw_jitted(kind, seed, step, tensor, pair[None], 50)[0])(pairs)
    np.testing.assert_array_equal(mapped, all_pairs)
    tensors = tensor + jnp.arange(3, dtype=jnp.uint32)
    stacked = draw_jitted(kind, seed, step, tensors, pairs, 50)
    assert stacked.shape == (3, 9, 50)
    for layer in range(3):
        expected = draw(kind, list(range(9)), 50, SEED, STEP, TENSOR + layer)
        np.testing.assert_array_equal(stacked[layer], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_differs_between_all_coordinates(kind: str):
    """Other seeds, steps, tensors and pairs, and coordinates exchanged, give other noise."""
    drawn = [
        tuple(entries.tolist())
        for seed in (0, 1, 2)
        for step in (0, 1, 2)
        for tensor in (0, 1, 2)
        for entries in draw(kind, [0, 1, 2], 64, seed, step, tensor)
    ]
    assert len(set(drawn)) == 81


@functools.partial(jax.jit, static_argnames=("es", "spec", "tensor"))
def tensor_noise(es: EsConfig, spec: Spec, tensor: int, step, pairs):
    """`perturb.tensor_noise` of SEED."""
    return perturb.tensor_noise(es, spec, tensor, jnp.uint32(SEED), step, pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_tensor_noise_equals_the_oracle(kind: str, rank: int):
    """Factors of a stacked matrix and of a vector, layer by layer."""
    es, pairs = EsConfig(noise=kind, rank=rank), jnp.array([6, 0, 9], jnp.int32)
    matrix, flat = Spec((5, 4), Role.MATRIX, layers=2), Spec((6,), Role.VECTOR)
    left, right = tensor_noise(es, matrix, 10, jnp.uint32(7), pairs)
    vector, none = tensor_noise(es, flat, 3, jnp.uint32(7), pairs)
    assert left.shape == (2, 3, 5, rank) and right.shape == (2, 3, 4, rank) and none is None
    for index, pair in enumerate(pairs.tolist()):
        for layer in range(2):
            factors = oracle.matrix_noise(es, (5, 4), SEED, 7, 10 + layer, pair)
            assert (left[layer, index].tolist(), right[layer, index].tolist()) == factors
        assert vector[index].tolist() == oracle.vector_noise(es, 6, SEED, 7, 3, pair)


def test_the_key_is_computed_in_a_loop():
    """XLA must not fuse the key into a draw: LLVM then takes minutes over draws of 50 entries."""
    words = [jnp.uint32(word) for word in range(3)]
    primitives = [eqn.primitive.name for eqn in jax.make_jaxpr(noise.tensor_key)(*words).eqns]
    assert {"scan", "while"} & set(primitives)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_balanced_and_uncorrelated(kind: str):
    """Mean 0, standard deviation 16, and no correlation between pairs, lanes, tensors or steps.

    2^16 entries of 64 pairs: every bound is about five standard errors of true noise.
    """
    size, pairs = 1024, list(range(64))
    entries = draw(kind, pairs, size, 3, 1, 2).astype(np.float64) / 16
    assert abs(entries.mean()) < 5 / 256
    assert abs(entries.std() - 1) < 5 / 256 / np.sqrt(2)
    if kind == "rademacher":
        assert set(np.unique(entries)) == {-1.0, 1.0}
    between_pairs = entries @ entries.T / size - np.eye(64)
    assert np.abs(np.triu(between_pairs, 1)).max() < 5 / np.sqrt(size)
    between_lanes = entries.T[:64] @ entries[:, :64] / 64
    assert np.abs(np.triu(between_lanes, 1)).max() < 5.5 / np.sqrt(64)
    for coordinates in ((4, 1, 2), (3, 2, 2), (3, 1, 3)):
        other = draw(kind, pairs, size, *coordinates).astype(np.float64) / 16
        assert abs((entries * other).mean()) < 5 / 256
    assert abs((entries[:, 1:] * entries[:, :-1]).mean()) < 5 / 256


# -- Rounding --------------------------------------------------------------------------------------

GOLDEN_ROUNDING = [913, 424, 3538, 1937, 1114, 783]
rounding_jitted = jax.jit(
    lambda seed, step, tensor, size, bits: noise.rounding(
        noise.tensor_key(seed, step, tensor), size, bits
    ),
    static_argnums=(3, 4),
)


def rounding(size: int, bits: int, *coordinates: int) -> np.ndarray:
    """`noise.rounding`, at (SEED, STEP, TENSOR) unless told."""
    key = [jnp.uint32(word) for word in coordinates or (SEED, STEP, TENSOR)]
    return np.asarray(rounding_jitted(*key, size, bits))


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65])
@pytest.mark.parametrize("bits", [1, 12, 31])
def test_rounding_equals_the_oracle(size: int, bits: int):
    """Top bits of the words of the pair 2^32 - 1, in [0, 2^bits)."""
    numbers = rounding(size, bits)
    assert numbers.dtype == np.int32 and numbers.shape == (size,)
    assert numbers.min() >= 0 and numbers.max() < 2**bits
    assert numbers.tolist() == oracle.rounding(SEED, STEP, TENSOR, size, bits)


def test_rounding_is_what_it_has_always_been():
    """Golden numbers, for updates that round at random."""
    assert rounding(6, 12, 5, 7, 11).tolist() == GOLDEN_ROUNDING


def test_rounding_is_independent_of_every_perturbation():
    """Its words are those of no pair, not even of the last there can be, nor of another tensor."""
    words = set(rounding(4096, 31).tolist())
    assert len(words) == 4096
    key = noise.tensor_key(*(jnp.uint32(word) for word in (SEED, STEP, TENSOR)))
    pairs = jnp.array([0, 1, 2, 2**23, 2**30, 2**31 - 1], jnp.int32)
    of_pairs = np.asarray(noise._words(key, pairs, 4096)) >> 1
    assert not words & set(of_pairs.reshape(-1).tolist())
    for other in ((SEED - 1, STEP, TENSOR), (SEED, STEP + 1, TENSOR), (SEED, STEP, TENSOR + 1)):
        assert not words & set(rounding(4096, 31, *other).tolist())


def test_rounding_is_uniform():
    """Mean and share of every sixteenth of the range: bounds of five standard errors."""
    numbers = rounding(2**16, 12).astype(np.float64)
    assert abs(numbers.mean() / 4096 - (0.5 - 0.5 / 4096)) < 5 * 12**-0.5 / 256
    shares = np.bincount((numbers / 256).astype(np.int64), minlength=16)
    assert np.abs(shares / 4096 - 1).max() < 5 / 64
