"""Refuses configurations with impossible values."""

import dataclasses
import json
import re

from int_lm.config.load import SECTIONS, sources_of, to_dict
from int_lm.config.schema import Config, DataConfig, DistributedConfig
from int_lm.errors import require
from int_lm.files import untrusted
from int_lm.limits import (
    CACHE_BITS,
    DECAY_MIN,
    DIRECT_BITS,
    DIRECT_LENGTH_MAX,
    INT8_MAX,
    LEARNING_RATE_MAX,
    WORDS_MAX,
    together,
)


def _validate_sources(data: DataConfig) -> None:
    """Refuse sources of text that name no text, or contradict one another."""
    own = any(getattr(data, key) != getattr(DataConfig(), key) for key in ("source", "path"))
    require(
        not (data.mixture and own),
        "data.mixture and data.source or data.path name text; drop one of the two",
    )
    names = [source.name for source in data.mixture]
    require(
        all(re.fullmatch(r"[\w.-]+", name) for name in names) and len(set(names)) == len(names),
        f"data.mixture has the names {names}; give every source another one, of letters and digits",
    )
    require(
        any(source.weight > 0 for source in sources_of(data)),
        "every weight in data.mixture is 0; give a source that is to be read a weight above 0",
    )
    for source in sources_of(data):
        require(source.weight >= 0, f"weight {source.weight} in data.mixture must be at least 0")
        if source.source == "stdlib":
            require(
                len(source.path) == 0,
                "data.source is stdlib but data.path names files; drop one of the two",
            )
            continue
        what = "file" if source.source != "hub" else "dataset"
        require(
            len(source.path) > 0,
            f"data.source is {source.source} but no {what} is named; add --data.path",
        )
        require("" not in source.path, "data.path names an empty path; write . for this directory")
        require(
            source.source != "hub" or len(source.path) == 1,
            f"data.source hub reads one dataset, data.path names {len(source.path)}; "
            "use data.mixture for several",
        )
    require(
        not (data.window_bytes and data.mixture),
        "data.window_bytes works with one source; prepare the sources of data.mixture first",
    )
    require(data.tokenizer != "", "data.tokenizer is empty; use bytes, a directory or a file")
    require(data.shards != "", "data.shards is empty; name a directory such as shards")


def _validate_distributed(distributed: DistributedConfig) -> None:
    """Refuse processes that cannot find one another."""
    named = distributed.coordinator not in ("auto", "none")
    require(
        not named or re.fullmatch(r".+:\d{1,5}", distributed.coordinator) is not None,
        f"distributed.coordinator is {distributed.coordinator!r}, must be host:port, auto or none",
    )
    given = distributed.processes > 0 and distributed.process_id >= 0
    require(
        given if named else distributed.processes == 0 and distributed.process_id == -1,
        "distributed.coordinator, distributed.processes and distributed.process_id go together; "
        "give all three, or none of them",
    )
    require(
        not named or distributed.process_id < distributed.processes,
        f"distributed.process_id is {distributed.process_id}, must be below distributed.processes "
        f"{distributed.processes}",
    )


def validate(config: Config) -> Config:
    """Return `config` if every value is possible. JAX is not imported.

    `method.recipe.check` checks what depends on architecture and method, such as the bounds of
    sums.

    Raises:
      UserError: a value is impossible, or two values do not fit; the message has the values.
    """
    model, es, data, run = config.model, config.es, config.data, config.run
    plain = to_dict(config)
    for section in SECTIONS:
        for field in dataclasses.fields(SECTIONS[section]):
            value, least = getattr(getattr(config, section), field.name), field.metadata["least"]
            if isinstance(value, int | float):
                most = untrusted.INTEGER_MAX
                require(value >= least, f"{section}.{field.name} is {value}, must be >= {least}")
                require(value <= most, f"{section}.{field.name} is {value}, must be <= {most}")
            named = json.dumps(plain[section][field.name], ensure_ascii=False)
            require(
                not re.search("[\ud800-\udfff]", named),
                f"{section}.{field.name} is {ascii(named)}, not UTF-8; use another name",
            )
    require(
        es.population % 2 == 0,
        f"es.population is {es.population}, must be even (members go two by two)",
    )
    readers = f"es.members_per_stream {es.members_per_stream}"
    require(
        es.members_per_stream == 1 or es.members_per_stream % 2 == 0,
        f"{readers} must be even (a pair reads one stream), or 1 (votes local, deep)",
    )
    multiple = es.population % es.members_per_stream == 0
    require(multiple, f"es.population {es.population} is not a multiple of {readers}")
    require(
        not es.chunk or es.population % es.chunk == es.chunk % together(es) == 0,
        f"es.chunk {es.chunk} must be even, divide es.population {es.population} and be a multiple "
        f"of {readers}",
    )
    for name in ("alpha", "alpha_halflife", "learning_rate", "learning_rate_halflife"):
        require(getattr(es, name) > 0, f"es.{name} is {getattr(es, name)}, must be above 0")
    require(es.warmup >= 0, f"es.warmup is {es.warmup}, must be a number of steps, or 0")
    require(
        es.learning_rate <= LEARNING_RATE_MAX,
        f"es.learning_rate is {es.learning_rate}, must be at most {LEARNING_RATE_MAX}",
    )
    require(
        0 < es.beta1 < 1 and es.beta1**2 <= es.beta2 < 1,
        f"es.beta1 is {es.beta1} and es.beta2 {es.beta2}; both must lie between 0 and 1, and beta2 "
        "must be at least beta1 squared",
    )
    lengths = set(model.direct)
    require(
        len(lengths) == len(model.direct) and lengths <= set(range(1, DIRECT_LENGTH_MAX + 1)),
        f"model.direct is {list(model.direct)}, must be different lengths from 1 to "
        f"{DIRECT_LENGTH_MAX}",
    )
    numbers = set(model.words)
    require(
        len(numbers) == len(model.words) and numbers <= set(range(1, WORDS_MAX + 1)),
        f"model.words is {list(model.words)}, must be different numbers from 1 to {WORDS_MAX}",
    )
    require(
        not model.words or data.tokenizer == "bytes",
        f"model.words is {list(model.words)}, which needs tokens that are bytes; leave it out, or "
        "use --data.tokenizer bytes",
    )
    require(
        model.direct_bits in DIRECT_BITS,
        f"model.direct_bits is {model.direct_bits}, must lie between {DIRECT_BITS[0]} and "
        f"{DIRECT_BITS[-1]}",
    )
    lengths = set(model.cache)
    require(
        len(lengths) == len(model.cache) and lengths <= set(range(1, DIRECT_LENGTH_MAX + 1)),
        f"model.cache is {list(model.cache)}, must be different lengths from 1 to "
        f"{DIRECT_LENGTH_MAX}",
    )
    require(
        model.cache_bits in CACHE_BITS,
        f"model.cache_bits is {model.cache_bits}, must lie between {CACHE_BITS[0]} and "
        f"{CACHE_BITS[-1]}",
    )
    require(
        0 < es.direct_rate <= INT8_MAX,
        f"es.direct_rate is {es.direct_rate}, must be above 0 and at most {INT8_MAX}",
    )
    require(
        0 <= es.direct_dropout < 1,
        f"es.direct_dropout is {es.direct_dropout}, must be at least 0 and below 1",
    )
    require(
        es.direct_dropout_above <= DIRECT_LENGTH_MAX,
        f"es.direct_dropout_above is {es.direct_dropout_above}, must be at most "
        f"{DIRECT_LENGTH_MAX}",
    )
    require(es.sigma_shift <= 12, f"es.sigma_shift is {es.sigma_shift}, must be at most 12")
    require(
        es.decay == 0 or DECAY_MIN <= es.decay <= 1,
        f"es.decay is {es.decay}, must be 0, or from {DECAY_MIN:g} to 1: less shrinks nothing",
    )
    require(es.anchor <= 1, f"es.anchor is {es.anchor}, must be at most 1")
    reward = config.reward
    require(0 < reward.holdout < 1, f"reward.holdout is {reward.holdout}, must lie between 0 and 1")
    require(
        reward.pass_at == 1 or reward.temperature > 0,
        f"reward.pass_at is {reward.pass_at}, but without a temperature all of them "
        "are the same; add --reward.temperature 1",
    )
    require(0 < data.holdout < 1, f"data.holdout is {data.holdout}, must lie between 0 and 1")
    _validate_sources(data)
    _validate_distributed(config.distributed)
    require(run.dir != "", "run.dir is empty; name a directory such as runs/first")
    wrong = sorted(set(run.saving_signals) - {"HUP", "USR1", "USR2"})
    require(not wrong, f"run.saving_signals names {wrong}, must be among HUP, USR1 and USR2")
    require(run.seed < 2**31, f"run.seed is {run.seed}, must lie between 0 and 2^31 - 1")
    return config
