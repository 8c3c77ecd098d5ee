"""Context tables: rows, sums and updates equal the oracle."""

import dataclasses
import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest

from int_lm import config as configuration, limits
from int_lm.arithmetic import constants
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.measure import evaluate
from int_lm.method import evolve, recipe
from int_lm.method.recipe import Recipe
from int_lm.model import context_tables, likelihood, perturb
from int_lm.model.params import Parameters

VOCABULARY = 11
update = jax.jit(context_tables.update, static_argnums=0)


def test_rows_are_the_hash_of_the_last_tokens():
    """Every length, the least and the largest tables, ids up to 65 535; separators forget."""
    text = [5, 0, 65535, 7, 7, 1, 0, 0, 300, 2, 9, 9, 9]
    for bits in (8, 17, 24):
        model = ModelConfig(direct=(1, 2, 5), direct_bits=bits)
        context = context_tables.initial_state(model, 1)["context"]
        before: list[int] = []
        for token in text:
            before = [] if token == 0 else [token, *before]
            context = context_tables.following(context, jnp.array([token], jnp.int32))
            rows = context_tables.rows(model, {"context": context})
            for length in (1, 2, 5):
                padded = (before + [0] * 5)[:length]
                expected = oracle.contexts.row_of(padded, length, bits)
                assert int(rows[f"context_{length}"][0]) == expected


def test_sums_are_clipped_to_16_bits():
    """Rows of all tables are added to the logits, and nothing wraps."""
    logits = jnp.array([[32767, -32767, 5], [32700, -32700, 0]], jnp.int16)
    weights = {"context_1": jnp.array([[127, -127, 1], [-127, 127, 2]], jnp.int8)}
    rows = {"context_1": jnp.array([0, 1], jnp.int32)}
    total = context_tables.added(weights, rows, logits)
    assert total.dtype == jnp.int16
    assert total.tolist() == [[32767, -32767, 6], [32573, -32573, 2]]
    low = context_tables.added(weights, {"context_1": jnp.array([0, 0], jnp.int32)}, logits)
    assert low.tolist() == [[32767, -32767, 6], [32767, -32767, 1]]


@pytest.mark.parametrize("rate", [0.01, 40.0, 127.0])
@pytest.mark.parametrize("population", [16, 2**20])
def test_update_equals_the_reference(rate: float, population: int):
    """Rows read once, often and never, the first and the last, padding; values at +-127."""
    es = EsConfig(direct_rate=rate, population=population, segment_length=4)
    draw = random.Random(3)
    size, readings, V = 256, 40, 5
    table = [[draw.choice([-127, -3, 0, 90, 127]) for _ in range(V)] for _ in range(size)]
    counts = [draw.choice([0, 1, 30, 4094, 4095, 4096, 2**20, 2**31 - 1]) for _ in range(size)]
    rows = [draw.choice([0, 255, 7, draw.randrange(size), size]) for _ in range(readings)]
    rows[0] = draw.choice([row for row in range(size) if row not in rows])
    most = 127 >> limits.spare_bits(es)
    errors = [[draw.choice([-most, -1, 0, 1, most]) for _ in range(V)] for _ in range(readings)]
    new, seen = update(
        es,
        jnp.array(table, jnp.int8),
        jnp.array(counts, jnp.int32),
        jnp.array(rows, jnp.int32),
        jnp.array(errors, jnp.int8),
        jnp.uint32(9),
    )
    expected = oracle.contexts.updated(es, table, counts, rows, errors, 9)
    assert (new.tolist(), seen.tolist()) == expected
    order = draw.sample(range(readings), readings)
    again, _ = update(
        es,
        jnp.array(table, jnp.int8),
        jnp.array(counts, jnp.int32),
        jnp.array([rows[i] for i in order], jnp.int32),
        jnp.array([errors[i] for i in order], jnp.int8),
        jnp.uint32(9),
    )
    assert again.tolist() == new.tolist(), "the order of readings does not matter"


def test_small_errors_count_on_average():
    """An error far below a unit moves a row by its share of a unit, over many steps."""
    es = EsConfig(direct_rate=1.0)
    table, moved = jnp.zeros((256, 1), jnp.int8), 0
    for step in range(1024):
        new, _ = update(
            es,
            table,
            jnp.zeros(256, jnp.int32),
            jnp.array([5], jnp.int32),
            jnp.array([[9]], jnp.int8),
            jnp.uint32(step),
        )
        moved += int(new[5, 0])
    assert abs(moved / 1024 - 9 / 128) < 0.01


def test_reciprocal_roots_are_rounded():
    """round(2^15 / sqrt(i)), 0 for 0."""
    table = constants.reciprocal_root()
    assert table[0] == 0 and table[1] == 2**15 and table[4] == 2**14
    expected = [math.floor(2**15 / math.sqrt(i) + 0.5) for i in range(1, 4096)]
    assert table[1:].tolist() == expected


def tiny(architecture: str, direct: tuple[int, ...] = (1, 2)) -> Recipe:
    """A small recipe with context tables."""
    model = ModelConfig(
        architecture, width=8, layers=2, ffn_multiple=2, direct=direct, direct_bits=8
    )
    es = EsConfig(population=8, segment_length=4, sigma_shift=2, schedule="inverse")
    return presets.resolved(Config(model=model, es=es), VOCABULARY)


step_of = functools.cache(evolve.compiled_step)  # tests of one recipe share it


@pytest.mark.parametrize("architecture", ["egg", "rwkv"])
def test_a_step_gives_tables_what_their_readings_say(architecture: str):
    """Errors and rows of a whole step, taken from the members' own logits, then the reference."""
    tiny_recipe = tiny(architecture)
    state, compiled = evolve.initial(tiny_recipe), step_of(tiny_recipe)
    for step in range(3):
        tokens = np.random.default_rng(step).integers(0, VOCABULARY, (4, 5)).astype(np.uint8)
        tokens[:, 1::2] = np.maximum(tokens[:, 1::2], 1)  # separators, but no padding
        old = jax.tree.map(np.array, state)
        state, _ = compiled(state, tokens, step)
        for length in (1, 2):
            rows = []
            context = jnp.asarray(old.members["context"])[:, 0::2]
            for t in range(4):
                context = context_tables.following(context, jnp.asarray(tokens[:, t], jnp.int32))
                picked = context_tables.rows(tiny_recipe.settings.model, {"context": context})
                rows += picked[f"context_{length}"].tolist()
            counts = list(old.tables.counts[f"context_{length}"])
            for row in set(rows):
                counts[row] += 1
            assert state.tables.counts[f"context_{length}"].tolist() == counts
            new = np.asarray(state.tables.values[f"context_{length}"])
            untouched = np.setdiff1d(np.arange(256), rows)
            before = old.tables.values[f"context_{length}"]
            np.testing.assert_array_equal(new[untouched], before[untouched])
            assert np.any(new[rows] != before[rows])


def test_the_first_step_is_the_errors_of_uniform_guesses():
    """From zero tables and a zero head, every row moves towards its targets by the reference."""
    tiny_recipe = tiny("rwkv")
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (4, 5)).astype(np.uint8)
    following, _ = step_of(tiny_recipe)(evolve.initial(tiny_recipe), tokens, 0)
    rows, errors = [], []
    for t in range(4):
        for i in range(4):
            rows.append(oracle.contexts.row_of([int(tokens[i, t])], 1, 8))
            dither = [oracle.dither(i, v, t, 16) for v in range(VOCABULARY)]
            errors.append(
                likelihood.errors(
                    jnp.zeros((1, VOCABULARY), jnp.int16),
                    jnp.array([int(tokens[i, t + 1])], jnp.int32),
                    127,
                    jnp.array([dither], jnp.int32),
                )[0].tolist()
            )
    zeros = [[0] * VOCABULARY for _ in range(256)]
    expected, _ = oracle.contexts.updated(tiny_recipe.es, zeros, [0] * 256, rows, errors, 0)
    assert following.tables.values["context_1"].tolist() == expected


def test_evaluation_reads_the_tables():
    """Documents score as token by token; other tables give other scores."""
    tiny_recipe = tiny("rwkv")
    model, generator = tiny_recipe.model, np.random.default_rng(5)
    state = evolve.initial(tiny_recipe)
    drawn = {
        name: jnp.asarray(generator.integers(-127, 128, table.shape).astype(np.int8))
        for name, table in state.tables.values.items()
    }
    weights = Parameters(state.network, drawn)
    documents = [generator.integers(1, VOCABULARY, n).astype(np.uint8) for n in (5, 0, 9)]
    scores = evaluate.log2_likelihoods(model, weights, documents)
    step = jax.jit(model.step)
    bare = jax.tree.map(jnp.asarray, perturb.unperturbed(weights))
    for document, score in zip(documents, scores, strict=True):
        read, total = model.initial_state(1), 0
        for token, target in zip([0, *document], [*document, 0], strict=True):
            read, logits, _ = step(bare, read, jnp.array([token], jnp.int32))
            total += int(likelihood.log2_likelihood(logits, jnp.array([target], jnp.int32))[0])
        assert total == score
    zero = evaluate.log2_likelihoods(model, state.weights, documents)
    assert zero.tolist() != scores.tolist()


@pytest.mark.parametrize("direct", [(), (1, 2)])
def test_what_numpy_sees_of_a_state_lasts(direct: tuple[int, ...]):
    """No step changes it, and tables that NumPy sees are held twice: a step writes others."""
    tiny_recipe = tiny("rwkv", direct)
    state, compiled = evolve.initial(tiny_recipe), step_of(tiny_recipe)
    lends = evolve.lends_memory(state)
    assert lends == (bool(direct) and jax.default_backend() == "cpu")
    seen = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    tables = [np.asarray(table) for table in state.tables.values.values()]
    before = [leaf.copy() for leaf in seen]
    for step in range(3):
        state, _ = compiled(state, np.full((4, 5), step + 1, np.uint8), step)
        jax.block_until_ready(state)
        now = [np.asarray(table) for table in state.tables.values.values()]
        assert not any(map(np.shares_memory, tables, now))
    assert all(map(np.array_equal, seen, before))
    changed = [np.asarray(table) for table in state.tables.values.values()]
    assert not any(map(np.array_equal, tables, changed))  # the steps did learn


def test_tables_that_numpy_has_let_go_are_changed_in_place():
    """After a save that did not last, the next step takes no more memory for them."""
    tiny_recipe = tiny("rwkv")
    state, compiled = evolve.initial(tiny_recipe), step_of(tiny_recipe)
    tokens = np.ones((4, 5), np.uint8)
    state, _ = compiled(state, tokens, 0)
    places = {n: np.asarray(t).ctypes.data for n, t in state.tables.values.items()}
    state, _ = compiled(state, tokens, 1)
    if jax.default_backend() == "cpu":
        assert places == {n: np.asarray(t).ctypes.data for n, t in state.tables.values.items()}


def test_tables_are_changed_in_place():
    """The state that went into a step has lost its tables: they are not held twice."""
    tiny_recipe = tiny("rwkv")
    state = evolve.initial(tiny_recipe)
    step_of(tiny_recipe)(state, np.ones((4, 5), np.uint8), 0)
    assert state.tables.values["context_1"].is_deleted()
    assert not state.network["head"].is_deleted()


def test_a_repeating_text_is_learnt_at_once():
    """Under 0.7 bits a token after 12 steps, where chance is 3.5."""
    tiny_recipe = tiny("rwkv")
    state, compiled = evolve.initial(tiny_recipe), step_of(tiny_recipe)
    text = np.tile(np.array([1, 2, 3, 1, 4], np.uint8), 40)
    for step in range(12):
        starts = np.arange(4) * 7 + step * 4
        tokens = np.stack([text[start : start + 5] for start in starts])
        state, metrics = compiled(state, tokens, step)
    bits = -sum(metrics.scores_P.tolist()) / 65536 / (8 * 4)
    assert bits < 0.7, bits


@pytest.mark.parametrize(
    ("model", "es", "expected"),
    [
        ({"direct": (1, 1)}, {}, "must be different lengths from 1 to 16"),
        ({"direct": (0,)}, {}, "model.direct is [0]"),
        ({"direct": (17,)}, {}, "model.direct is [17]"),
        ({"direct_bits": 7}, {}, "model.direct_bits is 7, must lie between 8 and 24"),
        ({"direct_bits": 25}, {}, "model.direct_bits is 25"),
        ({}, {"direct_rate": 0.0}, "es.direct_rate is 0.0"),
        ({}, {"direct_rate": 128.0}, "es.direct_rate is 128.0"),
        (
            {"direct": (1,)},
            {"readout": "perturbed", "votes": "trace"},
            "model.direct needs the readout's exact errors; add --es.readout exact",
        ),
    ],
)
def test_impossible_tables_are_refused(model: dict, es: dict, expected: str):
    """One sentence with the field and its bounds."""
    base = Config()
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, **model),
        es=dataclasses.replace(base.es, **es),
    )
    with pytest.raises(UserError) as caught:
        recipe.of(configuration.validate(config), VOCABULARY)
    assert expected in str(caught.value)
