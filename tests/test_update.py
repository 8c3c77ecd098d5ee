"""Updates: thresholds, carried remainders and random rounding equal the oracle, lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from plugins import stochastic as plugin

from int_lm.config import Config, EsConfig
from int_lm.limits import INT32_MAX, LEARNING_RATE_MAX
from int_lm.method.update import adaptive, carry as carrying, threshold

RATE_MAX = int(LEARNING_RATE_MAX * 4096)
RATES = [0, 1, 5, 31, 2048, 4096, 5000, RATE_MAX]
WEIGHTS = [-127, -126, -3, 0, 1, 125, 126, 127]
VOTES = [-INT32_MAX, -(2**16), -1, 0, 1, 200, INT32_MAX]  # all that counts is their sign

carry = jax.jit(carrying.carry)
stochastic = jax.jit(plugin.stochastic)
by_magnitude = jax.jit(threshold.by_magnitude)
adapted = jax.jit(adaptive.adapted, static_argnames=("beta1", "beta2"))
normalised = jax.jit(adaptive.normalised)
encoded, decoded = jax.jit(adaptive.encoded), jax.jit(adaptive.decoded)


def votes_of_every_shape() -> dict[str, np.ndarray]:
    """Votes of every shape a tensor has, as large as votes can be, in int64."""
    random = np.random.default_rng(0)
    normal = np.rint(random.normal(0, 3000, (9, 13))).astype(np.int64)
    return {
        "matrix": normal,
        "small": random.integers(-3, 4, (9, 13)),
        "huge": random.integers(-INT32_MAX, INT32_MAX + 1, (9, 13)),
        "extreme": random.choice([-INT32_MAX, INT32_MAX], (5, 4)),
        "one of each": np.array([INT32_MAX, -INT32_MAX, 0, 1, -1, 2**18, -(2**18), 2**18 - 1]),
        "zero": np.zeros((3, 4), np.int64),
        "lone": np.eye(6, 7, dtype=np.int64) * [INT32_MAX, 0, 0, 0, 0, 0, 0],
        "single": np.array([[-7]]),
        "single zero": np.array([0]),
        "single extreme": np.array([-INT32_MAX]),
        "vector": normal[0],
        "stacked": np.stack([normal, 2**16 * normal, -5 * normal]),
        "stacked vectors": normal[:2] * 2**17,
    }


NAMES = list(votes_of_every_shape())


def int32(votes: np.ndarray) -> jax.Array:
    return jnp.asarray(votes.astype(np.int32))


# -- Threshold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("z", [0, 1, 700, 1024, 3000, 2**13 - 1])
def test_threshold_by_magnitude_equals_the_oracle(name: str, z: int):
    """Votes of every size and shape, of weights at 0, +-126 and +-127."""
    votes = votes_of_every_shape()[name]
    weight = np.resize(WEIGHTS, votes.shape)
    rough, limit = oracle.magnitude_limit(votes.tolist(), z)
    moved = by_magnitude(jnp.asarray(weight.astype(np.int8)), int32(votes), jnp.int32(z))
    assert moved.dtype == jnp.int8 and moved.shape == votes.shape
    assert moved.reshape(-1).tolist() == [
        oracle.moved(int(w), vote, limit)
        for w, vote in zip(weight.reshape(-1), oracle.entries(rough), strict=True)
    ]


@pytest.mark.parametrize("shape", [(65536, 2), (2, 65536), (65536,), (1, 65536, 1)])
@pytest.mark.parametrize("vote", [INT32_MAX, -INT32_MAX, 2**14 - 1])
def test_the_mean_of_the_longest_axis_is_exact(shape: tuple[int, ...], vote: int):
    """65 536 votes of one size, the largest there is: their sum fits, and each is at the mean."""
    votes, weight = jnp.full(shape, vote, jnp.int32), jnp.zeros(shape, jnp.int8)
    sign = -1 if vote < 0 else 1
    for z, expected in ((0, sign), (800, sign), (900, 0)):  # 1024 / sqrt(pi / 2) is 817
        moved = by_magnitude(weight, votes, jnp.int32(z))
        assert np.unique(np.asarray(moved)).tolist() == [expected]


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.01])
@pytest.mark.parametrize("scale", [50, 500, 2**14])
def test_a_share_alpha_of_normal_votes_moves_its_weight(alpha: float, scale: int):
    """Whatever the votes' deviation, which is taken from them."""
    z = threshold.vote_threshold(Config(es=EsConfig(alpha=alpha)), 0)
    votes = np.rint(np.random.default_rng(2).normal(0, 30 * scale, (200, 256)))
    moved = np.asarray(by_magnitude(jnp.zeros((200, 256), jnp.int8), int32(votes), jnp.int32(z)))
    assert abs(np.mean(moved != 0) - alpha) < 0.006 + 0.02 * alpha
    assert np.all((moved == 0) | (moved == np.sign(votes)))


# -- Carry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_carry_equals_the_oracle(rate: int):
    """Votes of every size, remainders at their bounds, weights that saturate."""
    remainders = [-2048, -2047, -1, 0, 1, 2046, 2047]
    v, r, w = (grid.reshape(-1) for grid in np.meshgrid(VOTES, remainders, WEIGHTS))
    weight, rest = carry(
        jnp.asarray(w.astype(np.int8)), jnp.asarray(r.astype(np.int16)), int32(v), jnp.int32(rate)
    )
    assert weight.dtype == jnp.int8 and rest.dtype == jnp.int16
    assert int(rest.min()) >= -2048 and int(rest.max()) < 2048
    assert list(zip(weight.tolist(), rest.tolist(), strict=True)) == [
        oracle.carried(*row, rate) for row in zip(w.tolist(), r.tolist(), v.tolist(), strict=True)
    ]


def test_carry_loses_nothing():
    """After 200 steps moves of 4096 and the remainder are the sum of all that was wanted."""
    random = np.random.default_rng(3)
    start = jnp.zeros(257, jnp.int8)
    weight, rest, wanted = start, jnp.zeros(257, jnp.int16), np.zeros(257, np.int64)
    for _ in range(200):
        votes, rate = random.integers(-128, 129, 257), int(random.choice(RATES[:6]))
        weight, rest = carry(weight, rest, int32(votes), jnp.int32(rate))
        wanted += np.sign(votes) * rate
    assert int(jnp.max(jnp.abs(weight))) < 127, "saturation would lose something"
    np.testing.assert_array_equal(np.asarray(weight, np.int64) * 4096 + np.asarray(rest), wanted)
    assert len(np.unique(weight)) > 20


def test_carry_adds_up_what_is_less_than_a_unit_and_cancels_opposites():
    """At 1/4096 a step a weight moves once in 4096 steps, half way; opposite steps undo it."""
    weight, rest, places = jnp.zeros(1, jnp.int8), jnp.zeros(1, jnp.int16), []
    up, down = (jnp.array([n], jnp.int32) for n in (128, -128))
    for step in range(2050):
        weight, rest = carry(weight, rest, up, jnp.int32(1))
        places += [step + 1] if int(weight[0]) and not places else []
    assert places == [2048]
    for _ in range(2050):
        weight, rest = carry(weight, rest, down, jnp.int32(1))
    assert (weight.tolist(), rest.tolist()) == ([0], [0])


def test_a_rate_of_zero_moves_nothing():
    """At the end of a linear schedule: no weight and no remainder changes, whatever the votes."""
    rest = jnp.arange(-2048, 2048, dtype=jnp.int16)
    weight = jnp.asarray(np.resize(WEIGHTS, 4096).astype(np.int8))
    votes = jnp.asarray(np.resize([128, -128, 0], 4096).astype(np.int32))
    moved, after = carry(weight, rest, votes, jnp.int32(0))
    np.testing.assert_array_equal(moved, weight)
    np.testing.assert_array_equal(after, rest)
    random = jnp.arange(4096, dtype=jnp.int32)
    np.testing.assert_array_equal(stochastic(weight, votes, jnp.int32(0), random), weight)


# -- Stochastic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_stochastic_equals_the_oracle(rate: int):
    """Votes of every size, random numbers at their bounds, weights that saturate."""
    randoms = [0, 1, 2047, 2048, 4094, 4095]
    v, r, w = (grid.reshape(-1) for grid in np.meshgrid(VOTES, randoms, WEIGHTS))
    moved = stochastic(jnp.asarray(w.astype(np.int8)), int32(v), jnp.int32(rate), int32(r))
    assert moved.dtype == jnp.int8
    assert moved.tolist() == [
        oracle.randomly_moved(weight, vote, rate, random)
        for weight, vote, random in zip(w.tolist(), v.tolist(), r.tolist(), strict=True)
    ]


@pytest.mark.parametrize("rate", RATES)
def test_stochastic_is_unbiased(rate: int):
    """Over all 4096 random numbers a weight moves, in sum, by 4096 times what is wanted."""
    shape = len(VOTES), 4096
    moved = stochastic(
        jnp.zeros(shape, jnp.int8),
        jnp.asarray(np.repeat(np.array(VOTES, np.int32)[:, None], 4096, axis=1)),
        jnp.int32(rate),
        jnp.asarray(np.repeat(np.arange(4096, dtype=np.int32)[None], len(VOTES), axis=0)),
    )
    total = np.asarray(moved).astype(np.int64).sum(axis=1)
    assert total.tolist() == [int(np.sign(vote)) * rate for vote in VOTES]


# -- Adaptive --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_normalised_votes_equal_the_oracle(name: str):
    """Votes of every size and shape, in 128ths of their mean magnitude."""
    votes = votes_of_every_shape()[name]
    found = normalised(int32(votes))
    assert found.reshape(-1).tolist() == oracle.normalised(votes.tolist())
    assert int(jnp.max(jnp.abs(found))) <= adaptive.VOTE_MAX


def test_moments_of_eight_bits_equal_the_oracle():
    """Numbers about every power of two, under words at the ends of the dither and within."""
    powers = [2**bits + more for bits in range(31) for more in (-1, 0, 1, 2**bits // 3)]
    numbers, words = (
        grid.reshape(-1) for grid in np.meshgrid(powers, [0, 1, 2**28, 2**31, 2**32 - 1])
    )
    codes = encoded(jnp.asarray(numbers, jnp.uint32), jnp.asarray(words, jnp.uint32))
    pairs = zip(numbers.tolist(), words.tolist(), strict=True)
    assert codes.tolist() == [oracle.eight_bits(*pair) for pair in pairs]
    assert decoded(jnp.arange(177)).tolist() == [oracle.of_eight_bits(code) for code in range(177)]
    roots = adaptive.inverse_roots()[1:177]
    exact = 2**14 / np.sqrt([oracle.of_eight_bits(code) for code in range(1, 177)])
    assert roots.tolist() == np.floor(exact).astype(int).tolist()


def test_a_moment_is_rounded_without_bias():
    """Over evenly spread words the mean of the two neighbours is the number itself."""
    words = jnp.arange(2**13, dtype=jnp.uint32) << 19
    for number in (5, 1000, 2047, 2048, 30001, 1048575):
        found = decoded(encoded(jnp.full(2**13, number, jnp.uint32), words).astype(jnp.int32))
        assert len(np.unique(found)) <= 2
        assert abs(float(np.mean(found)) * 128 - number) <= max(1.0, number / 2**13)


@pytest.mark.parametrize("rate", [0, 1, 4096, RATE_MAX, 2**19 - 1])
def test_adaptive_equals_the_oracle(rate: int):
    """Moments, remainders, weights and votes at their ends, under several words and decays."""
    means, squares = [-104, -60, -1, 0, 7, 90, 104], [0, 1, 50, 120, 176]
    grids = np.meshgrid(means, squares, [-2048, 0, 2047], [-127, 0, 127])
    m, v, r, w = (grid.reshape(-1) for grid in grids)
    votes = np.resize([INT32_MAX, -INT32_MAX, 0, 1, 2**20, -(2**24)], m.shape)
    units, words = oracle.normalised(votes.tolist()), oracle.dither_words(m.shape, 77)
    for betas in ((102, 115), (1, 127), (127, 127), (1, 1)):
        weight, rest, mean, square = adapted(
            *(jnp.asarray(w, jnp.int8), jnp.asarray(r, jnp.int16)),
            *(jnp.asarray(m, jnp.int8), jnp.asarray(v, jnp.uint8)),
            *(int32(votes), jnp.uint32(77), jnp.int32(rate)),
            beta1=betas[0],
            beta2=betas[1],
        )
        moments = zip(mean.tolist(), square.tolist(), strict=True)
        assert list(zip(weight.tolist(), rest.tolist(), moments, strict=True)) == [
            oracle.adapted(*row[:2], row[2:4], *row[4:], rate, betas)
            for row in zip(*(x.tolist() for x in (w, r, m, v)), units, words, strict=True)
        ]
        assert int(mean.min()) >= -104 and int(mean.max()) <= 104 and int(square.max()) <= 176


def test_adaptive_moves_a_steady_vote_by_the_rate_and_noise_by_less():
    """Adam's two ends: the ratio of means is 1 for votes that do not change, small for noise."""
    random = np.random.default_rng(5)
    weight, rest = jnp.zeros(512, jnp.int8), jnp.zeros(512, jnp.int16)
    mean, square = jnp.zeros(512, jnp.int8), jnp.zeros(512, jnp.uint8)
    config = Config(es=EsConfig(update="adaptive", learning_rate=0.25, schedule="constant"))
    for step in range(100):
        votes = np.where(np.arange(512) < 256, 900, random.choice([-900, 900], 512))
        rate = jnp.int32(adaptive.learning_rate(config, step))
        weight, rest, mean, square = adapted(
            *(weight, rest, mean, square, int32(votes), jnp.uint32(step), rate),
            beta1=102,
            beta2=115,
        )
    moved = np.asarray(weight, np.int64)
    assert np.all(np.abs(moved[:256] - 25) <= 1), "100 steps of a quarter of a unit"
    assert 1 < np.std(moved[256:]) < 4, "about the square root of 100 steps, times a quarter"


@pytest.mark.parametrize("beta", [(0.8, 0.9), (0.99, 0.995), (0.001, 0.999), (0.9884, 0.977)])
def test_the_adaptive_rate_corrects_the_bias_of_the_first_steps(beta: tuple[float, float]):
    """Equal to the oracle's, below 2^19, and the ratio of the first step times it is the rate."""
    largest = EsConfig(update="adaptive", learning_rate=4.0, beta1=beta[0], beta2=beta[1])
    assert max(adaptive.learning_rate(Config(es=largest), step) for step in range(99)) < 2**19
    es = EsConfig(update="adaptive", beta1=beta[0], beta2=beta[1], schedule="constant")
    config = Config(es=es)
    for step in (0, 1, 2, 50, 10**6):
        assert adaptive.learning_rate(config, step) == oracle.adaptive_rate(config, step)
    first, second = (units / 128 for units in oracle.betas(config))
    ratio = (1 - first) / (1 - second) ** 0.5
    assert abs(adaptive.learning_rate(config, 0) * ratio - es.learning_rate * 4096) <= ratio


def adapted_at_its_ends(weight: jax.Array, mean: int, votes: np.ndarray) -> jax.Array:
    """Weights after `adaptive`, with the largest mean and rate and the least remainder."""
    rest, means = jnp.full(votes.shape, -2048, jnp.int16), jnp.full(votes.shape, mean, jnp.int8)
    squares, rate = jnp.zeros(votes.shape, jnp.uint8), jnp.int32(2**19 - 1)
    moments = rest, means, squares
    return adapted(weight, *moments, int32(votes), jnp.uint32(7), rate, beta1=127, beta2=1)[0]


@pytest.mark.parametrize("name", NAMES)
def test_no_vote_makes_a_weight_minus_128(name: str):
    """Weights at -127 under the largest learning rate stay within +-127, in every update."""
    votes = votes_of_every_shape()[name]
    for level in (-127, 127):
        weight, rate = jnp.full(votes.shape, level, jnp.int8), jnp.int32(RATE_MAX)
        moved = [
            carry(weight, jnp.full(votes.shape, -2048, jnp.int16), int32(votes), rate)[0],
            stochastic(weight, int32(votes), rate, jnp.full(votes.shape, 4095, jnp.int32)),
            by_magnitude(weight, int32(votes), jnp.int32(0)),
            *(adapted_at_its_ends(weight, mean, votes) for mean in (-104, 104)),
        ]
        assert min(int(m.min()) for m in moved) >= -127
