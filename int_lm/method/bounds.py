"""Bounds: how large the integers of a configuration can become, so that no int32 sum overflows.

docs/arithmetic.md has the table of these sums. `config.validate` refuses what passes int32.
"""

from int_lm.config.schema import Config, EsConfig, ModelConfig
from int_lm.limits import (
    FITNESS_MAX,
    GAUSSIAN_MAX,
    INT8_MAX,
    INT32_MAX,
    LOG2_FRACTION_BITS,
    RADEMACHER_MAX,
    SPARE_BITS_MAX,
    WORST_BITS_PER_TOKEN,
)


def noise_max(es: EsConfig) -> int:
    """Largest magnitude an entry of A or B can have."""
    return RADEMACHER_MAX if es.noise == "rademacher" else GAUSSIAN_MAX


def spare_bits(es: EsConfig) -> int:
    """Bits by which the operands of votes gathered token by token are narrower than int8.

    The least for which P / 2 pairs x T tokens x 127 x (127 >> bits) stays below 2^31, at most 4:
    `config.validate` refuses what needs more.
    """
    terms = es.population // 2 * es.segment_length * INT8_MAX
    bits = 0
    while bits < SPARE_BITS_MAX and terms * (INT8_MAX >> bits) > INT32_MAX:
        bits += 1
    return bits


def widest_inputs(model: ModelConfig) -> int:
    """The most inputs that a matrix has: of `rwkv` two widths beside each other, at least."""
    beside = 2 if model.architecture == "rwkv" else 1
    return model.width * max(model.ffn_multiple, beside)


def sums(config: Config) -> list[tuple[str, int]]:
    """(what is summed, the largest magnitude that it can reach) of every int32 sum."""
    model, es = config.model, config.es
    widest, amplitude = widest_inputs(model), noise_max(es)
    entry = es.rank * amplitude * amplitude  # the largest entry of A B^T
    votes = es.population // 2 * entry * FITNESS_MAX[es.fitness]
    score = es.segment_length * WORST_BITS_PER_TOKEN * 2**LOG2_FRACTION_BITS
    traced = es.population // 2 * es.rank * amplitude * INT8_MAX
    terms = es.population // 2 * es.segment_length
    gathered = es.votes != "eggroll" or es.readout == "exact"
    token_by_token = terms * INT8_MAX * (INT8_MAX >> spare_bits(es)) if gathered else 0
    credit = model.width * INT8_MAX * 2**12 if es.votes == "unit" else 0
    at_rank = f"at rank {es.rank} ({es.noise}"
    return [
        (f"a dot over {widest} inputs", widest * INT8_MAX * INT8_MAX * 2),
        (f"the perturbation of {widest} inputs {at_rank})", widest * INT8_MAX * entry),
        (f"the votes of {es.population} members {at_rank}, {es.fitness})", votes),
        (f"the traces of {es.population} members {at_rank})", traced * (es.votes == "trace")),
        (f"the votes of {es.population} members over {es.segment_length} tokens", token_by_token),
        (f"the credit of width {model.width}", credit),
        (f"the score of {es.segment_length} tokens", score),
    ]
