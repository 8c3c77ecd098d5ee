"""The document cache: rows, weights and sums equal the oracle; documents do not meet."""

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import config as configuration, native, runtime
from int_lm.arithmetic import constants
from int_lm.config import Config, DistributedConfig, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.measure import evaluate
from int_lm.method import evolve, placement, population, recipe
from int_lm.method.clock import Clock
from int_lm.model import context_tables, document_cache, likelihood
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters
from int_lm.sample import saved

LENGTHS, BITS = (4, 1, 2), 4
SETTINGS = ModelConfig(
    "rwkv", width=8, layers=1, ffn_multiple=1, cache=LENGTHS, cache_bits=BITS, direct_bits=8
)
TINY = dataclasses.replace(SETTINGS, direct=(1,))
ES: dict[str, Any] = {"population": 8, "segment_length": 12}
WEIGHTS = 3 * len(LENGTHS) ** 2 * 32


def text(seed: int, length: int, ids: int) -> list[int]:
    """Documents of few different tokens, so that contexts come again and rows collide."""
    draw = random.Random(seed)
    high = draw.choice([ids, 65_536 - ids])
    picked = [*(high + draw.randrange(ids) for _ in range(3)), *range(1, ids)]
    return [0, *(draw.choice(picked) if draw.random() > 0.02 else 0 for _ in range(length))]


def looked_up(lanes: list[list[int]]) -> list[list[list[tuple[int, int]]]]:
    """By token and lane, what `document_cache.step` finds: (weight, token) of the slots in use."""
    model = LanguageModel(SETTINGS, 65_536)
    state, context = model.initial_state(len(lanes)), jnp.zeros((4, len(lanes)), jnp.int32)
    step = jax.jit(document_cache.step, static_argnums=0)
    found = []
    for tokens in zip(*lanes, strict=True):
        tokens_P = jnp.array(tokens, jnp.int32)
        longer = jnp.where(tokens_P == 0, 0, jnp.concatenate([tokens_P[None], context[:-1]]))
        state, reading = step(SETTINGS, state, longer, tokens_P)
        context = longer
        pairs = np.stack([reading.weights_PF, reading.tokens_PF], axis=-1).tolist()
        found.append([[tuple(x) for x in lane if x[0] < WEIGHTS] for lane in pairs])
    return found


def read_at_once(lanes: list[list[int]], cut: int, first: int = 0) -> list[Any]:
    """The same, of `document_cache.over_tokens` of the tokens before `cut`, and of the others.

    Args:
      first: number of the first place.
    """
    model = LanguageModel(SETTINGS, 65_536)
    state, context = model.initial_state(len(lanes)), jnp.zeros((4, len(lanes)), jnp.int32)
    state[document_cache.PLACE] = state[document_cache.PLACE] + jnp.int32(first)
    tokens_TP, found = jnp.array(lanes, jnp.int32).T, []
    read = jax.jit(functools.partial(document_cache.over_tokens, SETTINGS))  # traced anew
    for part_TP in (tokens_TP[:cut], tokens_TP[cut:]):
        state, said = read(state, context, part_TP)
        for tokens_P in part_TP:
            context = context_tables.following(context, tokens_P)
        pairs = np.stack([said.weights_PF, said.tokens_PF], axis=-1).tolist()
        found += [[[tuple(x) for x in lane if x[0] < WEIGHTS] for lane in row] for row in pairs]
    return found


def test_a_segment_at_once_as_token_by_token():
    """What a kernel reads, and JAX, wherever the text is cut, and places that wrap."""
    lanes = [text(seed, 90, 4) for seed in range(3)] + [[0, *[7] * 40, 9, 0, *[7] * 48]]
    expected = looked_up(lanes)
    for cut, first in ((1, 0), (44, -9), (89, 2**31 - 50)):
        assert read_at_once(lanes, cut, first) == expected
    with native.without_kernels():
        assert read_at_once(lanes, 44) == expected


def test_rows_and_weights_equal_the_reference():
    """Rows that others overwrite, runs beyond their limit, ids up to 65 535, short documents."""
    lanes = [text(seed, 120, 4) for seed in range(4)]
    lanes.append([0, *[7] * 40, 9, *[7] * 79])
    found = looked_up(lanes)
    for lane, tokens in enumerate(lanes):
        expected, slots = oracle.cache.Cache(list(LENGTHS), BITS), 0
        for t, token in enumerate(tokens):
            expected.read(token)
            assert found[t][lane] == expected.slots(), (lane, t)
            slots += len(found[t][lane])
        assert slots > 100


def test_documents_do_not_meet():
    """After a separator a document is read as if nothing had been before it."""
    document = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    after = looked_up([[0, *document, *text(3, 50, 5)[1:], 0, *document]])
    alone = looked_up([[0, *document]])
    assert after[-len(document) :] == alone[-len(document) :] and alone[-1] != [[]]


def test_places_wrap():
    """The count of tokens goes through 2^32 and 2^31 without an effect."""
    model, tokens = LanguageModel(SETTINGS, 16), [0, *[3, 4, 5] * 6, 0, *[3, 4] * 5]
    results = []
    step = jax.jit(document_cache.step, static_argnums=0)
    for first in (0, 2**31 - 9, -9):
        state = model.initial_state(1)
        state[document_cache.PLACE] = state[document_cache.PLACE] + jnp.int32(first)
        context, found = state["context"], []
        for token in tokens:
            tokens_P = jnp.array([token], jnp.int32)
            longer = jnp.where(token == 0, 0, jnp.concatenate([tokens_P[None], context[:-1]]))
            state, reading = step(SETTINGS, state, longer, tokens_P)
            context = longer
            found.append(np.asarray(reading.weights_PF).tolist())
        results.append(found)
    assert results[0] == results[1] == results[2]
    assert min(min(min(each)) for each in results[0]) < WEIGHTS


def test_probabilities_sum_to_one():
    """Slots of one token add up; with the cache, too, the logits go through one softmax."""
    reading = document_cache.Reading(
        jnp.array([[0, 1, 2, WEIGHTS]], jnp.int32), jnp.array([[5, 5, 9, 0]], jnp.int32)
    )
    table = jnp.zeros(WEIGHTS, jnp.int8).at[:3].set(jnp.array([100, 120, -7], jnp.int8))
    before = jnp.array([[3] * 15 + [32_600]], jnp.int16)
    after = document_cache.added(table.reshape(-1, 32), reading, before)
    assert after.dtype == jnp.int16
    assert (after - before).tolist() == [[0] * 5 + [220] + [0] * 3 + [-7] + [0] * 6]
    most = document_cache.added(
        table.reshape(-1, 32),
        dataclasses.replace(reading, tokens_PF=reading.tokens_PF + 10),
        before,
    )
    assert most[0, 15] == 32_767
    logits = jnp.repeat(after.at[0, 15].set(0), 16, axis=0)
    bits = likelihood.log2_likelihood(logits, jnp.arange(16, dtype=jnp.int32))
    assert abs(float(jnp.sum(2.0 ** (bits / 65_536))) - 1) < 16 * likelihood.ERROR_BOUND


def tiny(**more: Any) -> recipe.Recipe:
    """A small recipe with a cache and a context table."""
    return recipe.of(Config(model=TINY, es=EsConfig(**(ES | more))), 11)


def tokens_at(step: int) -> np.ndarray:
    """Tokens [S, T + 1] with repetitions and separators."""
    draw = random.Random(step)
    rows = [
        [0 if t == 3 and s == step % 4 else 1 + (t * 5 + s) % 4 for t in range(13)]
        for s in range(4)
    ]
    rows[0][draw.randrange(13)] = 9
    return np.array(rows, np.uint8)


def trained(made: recipe.Recipe, steps: int = 5) -> evolve.State:
    """The state after some steps."""
    state, step = evolve.initial(made), evolve.compiled_step(made)
    for number in range(steps):
        state, _ = step(state, tokens_at(number), number)
    return state


def test_weights_learn_from_exact_errors():
    """A step moves the weights as the oracle moves a table of one column, by the same errors."""
    made = tiny()
    start = evolve.initial(made)
    rows, errors = [], []
    outcome = population.outcome(
        made,
        start.weights,
        start.members,
        jnp.asarray(tokens_at(0)),
        Clock.at(made.settings.run.seed, 0),
        jnp.arange(4, dtype=jnp.int32)[None],
    )
    assert outcome.row_errors is not None and outcome.row_errors.cache is not None
    errors_TIV = np.asarray(outcome.row_errors.errors_JV).reshape(12, 4, 11)
    for t in range(12):
        for stream, tokens in enumerate(tokens_at(0).tolist()):
            cache = oracle.cache.Cache(list(LENGTHS), BITS)
            cache.document = []
            for token in tokens[: t + 1]:
                cache.read(token)
            for weight, token in cache.slots():
                rows.append(weight)
                errors.append([int(errors_TIV[t, stream, token])])
    assert len(set(rows)) > 6
    expected, counts = oracle.contexts.updated(
        EsConfig(**ES), [[0]] * WEIGHTS, [0] * WEIGHTS, rows, errors, 0
    )
    state = trained(made, 1)
    found = np.asarray(state.tables.values["cache"]).reshape(-1)
    assert found.tolist() == [value for [value] in expected]
    assert state.tables.counts["cache"].tolist() == counts and any(found)


def test_chunks_change_no_bit():
    """Members evaluated two at a time or all at once."""
    whole, parts = trained(tiny()), trained(tiny(chunk=2))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts))


@pytest.mark.parametrize(
    ("devices", "update"), [(4, "sharded"), pytest.param(2, "replicated", marks=pytest.mark.slow)]
)
def test_several_devices_give_the_bits_of_one(devices: int, update: Any):
    """Rows of each stream lie on the device that reads it; weights learn from all of them."""
    made, expected = tiny(), trained(tiny())
    place = placement.choose(DistributedConfig(devices=devices, update=update), made.es, 1)
    state, step = (
        evolve.placed(made, evolve.initial(made), place),
        evolve.compiled_step(made, place),
    )
    for number in range(5):
        state, _ = step(state, tokens_at(number), number)
    jax.tree.map(np.testing.assert_array_equal, placement.on_host(state), expected)
    assert np.asarray(expected.tables.values["cache"]).any()


def test_no_float_in_a_step():
    """Every array of the step is of an integer dtype."""
    made = tiny()
    state = evolve.initial(made)
    jaxpr = jax.make_jaxpr(lambda *operands: evolve.step(made, *operands))(
        state, tokens_at(0), Clock.at(0, 0), evolve.values(made, 0)
    )
    assert "f32" not in str(jaxpr) and "f64" not in str(jaxpr) and "f16" not in str(jaxpr)


def numpy_model(made: recipe.Recipe, weights: Parameters) -> runtime.Model:
    """The NumPy model of some weights."""
    tensors = {name: np.asarray(tensor) for name, tensor in weights.by_path().items()}
    config = {
        "model": dataclasses.asdict(TINY),
        "vocab_size": made.model.vocab_size,
    }
    exp2 = constants.exp2(likelihood.NARROW_BITS)
    return runtime.Model(config, runtime.Rwkv, tensors, exp2, constants.log2_mantissa())


def test_numpy_computes_the_same():
    """Log-likelihoods of documents, in lanes of unequal length, and states of single steps."""
    made = tiny()
    weights = trained(made, 20).weights
    draw = np.random.default_rng(1)
    weights.tables["cache"] = jnp.asarray(draw.integers(-90, 91, (27, 32)), jnp.int8)
    documents = [draw.integers(1, 5, size).astype(np.uint8) for size in (300, 1, 77, 40)]
    exported = numpy_model(made, weights)
    found = runtime.log2_likelihoods(exported, documents)
    assert found.tolist() == evaluate.log2_likelihoods(made.model, weights, documents).tolist()
    state = exported.initial_state(2)
    once, _ = exported.step(state, np.array([0, 3]))
    again, _ = exported.step(state, np.array([0, 3]))
    assert all(np.array_equal(once[name], again[name]) for name in once), "the state was changed"


def test_a_saved_state_holds_the_cache(tmp_path: Path):
    """A text goes on where it stopped; tokens outside of the vocabulary are refused."""
    made = tiny()
    exported = numpy_model(made, evolve.initial(made).weights)
    state = exported.initial_state(1)
    for token in [0, 3, 4, 10, 3, 4]:
        state, _ = exported.step(state, np.array([token]))
    path = tmp_path / "state.safetensors"
    saved.write(path, saved.Saved(state, [3, 4, 10, 3], [4], 1), "hash")
    found = saved.read(path, exported.initial_state(1), "hash", 11)
    assert all(np.array_equal(found.state[name], state[name]) for name in state)
    assert state["cache"].any()
    with pytest.raises(UserError, match="no sound state"):
        saved.read(path, exported.initial_state(1), "hash", 10)


@pytest.mark.parametrize(
    ("model", "es", "message"),
    [
        ({"cache": (0,)}, {}, r"model.cache is \[0\], must be different lengths from 1 to 16"),
        ({"cache": (2, 2)}, {}, r"model.cache is \[2, 2\]"),
        ({"cache_bits": 17}, {}, "model.cache_bits is 17, must lie between 4 and 16"),
        (
            {"cache": (2,)},
            {"readout": "perturbed", "votes": "trace"},
            "model.cache needs the readout's exact errors",
        ),
    ],
)
def test_impossible_caches_are_refused(model: dict[str, Any], es: dict[str, Any], message: str):
    """One sentence names the field."""
    with pytest.raises(UserError, match=message):
        recipe.check(configuration.validate(Config(model=ModelConfig(**model), es=EsConfig(**es))))
