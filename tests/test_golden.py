"""Golden hashes: every recipe gives the bits it has always given.

For every architecture and recipe of the README's table of hashes, at a small size and in two
chunks: the weights after 2 and after 5 steps, and the members' scores in the first and the last of
them. `test_evolve.py` compares such steps with the oracle; here nothing but results counts, so that
code may move as it likes.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pytest

from int_lm import config as configuration, plugins
from int_lm.method import evolve, recipe
from int_lm.model import hashing

VOCABULARY = 29
STOCHASTIC = "plugins.stochastic:STOCHASTIC"  # an update that is a plug-in


def hash_after(
    fields: dict[str, dict[str, Any]], vocab_size: int, steps: set[int], every: int = 8
) -> list[str]:
    """Hashes of the scores of the first step, of the weights after each of `steps`, and of the
    scores of the last one: 16 hex digits each.

    Args:
      fields: of a configuration, by section.
      every: one token in so many is a separator.
    """
    config = configuration.validate(configuration.from_dict(fields))
    plugins.trust_settings(config)
    resolved = recipe.of(config, vocab_size)
    state, step = evolve.initial(resolved), evolve.compiled_step(resolved)
    weights, scores = [], []
    for number in range(max(steps)):
        tokens = tokens_of(config.es.streams, config.es.segment_length, vocab_size, number, every)
        state, metrics = step(state, tokens, number)
        scores.append(np.asarray(metrics.scores_P, "<i4").tobytes())
        if number + 1 in steps:
            weights.append(hashing.weights_hash(evolve.weights(resolved, state)))
    first, last = (hashlib.sha256(scores[n]).hexdigest()[:16] for n in (0, -1))
    return [first, *weights, last]


def tokens_of(streams: int, length: int, vocab_size: int, number: int, every: int) -> np.ndarray:
    """Tokens of a step, uint16 [S, T+1]: texts, separators between them, padding after some."""
    shape = streams, length + 1
    raw = np.random.Philox(key=[11, number]).random_raw(streams * (length + 1)).reshape(shape)
    # every second token follows from the one before, so that there is something to learn
    tokens = 1 + (raw >> 32) % (vocab_size - 1)
    tokens[:, 1::2] = 1 + tokens[:, :-1:2][:, : tokens[:, 1::2].shape[1]] * 3 % (vocab_size - 1)
    tokens[raw % every == 0] = 0
    tokens[number % streams, -3:] = 0
    tokens[(number + 1) % streams, :4] = 0
    return tokens.astype(np.uint16)


class Golden(NamedTuple):
    """What a recipe has always given; see `hash_after`."""

    scores: str
    weights_2: str
    weights_5: str
    scores_5: str


# by (architecture, name as in benchmarks/determinism.py)
GOLDEN: dict[tuple[str, str], Golden] = {
    ("egg", "eggroll"): Golden(
        "23430ef5c81a7650", "59f0e13a03b3485e", "bbad8c7c83e77157", "22ab5648eaa4d269"
    ),
    ("egg", "eggroll, exact"): Golden(
        "98d4afe92648eaeb", "6e550839ff94585c", "cb1ec43c1b50c5a7", "36f90ce86b370efe"
    ),
    ("egg", "trace"): Golden(
        "23430ef5c81a7650", "60e135feb06d8bde", "12c643e600ffaa54", "aee05d45e0032ffe"
    ),
    ("egg", "trace, exact"): Golden(
        "e3c361011c9abd8b", "3a6d8cafe866ef36", "a41b211788974baa", "cc2f3e380d0fe855"
    ),
    ("egg", "unit, exact, direct"): Golden(
        "8d7ad62762b1f7e0", "df3a65d45a0bdc77", "108d116c36979740", "0d5a96f1526d4759"
    ),
    ("rwkv", "eggroll"): Golden(
        "a503e89934b33860", "b496f36626fc0801", "fb8d2d84c09f5577", "562739c73b970d80"
    ),
    ("rwkv", "eggroll, exact"): Golden(
        "d0f02a9561f5aaff", "49a10461f83f7f5f", "88bf7db37c54614a", "7a9fd4b0c6aeecab"
    ),
    ("rwkv", "trace"): Golden(
        "a503e89934b33860", "f0d39684d0a7e545", "ac64e027d2648bab", "17fd251379610792"
    ),
    ("rwkv", "trace, exact"): Golden(
        "965c36df942d5035", "92fb453f3a269889", "dd84b44eebfadd8d", "7310afcd6e3a08b0"
    ),
    ("rwkv", "unit, exact, direct"): Golden(
        "d0f02a9561f5aaff", "5d807f1705caff5f", "08ad0635b293d267", "09f23f1ab1a95eaa"
    ),
}
ADAPTIVE = Golden("d0f02a9561f5aaff", "cb6b0d14a369f22f", "609b0b7e3c7a9b89", "56d53d211967c354")
CACHED = Golden("d0f02a9561f5aaff", "9086520bda806510", "f8a1383bcf49d68d", "aa96586de7ced45a")
LOCAL = Golden("56c6885404014d06", "b25ca8e93ac2bde2", "4b807cbc2a4fa9e8", "224f14488f2925e2")
POOLED = Golden("4c95ebec51116c23", "94a246d511078157", "6186e1f6e906d504", "ce71391bdc8a7687")
WORDS = Golden("ef1c4a19d45e94a1", "55161cdc7c4e0074", "093dd2c3a360ddc3", "0685cb7fa7cc2672")
WIDE = Golden("394f13cef1694ebf", "9d8b520f49c53874", "2c992e9567e30dd6", "54403b251e5a85c0")

RECIPES: dict[str, dict[str, Any]] = {
    "eggroll": {"votes": "eggroll", "readout": "perturbed", "update": "threshold"},
    "eggroll, exact": {"votes": "eggroll", "readout": "exact", "update": STOCHASTIC},
    "trace": {"votes": "trace", "readout": "perturbed", "update": "threshold"},
    "trace, exact": {  # and what the others leave at its default
        **{"votes": "trace", "readout": "exact", "update": "carry"},
        **{"noise": "gaussian", "rank": 2, "fitness": "linear"},
        **{"members_per_stream": 4, "schedule": "inverse_sqrt"},
    },
    "unit, exact, direct": {"votes": "unit", "readout": "exact", "update": "carry"},
}


def fields_of(architecture: str, name: str, **es: Any) -> dict[str, dict[str, Any]]:
    """Fields of a small configuration of a recipe; keyword arguments are more fields of `es`."""
    sizes = {"population": 16, "segment_length": 8, "sigma_shift": 3, "chunk": 8}
    sizes |= {"schedule": "inverse"}
    model = {"architecture": architecture, "width": 16, "layers": 2, "ffn_multiple": 2}
    if "direct" in name:
        model |= {"direct": [1, 3], "direct_bits": 8}
    return {"model": model, "es": {**sizes, **RECIPES[name], **es}, "run": {"seed": 5, "steps": 60}}


MESSAGE = (
    "training no longer gives the bits it used to give. If you did not mean to change them, find "
    "with the other tests what did; if you did, test_evolve.py says what a change of bits asks for"
)


# Every recipe and both architectures; the other combinations are slow ones.
FAST = {("egg", "eggroll"), ("egg", "unit, exact, direct")}
FAST |= {("rwkv", name) for name in ("eggroll, exact", "trace", "trace, exact")}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [pytest.param(*key, marks=[] if key in FAST else [pytest.mark.slow]) for key in GOLDEN],
)
def test_recipes_give_the_bits_they_have_always_given(architecture: str, name: str):
    """Weights and scores of all recipes, with their updates."""
    found = hash_after(fields_of(architecture, name), VOCABULARY, {2, 5})
    assert Golden(*found) == GOLDEN[architecture, name], MESSAGE


def test_the_adaptive_update_gives_the_bits_it_has_always_given():
    """Two moments beside the remainder; the other recipes have the other updates."""
    fields = fields_of("rwkv", "unit, exact, direct", update="adaptive")
    assert Golden(*hash_after(fields, VOCABULARY, {2, 5})) == ADAPTIVE, MESSAGE


def test_local_votes_give_the_bits_they_have_always_given():
    """Of every member; members read streams of their own, some without the longer table."""
    more = {"votes": "local", "members_per_stream": 1, "direct_dropout": 0.4}
    fields = fields_of("rwkv", "unit, exact, direct", **more)
    fields["model"] |= {"cache": [2, 1], "cache_bits": 5}
    assert Golden(*hash_after(fields, VOCABULARY, {2, 5})) == LOCAL, MESSAGE


def test_a_pool_gives_the_bits_it_has_always_given():
    """The weights times trust, of documents that are long enough to be held back."""
    more = {"votes": "deep", "members_per_stream": 1, "update": "adaptive", "pooled": True}
    fields = fields_of("rwkv", "unit, exact, direct", **more)
    fields["model"] |= {"cache": [2, 1], "cache_bits": 5}
    assert Golden(*hash_after(fields, VOCABULARY, {2, 5}, every=256)) == POOLED, MESSAGE


def test_the_document_cache_gives_the_bits_it_has_always_given():
    """Beside context tables, over segments of one document."""
    fields = fields_of("rwkv", "unit, exact, direct")
    fields["model"] |= {"cache": [2, 1], "cache_bits": 5}
    assert Golden(*hash_after(fields, VOCABULARY, {2, 5})) == CACHED, MESSAGE


def test_words_give_the_bits_they_have_always_given():
    """Tables of words, and streams that are read without them."""
    fields = fields_of("rwkv", "unit, exact, direct", direct_dropout=0.4)
    fields["model"] |= {"words": [1, 2]}
    assert Golden(*hash_after(fields, 256, {2, 5})) == WORDS, MESSAGE


def test_a_wide_vocabulary_gives_the_bits_it_has_always_given():
    """Above 256 tokens; with gaussian noise of rank 2, context tables and four members a stream."""
    more = {"noise": "gaussian", "rank": 2, "members_per_stream": 4, "learning_rate": 2.0}
    fields = fields_of("rwkv", "unit, exact, direct", schedule="inverse_sqrt_to_zero", **more)
    fields["model"]["layers"] = 3
    assert Golden(*hash_after(fields, 300, {2, 5})) == WIDE, MESSAGE
