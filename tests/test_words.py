"""Context tables of words, and tables that are left out: what reads them equals the oracle."""

import contextlib
import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import config as configuration, native, runtime
from int_lm.arithmetic import constants
from int_lm.config import Config, DataConfig, DistributedConfig, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.measure import evaluate
from int_lm.method import evolve, placement, population, recipe
from int_lm.method.clock import Clock
from int_lm.model import context_tables, likelihood
from int_lm.model.params import Parameters

VOCABULARY, BITS = 256, 9
TINY = ModelConfig(
    "rwkv", width=8, layers=1, ffn_multiple=1, direct=(3, 1), words=(1, 3), direct_bits=BITS
)
ES = {"population": 8, "segment_length": 12, "sigma_shift": 2, "schedule": "inverse"}
TEXT = "The cat, the hat\n\nand the\0A\0\0 cafe caf\u00e9s: isn't\tZ[z]{@`~ 12a3 the cat,".encode()


def tiny(**more) -> recipe.Recipe:
    """A small recipe with tables of words."""
    return recipe.of(Config(model=TINY, es=EsConfig(**(ES | more))), VOCABULARY)


def tokens_at(step: int) -> np.ndarray:
    """Tokens [S, T + 1] of words, separators among them."""
    draw, rows = random.Random(step), []
    for stream in range(4):
        text = b" ".join(draw.choice([b"a", b"of", b"the", b"\xc3\xa4"]) for _ in range(13))[:13]
        rows.append(bytearray(text))
        rows[-1][draw.randrange(13)] = 0 if stream else ord("\n")
    return np.array(rows, np.uint8)


@functools.cache
def step_of(**more):
    """The compiled step of `tiny`."""
    return evolve.compiled_step(tiny(**more))


def trained(steps: int = 4, **more) -> evolve.State:
    """The state after some steps."""
    state = evolve.initial(tiny(**more))
    for number in range(steps):
        state, _ = step_of(**more)(state, tokens_at(number), number)
    return state


def test_rows_are_the_hash_of_the_last_words():
    """Words of every kind of letter, runs of other characters, words of one letter, separators."""
    for bits in (8, 24):
        model = ModelConfig(words=(1, 2, 4), direct_bits=bits)

        def read(state, token_1, model=model):
            state = context_tables.step(state, token_1)
            return state, context_tables.rows(model, state)

        tokens_T1 = jnp.array([*TEXT], jnp.int32)[:, None]
        _, rows = jax.lax.scan(read, context_tables.initial_state(model, 1), tokens_T1)
        assert sorted(rows) == ["words_1", "words_2", "words_4"]
        for t in range(len(TEXT)):
            for n in model.words:
                expected = oracle.contexts.row_of_words([*TEXT[: t + 1]], n, bits)
                assert int(rows[f"words_{n}"][t, 0]) == expected, (TEXT[: t + 1], n)


def test_every_byte_is_a_letter_or_ends_a_word():
    """All 256 tokens after a word of two letters, in JAX and in NumPy."""
    state = jnp.zeros((2, 256), jnp.int32)
    for letter in b"ab":
        state = context_tables.following_words(state, jnp.full(256, letter, jnp.int32))
    after = context_tables.following_words(state, jnp.arange(256, dtype=jnp.int32))
    for token in range(256):
        words = (oracle.contexts.words_of([*b"ab", token]) + [0])[:2]
        assert np.asarray(after)[:, token].astype(np.uint32).tolist() == words, token
    again = runtime.following_words(np.asarray(state), np.arange(256))
    np.testing.assert_array_equal(again, after)
    assert again.dtype == np.int32


def test_a_step_gives_tables_of_words_what_their_readings_say():
    """Rows of a whole step, which begins inside of words, have one more reading; others are left.

    What a row learns is `context_tables.update`, which `test_context_tables.py` compares.
    """
    state, texts = evolve.initial(tiny()), [b""] * 4
    for step in range(3):
        tokens = tokens_at(step)
        old = jax.tree.map(np.array, state)
        state, _ = step_of()(state, tokens, step)
        for n in TINY.words:
            rows = [
                oracle.contexts.row_of_words([*text, *line[: t + 1]], n, BITS)
                for text, line in zip(texts, tokens.tolist(), strict=True)
                for t in range(12)
                if line[t] or line[t + 1]
            ]
            counts = old.tables.counts[f"words_{n}"].copy()
            counts[list(set(rows))] += 1
            np.testing.assert_array_equal(state.tables.counts[f"words_{n}"], counts)
            values = np.asarray(state.tables.values[f"words_{n}"])
            changed = np.any(values != old.tables.values[f"words_{n}"], axis=1)
            assert changed[rows].all() and changed.sum() == len(set(rows))
        texts = [text + bytes(line[:-1]) for text, line in zip(texts, tokens.tolist(), strict=True)]


def test_chunks_change_no_bit():
    """Members evaluated two at a time or all at once."""
    whole, parts = trained(), trained(chunk=2)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts))


@pytest.mark.parametrize("devices", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_several_devices_give_the_bits_of_one(devices: int):
    """Words of each stream lie on the device that reads it."""
    made, expected = tiny(), trained()
    place = placement.choose(DistributedConfig(devices=devices), made.es, 1)
    state = evolve.placed(made, evolve.initial(made), place)
    step = evolve.compiled_step(made, place)
    for number in range(4):
        state, _ = step(state, tokens_at(number), number)
    jax.tree.map(np.testing.assert_array_equal, placement.on_host(state), expected)


def test_no_float_in_a_step():
    """Every array of the step is of an integer dtype."""
    made = tiny()
    jaxpr = jax.make_jaxpr(lambda *operands: evolve.step(made, *operands))(
        evolve.initial(made), tokens_at(0), Clock.at(0, 0), evolve.values(made, 0)
    )
    assert "f32" not in str(jaxpr) and "f64" not in str(jaxpr) and "f16" not in str(jaxpr)


def test_numpy_computes_the_same():
    """Log-likelihoods of documents of words, in lanes of unequal length."""
    made, state = tiny(), trained()
    weights = Parameters(state.network, dict(state.tables.values))
    draw = np.random.default_rng(1)
    for name in ("words_1", "words_3"):
        table = draw.integers(-90, 91, (1 << BITS, VOCABULARY))
        weights.tables[name] = jnp.asarray(table, jnp.int8)
    words = [b"the ", b"a", b", ", b"\xc3\xa4ndern ", b"Then\n"]
    documents = [b"".join(draw.choice(words, n)) for n in (40, 1, 9)]
    tensors = {name: np.asarray(tensor) for name, tensor in weights.by_path().items()}
    settings = {"model": dataclasses.asdict(TINY), "vocab_size": VOCABULARY}
    exp2 = constants.exp2(likelihood.NARROW_BITS)
    model = runtime.Model(settings, runtime.Rwkv, tensors, exp2, constants.log2_mantissa())
    ids = [np.frombuffer(document, np.uint8) for document in documents]
    expected = evaluate.log2_likelihoods(made.model, weights, ids)
    assert runtime.log2_likelihoods(model, documents).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({}, "sentencepiece", "it has tables of words, which need the tokenizer bytes"),
        ({"words": [5]}, "bytes", "a size that is no positive integer up to 4"),
        ({"words": [1, 1]}, "bytes", "names a context table twice"),
    ],
)
def test_exports_with_impossible_words_are_refused(changes: dict, kind: str, message: str):
    """What config.json says of words is checked, as of other tables."""
    config = {"model": dataclasses.asdict(TINY), "vocab_size": 256, "tokenizer": {"kind": kind}}
    config["tokenizer"]["vocab_size"] = 256
    config["model"] |= changes
    with pytest.raises(runtime.ExportError, match=message):
        runtime.expected_tensors(config, runtime.ARCHITECTURES)
    good = config | {"model": dataclasses.asdict(TINY), "tokenizer": {"kind": "bytes"}}
    good["tokenizer"]["vocab_size"] = 256
    expected = runtime.expected_tensors(good, runtime.ARCHITECTURES)
    assert expected["direct/words_3"] == ("I8", [1 << BITS, 256])


@functools.partial(jax.jit, static_argnums=0)
def outcome_of(made: recipe.Recipe, state: evolve.State) -> population.Outcome:
    """What all members make of the tokens of step 1."""
    pairs = jnp.arange(made.es.population // 2, dtype=jnp.int32)[None]
    clock, tokens = Clock.at(0, 1), jnp.asarray(tokens_at(1))
    return population.outcome(made, state.weights, state.members, tokens, clock, pairs)


def test_streams_are_read_without_tables():
    """Rows equal the oracle's; scores are those of a model whose long tables are empty."""
    more = {"direct_dropout": 0.6, "direct_dropout_above": 1}
    made, es = tiny(**more), EsConfig(**(ES | more))
    state = trained()
    long = ["context_3", "words_1", "words_3"]
    empty = {name: jnp.zeros_like(state.tables.values[name]) for name in long}
    tables = dataclasses.replace(state.tables, values=state.tables.values | empty)
    whole, found, without = (
        outcome_of(tiny(), state),
        outcome_of(made, state),
        outcome_of(tiny(), dataclasses.replace(state, tables=tables)),
    )
    left = {
        name: [oracle.contexts.left_out(es, p, name) for p in range(8)]
        for name in ("context_1", *long)
    }
    assert not any(left["context_1"]) and left["context_3"] == left["words_1"] == left["words_3"]
    chosen = np.array(left["words_1"])
    assert chosen.tolist() == [stream in (1, 3) for stream in range(4) for _ in range(2)]
    expected = np.where(chosen, without.scores_P, whole.scores_P)
    assert found.scores_P.tolist() == expected.tolist()
    assert (np.asarray(whole.scores_P) != np.asarray(without.scores_P)).all()
    assert found.row_errors is not None and whole.row_errors is not None
    for name, rows_J in found.row_errors.rows.items():
        of_all = np.asarray(whole.row_errors.rows[name]).reshape(12, 4)
        none = np.array(left[name][::2])[None] | (of_all == 1 << BITS)
        np.testing.assert_array_equal(
            np.asarray(rows_J).reshape(12, 4), np.where(none, 1 << BITS, of_all)
        )
    assert found.members.keys() == state.members.keys(), "nothing of it is kept"


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.9])
def test_the_share_of_streams_is_exact(share: float):
    """Of 1024 streams, whichever chunk they are in, and evenly."""
    es = EsConfig(population=4096, members_per_stream=4, direct_dropout=share)
    pairs = jnp.arange(2048, dtype=jnp.int32)
    [limit] = np.asarray(context_tables.limits(es, pairs)["limit"])
    expected = [oracle.contexts.left_out(es, p, "words_1") for p in range(4096)]
    assert (limit == 3).tolist() == expected
    assert sum(expected) == 4 * round(1024 * share)
    [part] = np.asarray(context_tables.limits(es, pairs[512:600])["limit"])
    np.testing.assert_array_equal(part, limit[1024:1200])


@pytest.mark.parametrize("kernels", [True, False])
def test_a_row_past_the_end_adds_nothing(kernels: bool):
    """With and without the kernels, for logits of both widths."""
    tables = {
        "words_1": jnp.full((256, 40), 9, jnp.int8),
        "context_1": jnp.ones((256, 40), jnp.int8),
    }
    picked = {"words_1": jnp.array([256, 255]), "context_1": jnp.array([0, 256])}
    with contextlib.nullcontext() if kernels else native.without_kernels():
        for dtype in (jnp.int8, jnp.int16):
            logits = jnp.arange(80).reshape(2, 40).astype(dtype)
            added = jax.jit(lambda x: context_tables.added(tables, picked, x, partial=True))(logits)
            assert (added - logits.astype(jnp.int16)).tolist() == [[1] * 40, [9] * 40]


def test_chunks_and_devices_change_no_bit_of_dropout():
    """The same streams are left out, wherever they are read."""
    more = {"direct_dropout": 0.6, "direct_dropout_above": 1}
    made, expected = tiny(**more), trained(**more)
    place = placement.choose(DistributedConfig(devices=2), tiny(chunk=2, **more).es, 1)
    state = evolve.placed(made, evolve.initial(made), place)
    step = evolve.compiled_step(tiny(chunk=2, **more), place)
    for number in range(4):
        state, _ = step(state, tokens_at(number), number)
    jax.tree.map(np.testing.assert_array_equal, placement.on_host(state), expected)
    other = trained()
    assert (np.asarray(expected.tables.counts["words_1"]) <= other.tables.counts["words_1"]).all()


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({"words": (0,)}, {}, r"model.words is \[0\], must be different numbers from 1 to 4"),
        ({"words": (2, 2)}, {}, r"model.words is \[2, 2\]"),
        ({"words": (1, 5)}, {}, r"model.words is \[1, 5\]"),
        ({}, {"es": EsConfig(direct_dropout=1.0)}, "es.direct_dropout is 1.0, must be at least 0"),
        (
            {"words": (1,)},
            {"data": DataConfig(tokenizer="tokens/")},
            r"model.words is \[1\], which needs tokens that are bytes",
        ),
        (
            {"words": (1,)},
            {"es": EsConfig(readout="perturbed", votes="trace")},
            "model.words needs the readout's exact errors",
        ),
    ],
)
def test_impossible_words_are_refused(model: dict, more: dict, message: str):
    """One sentence names the field."""
    with pytest.raises(UserError, match=message):
        recipe.check(configuration.validate(Config(model=ModelConfig(**model), **more)))
