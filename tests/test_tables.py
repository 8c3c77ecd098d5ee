"""Tables and schedules: equal to the same numbers found by other means, on every machine."""

import hashlib
import math
import statistics

import numpy as np
import oracle
import pytest

from int_lm import tables
from int_lm.config import GAUSSIAN_MAX, EsConfig

CLEARANCE = 1e-7  # no table entry is nearer than this to where rounding would change it


def distance_to_half(values: list[float]) -> float:
    """How near the nearest of `values` is to a number that rounds either way."""
    return min(abs(value - math.floor(value) - 0.5) for value in values)


@pytest.mark.parametrize("bits", [22, 28])
def test_exp2_table_is_rounded_powers_of_two(bits: int):
    """255 entries from 2^bits down, one octave every 16, none of them 0."""
    table = tables.exp2(bits)
    assert table.dtype == np.int32
    assert table.tolist() == oracle.exp2_table(bits)
    assert table[0] == 2**bits and table[160] == 2 ** (bits - 10) and table.min() > 0
    assert distance_to_half([2.0 ** (bits - d / 16) for d in range(255)]) > CLEARANCE


def test_log2_table_is_rounded_logarithms():
    """From log2 1 = 0 to log2 2 = 2^22, rising all the way."""
    table = tables.log2_mantissa()
    assert table.dtype == np.int32
    assert table.tolist() == oracle.log2_table()
    assert table[0] == 0 and table[-1] == 2**22 and np.all(np.diff(table) > 0)


def test_gaussian_table_is_odd_and_normal():
    """Sixteen random bits index a normal distribution of standard deviation 16."""
    table = tables.gaussian_quantiles()
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


def test_alpha_is_constant_below_one_and_decays_from_one_up():
    """The paper's 1 / (0.015 step + 1) for alpha 1; capped at 1 above; constant below."""
    assert [tables.alpha_at(EsConfig(alpha=0.25), step) for step in (0, 10, 10**6)] == [0.25] * 3
    decaying = EsConfig(alpha=1.0, alpha_halflife=1 / 0.015)
    for step in (0, 1, 67, 1000):
        assert tables.alpha_at(decaying, step) == pytest.approx(1 / (0.015 * step + 1))
    held = EsConfig(alpha=4.0, alpha_halflife=10.0)
    assert [tables.alpha_at(held, step) for step in (0, 30, 70)] == pytest.approx([1.0, 1.0, 0.5])


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.3173, 0.5, 0.99, 1.0, 2.5])
@pytest.mark.parametrize("step", [0, 5, 1000])
def test_vote_threshold_leaves_a_share_alpha_of_noise_above_it(alpha: float, step: int):
    """z equals the root of erfc(z / sqrt 2) = alpha that bisection finds."""
    es = EsConfig(alpha=alpha)
    assert tables.vote_threshold(es, step) == oracle.vote_threshold(es, step)


def test_vote_threshold_knows_its_landmarks():
    """Everything passes at alpha 1; one standard deviation leaves 31.73 % above it."""
    assert tables.vote_threshold(EsConfig(alpha=1.0), 0) == 0
    assert tables.vote_threshold(EsConfig(alpha=0.3173), 0) == 1024


@pytest.mark.parametrize(
    "es", [EsConfig(alpha=1e-300), EsConfig(alpha=5e-17), EsConfig(alpha_halflife=1e-320)]
)
def test_vote_threshold_stays_small_for_any_alpha_a_user_can_ask_for(es: EsConfig):
    """A vanishing alpha neither fails nor leaves the 13 bits that `update` relies on."""
    assert tables.vote_threshold(EsConfig(alpha=1e-13), 9) < tables.vote_threshold(es, 9) < 2**13


@pytest.mark.parametrize("n_in", [1, 2, 3, 8, 48, 64, 96, 256])
def test_initial_scale_keeps_the_variance_through_a_linear(n_in: int):
    """sqrt(n_in) * scale / 2^shift is 1, whether or not sqrt(n_in) is a power of two."""
    shift = 4 + round(math.log2(n_in) / 2)
    assert math.sqrt(n_in) * tables.initial_scale(n_in) / 2**shift == pytest.approx(1.0)


def test_bits_reads_a_log_likelihood_as_code_length():
    """-2^16 units are one bit."""
    assert tables.bits(-3 * 2**15) == 1.5
