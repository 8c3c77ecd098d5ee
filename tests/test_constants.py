"""Constants and schedules: equal to the same numbers found by other means, on every machine."""

import hashlib
import math
import statistics

import numpy as np
import oracle
import pytest

from int_lm.arithmetic import constants
from int_lm.config import Config, EsConfig, RunConfig
from int_lm.limits import GAUSSIAN_MAX, LEARNING_RATE_MAX
from int_lm.method.update import carry, threshold

SCHEDULES = ["constant", "linear", "cosine", "inverse", "inverse_sqrt", "inverse_sqrt_to_zero"]
CLEARANCE = 1e-7  # no table entry is nearer than this to where rounding would change it


def of(steps: int = 1000, **es) -> Config:
    """A configuration with fields of `es`."""
    return Config(es=EsConfig(**es), run=RunConfig(steps=steps))


def distance_to_half(values: list[float]) -> float:
    """How near the nearest of `values` is to a number that rounds either way."""
    return min(abs(value - math.floor(value) - 0.5) for value in values)


@pytest.mark.parametrize("bits", [22, 28])
def test_exp2_table_is_rounded_powers_of_two(bits: int):
    """255 entries from 2^bits down, one octave every 16, none of them 0."""
    table = constants.exp2(bits)
    assert table.dtype == np.int32
    assert table.tolist() == oracle.exp2_table(bits)
    assert table[0] == 2**bits and table[160] == 2 ** (bits - 10) and table.min() > 0
    assert distance_to_half([2.0 ** (bits - d / 16) for d in range(255)]) > CLEARANCE


def test_log2_table_is_rounded_logarithms():
    """From log2 1 = 0 to log2 2 = 2^22, rising all the way."""
    table = constants.log2_mantissa()
    assert table.dtype == np.int32
    assert table.tolist() == oracle.log2_table()
    assert table[0] == 0 and table[-1] == 2**22 and np.all(np.diff(table) > 0)


def test_gaussian_table_is_odd_and_normal():
    """Sixteen random bits index a normal distribution of standard deviation 16."""
    table = constants.gaussian_quantiles()
    assert table.dtype == np.int8 and table.shape == (65536,)
    assert table.tolist() == oracle.gaussian_quantiles()
    np.testing.assert_array_equal(table, -table[::-1])
    assert int(np.abs(table.astype(np.int32)).max()) == GAUSSIAN_MAX
    assert abs(table.astype(np.float64).std() - 16) < 0.02
    digest = hashlib.sha256(table.tobytes()).hexdigest()[:16]
    assert digest == "7c892af41a8ce209", (
        "the gaussian table changed, and with it every run's noise: if this is meant, raise "
        "noise.NOISE_VERSION and put the new digest here"
    )


def test_no_gaussian_entry_depends_on_the_last_bits_of_a_float():
    """Every entry is so far from a rounding edge that no floating-point library can move it."""
    normal = statistics.NormalDist()
    scaled = [16 * normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    assert distance_to_half(scaled) > CLEARANCE


@pytest.mark.parametrize("bits", [22, 28, 29])
def test_an_octave_gives_every_entry_of_exp2(bits: int):
    """Shifted right by its octaves and the bits too many, rounded half up."""
    distance = np.arange(255)
    down = 30 - bits + (distance >> 4)
    terms = (constants.exp2_octave().astype(np.int64)[distance & 15] + (1 << (down - 1))) >> down
    assert terms.tolist() == oracle.exp2_table(bits)
    assert int(constants.exp2_octave()[0]) == 1 << 30


def test_exp2_fraction_table_is_rounded_powers_of_two():
    """2^15 2^-x at the middles of 1024 cells of [0, 1): falling, between 2^14 and 2^15."""
    table = constants.exp2_fraction()
    assert table.dtype == np.int32
    assert table.tolist() == oracle.exp2_fraction_table()
    assert table.max() < 2**15 and table.min() > 2**14 and np.all(np.diff(table) < 0)
    assert distance_to_half([2.0 ** (15 - (i + 0.5) / 1024) for i in range(1024)]) > CLEARANCE


# -- Schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, at_half, at_end, beyond",
    [
        ("constant", 1, 1, 1),
        ("linear", 0.5, 0, 0),
        ("cosine", 0.5, 0, 0),
        ("inverse", 1 / (1 + 5), 1 / (1 + 10), 1 / (1 + 30)),
        ("inverse_sqrt", (1 + 5) ** -0.5, (1 + 10) ** -0.5, (1 + 30) ** -0.5),
        ("inverse_sqrt_to_zero", 0.5 * (1 + 5) ** -0.5, 0, 0),
    ],
)
def test_schedules_know_their_landmarks(
    schedule: str, at_half: float, at_end: float, beyond: float
):
    """Whole at step 0, then as stated; some end at run.steps and stay there."""
    config = of(
        steps=400,
        schedule=schedule,
        alpha=1.0,
        alpha_halflife=40.0,
        learning_rate=2.0,
        learning_rate_halflife=40.0,
    )
    for step, expected in ((0, 1), (200, at_half), (400, at_end), (1200, beyond)):
        assert threshold.alpha_at(config, step) == pytest.approx(expected, abs=1e-12)
        assert carry.learning_rate(config, step) == round(2 * 4096 * expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [0, 1, 7, 1000])
def test_schedules_equal_the_oracle_and_never_rise(schedule: str, steps: int):
    """At the start, on the way, at the end and beyond, also of a run of no or one step."""
    config = of(steps, schedule=schedule, alpha=0.9, learning_rate=0.7, learning_rate_halflife=31.7)
    times = sorted({0, 1, 3, steps // 3, steps // 2, max(0, steps - 1), steps, steps + 1, 10**7})
    rates = [carry.learning_rate(config, step) for step in times]
    assert rates == [oracle.learning_rate(config, step) for step in times]
    assert rates == sorted(rates, reverse=True) and rates[0] == round(0.7 * 4096)
    limits = [threshold.vote_threshold(config, step) for step in times]
    assert limits == sorted(limits) and 0 <= limits[-1] < 2**13
    decayed = [step for step in times if threshold.alpha_at(config, step) > 1e-12]
    assert limits[: len(decayed)] == [oracle.vote_threshold(config, step) for step in decayed]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_rises_in_its_warmup(schedule: str):
    """In proportion to the steps done, times the decay; from then on it is what it is without."""
    config = of(1000, schedule=schedule, learning_rate=2.0, learning_rate_halflife=50.0, warmup=8)
    plain = of(1000, schedule=schedule, learning_rate=2.0, learning_rate_halflife=50.0)
    for step in (0, 1, 6, 7, 8, 500, 1000):
        rate = carry.learning_rate(config, step)
        assert rate == oracle.learning_rate(config, step)
        share = min(step + 1, 8) / 8
        assert abs(rate - share * carry.learning_rate(plain, step)) <= 1
    rates = [carry.learning_rate(config, step) for step in range(8)]
    assert rates == sorted(rates) and rates[0] == 1024
    assert carry.learning_rate(config, 7) == carry.learning_rate(plain, 7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_have_14_bits(schedule: str):
    """Integers from 0 to 2^14, which the largest learning rate reaches at step 0."""
    config = of(schedule=schedule, learning_rate=LEARNING_RATE_MAX, learning_rate_halflife=1e-300)
    rates = [carry.learning_rate(config, step) for step in (0, 1, 500, 1000, 10**9)]
    assert rates[0] == 2**14 and all(isinstance(rate, int) and rate >= 0 for rate in rates)
    assert all(rate <= 2**14 for rate in rates)
    assert carry.learning_rate(of(learning_rate=1e-9), 0) == 0


def test_alpha_decays_whatever_its_size():
    """The paper's 1 / (0.015 step + 1) for alpha 1; capped at 1 above; in proportion below."""
    for alpha in (1.0, 0.25):
        decaying = of(alpha=alpha, alpha_halflife=1 / 0.015, schedule="inverse")
        for step in (0, 1, 67, 1000):
            expected = alpha / (0.015 * step + 1)
            assert threshold.alpha_at(decaying, step) == pytest.approx(expected)
    held = of(alpha=4.0, alpha_halflife=10.0, schedule="inverse")
    assert [threshold.alpha_at(held, step) for step in (0, 30, 70)] == pytest.approx(
        [1.0, 1.0, 0.5]
    )
    constant = of(alpha=0.25, schedule="constant")
    assert [threshold.alpha_at(constant, step) for step in (0, 10, 10**6)] == [0.25] * 3


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.3173, 0.5, 0.99, 1.0, 2.5])
@pytest.mark.parametrize("schedule", ["constant", "inverse", "linear"])
@pytest.mark.parametrize("step", [0, 5, 900])
def test_vote_threshold_leaves_a_share_alpha_of_noise_above_it(
    alpha: float, schedule: str, step: int
):
    """z equals the root of erfc(z / sqrt 2) = alpha that bisection finds."""
    config = of(alpha=alpha, schedule=schedule)
    assert threshold.vote_threshold(config, step) == oracle.vote_threshold(config, step)


def test_vote_threshold_knows_its_landmarks():
    """Everything passes at alpha 1; one standard deviation leaves 31.73 % above it."""
    assert threshold.vote_threshold(of(alpha=1.0), 0) == 0
    assert threshold.vote_threshold(of(alpha=0.3173), 0) == 1024


@pytest.mark.parametrize(
    "es, step",
    [
        ({"alpha": 1e-300, "schedule": "inverse"}, 9),
        ({"alpha": 5e-17, "schedule": "inverse"}, 9),
        ({"alpha_halflife": 1e-320, "schedule": "inverse"}, 9),
        ({"schedule": "linear"}, 1000),
        ({"schedule": "cosine"}, 2000),
    ],
)
def test_vote_threshold_stays_small_for_any_alpha_a_user_can_ask_for(es: dict, step: int):
    """A vanishing alpha neither fails nor leaves the 13 bits that `update` relies on."""
    small = threshold.vote_threshold(of(alpha=1e-13, schedule="constant"), 9)
    assert small < threshold.vote_threshold(of(**es), step) < 2**13


@pytest.mark.parametrize("n_in", [1, 2, 3, 8, 48, 64, 96, 256])
def test_initial_scale_keeps_the_variance_through_a_linear(n_in: int):
    """sqrt(n_in) * scale / 2^shift is 1, whether or not sqrt(n_in) is a power of two."""
    shift = 4 + round(math.log2(n_in) / 2)
    assert math.sqrt(n_in) * constants.initial_scale(n_in) / 2**shift == pytest.approx(1.0)


def test_bits_reads_a_log_likelihood_as_code_length():
    """-2^16 units are one bit."""
    assert constants.bits(-3 * 2**15) == 1.5
