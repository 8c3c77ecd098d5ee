"""Limits of the integers that everything computes with. `method.bounds` builds on them."""

INT32_MAX = 2**31 - 1
INT8_MAX = 127  # -128 never occurs: abs(-128) wraps
GAUSSIAN_MAX = 69  # largest magnitude in tables.gaussian_quantiles (a test holds them together)
RADEMACHER_MAX = 16
FITNESS_MAX = {"sign": 1, "linear": 7}  # largest |fitness| of a pair
LOG2_FRACTION_BITS = 16  # a log-likelihood is an integer in units of 2^-16 bit
LEARNING_RATE_MIN, LEARNING_RATE_MAX = 2.0**-12, 4.0  # the least is the unit it is rounded to
DIRECT_LENGTH_MAX = 16
DIRECT_BITS = range(8, 25)
VOTE_CLIP_MAX = 8.0
SPARE_BITS_MAX = 4  # an operand of votes keeps three bits and a sign
SEPARATOR = 0  # the id between documents
NO_TARGET = -1  # of a token that nothing is asked of
WORST_BITS_PER_TOKEN = 32  # (max logit - min logit) / 16 + log2 V <= 15.9 + 16
