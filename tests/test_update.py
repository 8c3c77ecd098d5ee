"""Update: strengths, carried remainders and random rounding equal the oracle and lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm.arithmetic import tables
from int_lm.config import Config, EsConfig
from int_lm.limits import INT32_MAX, LEARNING_RATE_MAX, VOTE_CLIP_MAX
from int_lm.method import update

RATE_MAX = int(LEARNING_RATE_MAX * 4096)
RATES = [0, 1, 5, 31, 2048, 4096, 5000, RATE_MAX]
WEIGHTS = [-127, -126, -3, 0, 1, 125, 126, 127]
CLIPS = [0.0, 0.01, 0.5, 1.0, 3.0, VOTE_CLIP_MAX]

strength = jax.jit(update.strength, static_argnums=1)
carry = jax.jit(update.carry)
stochastic = jax.jit(update.stochastic)
by_magnitude = jax.jit(update.threshold_by_magnitude)


def ballots() -> dict[str, np.ndarray]:
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


NAMES = list(ballots())


def int32(votes: np.ndarray) -> jax.Array:
    return jnp.asarray(votes.astype(np.int32))


# -- Strength --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_strength_equals_the_oracle(name: str):
    """For every clip, of signs (0) and of magnitudes."""
    votes = ballots()[name]
    for vote_clip in CLIPS:
        result = strength(int32(votes), vote_clip)
        assert result.dtype == jnp.int32 and result.shape == votes.shape
        assert int(jnp.max(jnp.abs(result))) <= 128
        assert result.reshape(-1).tolist() == oracle.strength(votes.tolist(), vote_clip)


@pytest.mark.parametrize("vote_clip", CLIPS[2:])
@pytest.mark.parametrize("scale", [1, 40, 2**15])
def test_strength_is_the_share_of_the_clip(vote_clip: float, scale: int):
    """Within three units of 128 of |vote| / (vote_clip mean|vote|), at most 1: at every scale."""
    votes = scale * np.rint(np.random.default_rng(1).normal(0, 9000, (64, 50))).astype(np.int64)
    share = np.minimum(np.abs(votes) / (vote_clip * np.abs(votes).mean()), 1) * np.sign(votes)
    off = np.abs(np.asarray(strength(int32(votes), vote_clip)) - 128 * share)
    assert off.max() <= 3


def test_strength_is_odd():
    """Opposite votes move weights by opposite amounts."""
    votes = ballots()["matrix"]
    for vote_clip in CLIPS:
        plus, minus = (np.asarray(strength(int32(v), vote_clip)) for v in (votes, -votes))
        np.testing.assert_array_equal(plus, -minus)


@pytest.mark.parametrize("shape", [(65536, 2), (2, 65536), (65536,), (1, 65536, 1)])
@pytest.mark.parametrize("votes", [INT32_MAX, -INT32_MAX, 2**14 - 1])
def test_the_mean_of_the_longest_axis_is_exact(shape: tuple[int, ...], votes: int):
    """65 536 votes of one size, the largest there is: their sum fits, and each is at the mean."""
    ballot, weight = jnp.full(shape, votes, jnp.int32), jnp.zeros(shape, jnp.int8)
    sign = -1 if votes < 0 else 1
    assert np.unique(np.asarray(strength(ballot, 1.0))).tolist() in ([127 * sign], [128 * sign])
    for z, expected in ((0, sign), (800, sign), (900, 0)):  # 1024 / sqrt(pi / 2) is 817
        moved = by_magnitude(weight, ballot, jnp.int32(z))
        assert np.unique(np.asarray(moved)).tolist() == [expected]


# -- Threshold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("z", [0, 1, 700, 1024, 3000, 2**13 - 1])
def test_threshold_by_magnitude_equals_the_oracle(name: str, z: int):
    """Votes of every size and shape, of weights at 0, +-126 and +-127."""
    votes = ballots()[name]
    weight = np.resize(WEIGHTS, votes.shape)
    rough, limit = oracle.magnitude_limit(votes.tolist(), z)
    moved = by_magnitude(jnp.asarray(weight.astype(np.int8)), int32(votes), jnp.int32(z))
    assert moved.dtype == jnp.int8 and moved.shape == votes.shape
    assert moved.reshape(-1).tolist() == [
        oracle.moved(int(w), vote, limit)
        for w, vote in zip(weight.reshape(-1), oracle.entries(rough), strict=True)
    ]


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.01])
@pytest.mark.parametrize("scale", [50, 500, 2**14])
def test_a_share_alpha_of_normal_votes_moves_its_weight(alpha: float, scale: int):
    """Whatever the votes' deviation, which is taken from them."""
    z = tables.vote_threshold(Config(es=EsConfig(alpha=alpha)), 0)
    votes = np.rint(np.random.default_rng(2).normal(0, 30 * scale, (200, 256)))
    moved = np.asarray(by_magnitude(jnp.zeros((200, 256), jnp.int8), int32(votes), jnp.int32(z)))
    assert abs(np.mean(moved != 0) - alpha) < 0.006 + 0.02 * alpha
    assert np.all((moved == 0) | (moved == np.sign(votes)))


# -- Carry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_carry_equals_the_oracle(rate: int):
    """Every strength there is, remainders at their bounds, weights that saturate."""
    strengths, remainders = range(-128, 129), [-2048, -2047, -1, 0, 1, 2046, 2047]
    s, r, w = (grid.reshape(-1) for grid in np.meshgrid(strengths, remainders, WEIGHTS))
    weight, rest = carry(
        jnp.asarray(w.astype(np.int8)), jnp.asarray(r.astype(np.int16)), int32(s), jnp.int32(rate)
    )
    assert weight.dtype == jnp.int8 and rest.dtype == jnp.int16
    assert int(rest.min()) >= -2048 and int(rest.max()) < 2048
    assert list(zip(weight.tolist(), rest.tolist(), strict=True)) == [
        oracle.carried(*row, rate) for row in zip(w.tolist(), r.tolist(), s.tolist(), strict=True)
    ]


def test_carry_loses_nothing():
    """After 200 steps moves of 4096 and the remainder are the sum of all that was wanted."""
    random = np.random.default_rng(3)
    start = jnp.zeros(257, jnp.int8)
    weight, rest, wanted = start, jnp.zeros(257, jnp.int16), np.zeros(257, np.int64)
    for _ in range(200):
        strengths, rate = random.integers(-128, 129, 257), int(random.choice(RATES[:6]))
        weight, rest = carry(weight, rest, int32(strengths), jnp.int32(rate))
        wanted += [oracle.shift_down(int(s) * rate, 7) for s in strengths]
    assert int(jnp.max(jnp.abs(weight))) < 127, "saturation would lose something"
    np.testing.assert_array_equal(np.asarray(weight, np.int64) * 4096 + np.asarray(rest), wanted)
    assert len(np.unique(weight)) > 20


def test_carry_adds_up_what_is_less_than_a_unit_and_cancels_opposites():
    """At 1/4096 a step a weight moves once in 4096 steps, half way; opposite steps undo it."""
    weight, rest, places = jnp.zeros(1, jnp.int8), jnp.zeros(1, jnp.int16), []
    up, down = (jnp.array([n], jnp.int32) for n in (128, -128))
    for number in range(2050):
        weight, rest = carry(weight, rest, up, jnp.int32(1))
        places += [number + 1] if int(weight[0]) and not places else []
    assert places == [2048]
    for _ in range(2050):
        weight, rest = carry(weight, rest, down, jnp.int32(1))
    assert (weight.tolist(), rest.tolist()) == ([0], [0])


def test_a_rate_of_zero_moves_nothing():
    """At the end of a linear schedule: no weight and no remainder changes, whatever the votes."""
    rest = jnp.arange(-2048, 2048, dtype=jnp.int16)
    weight = jnp.asarray(np.resize(WEIGHTS, 4096).astype(np.int8))
    strengths = jnp.asarray(np.resize([128, -128, 0], 4096).astype(np.int32))
    moved, after = carry(weight, rest, strengths, jnp.int32(0))
    np.testing.assert_array_equal(moved, weight)
    np.testing.assert_array_equal(after, rest)
    random = jnp.arange(4096, dtype=jnp.int32)
    np.testing.assert_array_equal(stochastic(weight, strengths, jnp.int32(0), random), weight)


# -- Stochastic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_stochastic_equals_the_oracle(rate: int):
    """Every strength there is, random numbers at their bounds, weights that saturate."""
    randoms = [0, 1, 2047, 2048, 4094, 4095]
    s, r, w = (grid.reshape(-1) for grid in np.meshgrid(range(-128, 129), randoms, WEIGHTS))
    moved = stochastic(jnp.asarray(w.astype(np.int8)), int32(s), jnp.int32(rate), int32(r))
    assert moved.dtype == jnp.int8
    assert moved.tolist() == [
        oracle.randomly_moved(weight, strength, rate, random)
        for weight, strength, random in zip(w.tolist(), s.tolist(), r.tolist(), strict=True)
    ]


@pytest.mark.parametrize("rate", RATES)
def test_stochastic_is_unbiased(rate: int):
    """Over all 4096 random numbers a weight moves, in sum, by 4096 times what is wanted."""
    strengths = [-128, -127, -64, -3, -1, 0, 1, 2, 50, 127, 128]
    shape = len(strengths), 4096
    moved = stochastic(
        jnp.zeros(shape, jnp.int8),
        jnp.asarray(np.repeat(np.array(strengths, np.int32)[:, None], 4096, axis=1)),
        jnp.int32(rate),
        jnp.asarray(np.repeat(np.arange(4096, dtype=np.int32)[None], len(strengths), axis=0)),
    )
    total = np.asarray(moved).astype(np.int64).sum(axis=1)
    assert total.tolist() == [oracle.shift_down(s * rate, 7) for s in strengths]


@pytest.mark.parametrize("name", NAMES)
def test_no_vote_makes_a_weight_minus_128(name: str):
    """Weights at -127 under the largest learning rate stay within +-127, in every update."""
    votes = ballots()[name]
    for level in (-127, 127):
        weight, rate = jnp.full(votes.shape, level, jnp.int8), jnp.int32(RATE_MAX)
        strengths = strength(int32(votes), 0.01)
        moved = [
            carry(weight, jnp.full(votes.shape, -2048, jnp.int16), strengths, rate)[0],
            stochastic(weight, strengths, rate, jnp.full(votes.shape, 4095, jnp.int32)),
            by_magnitude(weight, int32(votes), jnp.int32(0)),
        ]
        assert min(int(m.min()) for m in moved) >= -127
