"""Limits of the integers that everything computes with. `method.bounds` builds on them."""

from int_lm.settings import StrategySettings

INT32_MAX = 2**31 - 1
INT8_MAX = 127  # -128 never occurs: abs(-128) wraps
GAUSSIAN_MAX = 69  # largest magnitude in tables.gaussian_quantiles (a test holds them together)
RADEMACHER_MAX = 16
FITNESS_MAX = {"sign": 1, "linear": 7, "rank": 7, "standard": 7}  # largest |fitness| of a pair
LINEAR_LEVELS_AT_MEAN = 3  # `linear`: fitness of a pair whose |score difference| is the mean
LOG2_FRACTION_BITS = 16  # a log-likelihood is an integer in units of 2^-16 bit
DECAY_MIN = 2.0**-16  # the unit that a decay is rounded to
LEARNING_RATE_MIN, LEARNING_RATE_MAX = 2.0**-12, 4.0  # the least is the unit it is rounded to
DIRECT_LENGTH_MAX = 16
WORDS_MAX = 4
DIRECT_BITS = range(8, 25)
CACHE_BITS = range(4, 17)
CACHE_SLOTS = 3  # tokens of a row of the document cache, and bits of what it stores
CACHE_RUN_BITS, CACHE_CHECK_BITS, CACHE_TOKEN_BITS = 4, 11, 16
SPARE_BITS_MAX = 4  # an operand of votes keeps three bits and a sign
SEPARATOR = 0  # the id between documents
NO_TARGET = -1  # of a token that nothing is asked of
WORST_BITS_PER_TOKEN = 32  # (max logit - min logit) / 16 + log2 V <= 15.9 + 16


def noise_max(es: StrategySettings) -> int:
    """Largest magnitude an entry of A or B can have."""
    return RADEMACHER_MAX if es.noise == "rademacher" else GAUSSIAN_MAX


def voters(es: StrategySettings) -> int:
    """Rows whose tokens vote: the first member of every pair, or every member if none is perturbed.

    Members that are not perturbed do not differ, so each reads a stream of its own.
    """
    return es.population if es.members_per_stream == 1 else es.population // 2


def together(es: StrategySettings) -> int:
    """Members that stay in one chunk and on one device: those of a stream, and a pair."""
    return max(2, es.members_per_stream)


def spare_bits(es: StrategySettings) -> int:
    """Bits by which the operands of votes gathered token by token are narrower than int8.

    The least for which voters x T tokens x 127 x (127 >> bits) stays below 2^31, at most 4:
    `method.bounds` refuses what needs more.
    """
    terms = voters(es) * es.segment_length * INT8_MAX
    bits = 0
    while bits < SPARE_BITS_MAX and terms * (INT8_MAX >> bits) > INT32_MAX:
        bits += 1
    return bits
