"""The pool: tokens that are held back, trust, and the weights it is multiplied into.

That whole steps equal the oracle's is tested in test_step.py.
"""

import dataclasses
import functools
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_evolve import inexact
from tiny_command import rows, run_in_three_ways

from int_lm import config as configuration, run, runtime
from int_lm.config import Config, DistributedConfig, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.limits import DIRECT_LENGTH_MAX, NO_TARGET, WORDS_MAX
from int_lm.method import evolve, placement, pool, population, recipe
from int_lm.method.clock import Clock
from int_lm.method.state import State, Tables
from int_lm.model import context_tables, document_cache
from int_lm.model.document_cache import Reading
from int_lm.training import pooling, runlog

VOCABULARY = 256
MODEL = ModelConfig(
    **{"architecture": "rwkv", "width": 8, "layers": 1, "ffn_multiple": 1},
    **{"direct": (2, 1), "words": (1,), "direct_bits": 9, "cache": (2, 3), "cache_bits": 5},
)
ES = {"population": 8, "segment_length": 12, "votes": "deep", "members_per_stream": 1}
ES |= {"update": "adaptive", "schedule": "constant", "pooled": True}
DRAW = random.Random(0)
TEXT = [b" ".join(DRAW.choice([b"a", b"of", b"the"]) for _ in range(200)) for _ in range(8)]
TEXT[3] = TEXT[3][:40] + b"\0\0" + TEXT[3][40:]
STEPS = 6


def tiny(**more) -> recipe.Recipe:
    """A small pool of all that there is."""
    return recipe.of(Config(model=MODEL, es=EsConfig(**(ES | more))), VOCABULARY)


def tokens_at(step: int) -> np.ndarray:
    """The tokens [S, T + 1] of a step: texts that go on, and begin again after eight steps."""
    at = step % 8 * 12
    return np.array([list(text[at : at + 13]) for text in TEXT], np.uint8)


@functools.cache
def step_of(**more):
    """The compiled step of `tiny`."""
    return evolve.compiled_step(tiny(**more))


def trained(steps: int = STEPS, **more) -> State:
    """The state after some steps."""
    state = evolve.initial(tiny(**more))
    for number in range(steps):
        state, _ = step_of(**more)(state, tokens_at(number), number)
    return state


def held(text: bytes) -> list[bool]:
    """Whether the token after each token is of a document that is held back, by the oracle."""
    context, flag, found = [0] * 17, False, []
    for token in text:
        context = oracle.contexts.following(context, token)
        flag = oracle.pool.held_back(flag, context)
        found.append(flag)
    return found


def outcome_of(made: recipe.Recipe, state: State, step: int) -> population.Outcome:
    """What all members make of a step's tokens."""
    pairs = jnp.arange(4, dtype=jnp.int32)[None]
    tokens = jnp.asarray(tokens_at(step))
    return population.outcome(made, state.weights, state.members, tokens, Clock.at(0, step), pairs)


def test_one_document_in_sixteen_is_held_back():
    """Of 3000 of all lengths, as a whole but for their first 15 tokens, as the oracle has it."""
    draw = np.random.default_rng(0)
    parts = [bytes(draw.integers(1, 40, size).tolist()) for size in draw.integers(1, 60, 3000)]
    text = b"\0" + b"\0".join(parts)

    def step(carried: tuple[jax.Array, jax.Array], token: jax.Array):
        context, flag = carried
        context = context_tables.following(context, token[None])
        flag = context_tables.held_back(flag, context)
        return (context, flag), flag[0, 0]

    context = context_tables.initial_state(MODEL, 1, context_tables.HELD_LENGTH + 1)["context"]
    start = context, jnp.zeros((1, 1), jnp.int32)
    found = np.asarray(jax.lax.scan(step, start, jnp.asarray(list(text), jnp.int32))[1])
    assert (found != 0).tolist() == held(text)
    place, chosen = 1, []
    for part in parts:
        flags = found[place : place + len(part)]
        assert not flags[:15].any() and len(set(flags[15:].tolist())) <= 1
        chosen += flags[15:16].tolist()
        place += len(part) + 1
    assert 0.05 < np.mean(chosen) < 0.075


def test_members_read_the_network_alone():
    """In training the tables add nothing to scores; with other tables they are the same."""
    made, state = tiny(), trained()
    values = {name: jnp.flip(table) for name, table in state.tables.values.items()}
    other = dataclasses.replace(state, tables=dataclasses.replace(state.tables, values=values))
    found, same = outcome_of(made, state, 1), outcome_of(made, other, 1)
    np.testing.assert_array_equal(found.scores_P, same.scores_P)
    jax.tree.map(np.testing.assert_array_equal, found.votes, same.votes)
    assert found.row_errors is not None and same.row_errors is not None
    assert (np.asarray(found.row_errors.errors_JV) != same.row_errors.errors_JV).any()


def test_of_documents_that_are_held_back_only_trust_learns():
    """Their tokens have no errors and read no rows; those of others do, and tell trust nothing."""
    made, state = tiny(), trained()
    flags = np.array([held(text[: STEPS * 12])[-12:] for text in TEXT]).T
    assert 0 < flags.all(axis=0).sum() < 8, "some are held back, and some are not"
    found = outcome_of(made, state, STEPS - 1)
    assert found.row_errors is not None and found.row_errors.held is not None
    rows = np.asarray(found.row_errors.rows["context_1"]).reshape(12, 8)
    assert ((rows == 1 << MODEL.direct_bits) == flags).all()
    errors = np.asarray(found.row_errors.errors_JV).reshape(12, 8, VOCABULARY)
    assert not errors[flags].any() and errors[~flags].any(axis=-1).all()
    places = oracle.pool.places(12, STEPS - 1)
    assert len(set(places)) == 4
    told = np.asarray(found.row_errors.held.targets_J).reshape(4, 8)
    texts = np.array([list(text[: STEPS * 12 + 1]) for text in TEXT])[:, (STEPS - 1) * 12 + 1 :].T
    assert (told == np.where(flags[places], texts[places], NO_TARGET)).all()


def test_trust_of_all_experts_equals_the_oracle():
    """Tables, the network, and the document cache, at the ends of their ranges and between."""
    draw, model = np.random.default_rng(1), dataclasses.replace(MODEL, cache=(3, 2))
    names, shape = context_tables.names(model), document_cache.specs(model)["cache"].shape
    trust = draw.choice([0, 1, 511, 2**15, 2**17, 2**18 - 1], 2 + 16 * len(names)).tolist()
    tables = Tables(
        {name: jnp.asarray(draw.integers(-127, 128, (512, 40)), jnp.int8) for name in names}
        | {"cache": jnp.asarray(draw.choice([-127, 5, 127], shape), jnp.int8)},
        {
            name: jnp.asarray(draw.choice([0, 1, 2, 3, 2**14, 2**31 - 1], 512), jnp.int32)
            for name in names
        },
        jnp.asarray(trust, jnp.int32),
    )
    count, weights = 96, int(np.prod(shape))
    logits = draw.choice([-32767, -9000, -40, 0, 25, 32767], (count, 40))
    rows = {name: draw.integers(0, 512, count) for name in names}
    reading = Reading(draw.integers(0, weights + 9, (count, 6)), draw.integers(0, 40, (count, 6)))
    targets = np.where(draw.random(count) < 0.3, NO_TARGET, draw.integers(0, 40, count))
    numbers, flat = draw.permutation(count), np.asarray(tables.values["cache"]).ravel().tolist()
    told = []
    for j in np.flatnonzero(targets != NO_TARGET):
        experts = [(0, logits[j].tolist())]
        for number, name in enumerate(names):
            row, read = np.asarray(tables.values[name]), int(tables.counts[name][rows[name][j]])
            experts.append((oracle.pool.of_table(number, read), row[rows[name][j]].tolist()))
        slots = [0] * 40
        for use, token in zip(reading.weights_PF[j], reading.tokens_PF[j], strict=True):
            slots[token] += flat[use] if use < weights else 0
        told.append((int(numbers[j]), int(targets[j]), [*experts, (1, slots)]))
    found = jax.jit(functools.partial(pool.learnt, model))(
        tables,
        pool.Held(
            jnp.asarray(numbers, jnp.int32),
            jnp.asarray(targets, jnp.int32),
            jnp.asarray(logits, jnp.int16),
            {name: jnp.asarray(each, jnp.int32) for name, each in rows.items()},
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.int32), reading),
        ),
        jnp.uint32(7),
    )
    assert found.tolist() == oracle.pool.learnt(trust, told, 7) != trust


def test_settled_weights_are_those_of_an_ordinary_model():
    """Equal to the oracle's, with the names and shapes of any model; as learnt, and any trust."""
    made, state = tiny(), trained()
    plain = oracle.plain(state.weights.by_path())
    counts = {f"direct/{name}": leaf.tolist() for name, leaf in state.tables.counts.items()}
    assert state.tables.trust is not None
    trust = state.tables.trust.tolist()
    settled = evolve.weights(made, state)
    assert oracle.plain(settled.by_path()) == oracle.settled(MODEL, plain, counts, trust)
    assert set(settled.by_path()) == set(made.model.specs.by_path())
    assert len(set(trust)) > 3, "trust has learnt"
    trust = np.random.default_rng(2).integers(0, 2**18, len(trust)).tolist()
    drawn = dataclasses.replace(state.tables, trust=jnp.asarray(trust, jnp.int32))
    settled = evolve.weights(made, dataclasses.replace(state, tables=drawn))
    assert oracle.plain(settled.by_path()) == oracle.settled(MODEL, plain, counts, trust)
    together = tiny(pooled=False)
    assert evolve.weights(together, evolve.initial(together)).by_path().keys() == plain.keys()


def test_a_pool_that_starts_from_a_model_is_that_model():
    """Trust is in its weights already, or its parts have learnt together: none is lost."""
    made = tiny()
    settled = evolve.weights(made, trained())
    again = evolve.weights(made, evolve.initial(made, jax.tree.map(np.asarray, settled)))
    jax.tree.map(np.testing.assert_array_equal, again, settled)


def test_chunks_and_devices_change_no_bit():
    """Members two at a time; four devices."""
    whole, parts = trained(), trained(chunk=2)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    made = tiny()
    place = placement.choose(DistributedConfig(devices=4), made.es, 1)
    state = evolve.placed(made, evolve.initial(made), place)
    step = evolve.compiled_step(made, place)
    for number in range(STEPS):
        state, _ = step(state, tokens_at(number), number)
    jax.tree.map(np.testing.assert_array_equal, placement.on_host(state), whole)
    settled = evolve.weights(made, whole)
    for copy in placement.copies(evolve.weights(made, state)):
        jax.tree.map(np.testing.assert_array_equal, copy, settled)


def test_no_float_in_a_step_or_in_settling():
    """The walk over both jaxprs finds integers and booleans only."""
    made = tiny()
    state = evolve.initial(made)
    operands = state, tokens_at(0), Clock.at(0, 0), evolve.values(made, 0)
    assert inexact(jax.make_jaxpr(lambda *operands: evolve.step(made, *operands))(*operands)) == []
    settle = functools.partial(pool.settled, made.model)
    assert inexact(jax.make_jaxpr(settle)(state.weights, state.tables)) == []


@pytest.mark.optimised
def test_no_table_is_copied():
    """Trust reads tables that are then changed in place: the compiled step copies none first."""
    made = tiny()
    lowered = evolve.jitted_step(made).lower(
        *evolve.donated(evolve.initial(made)), tokens_at(0), Clock.at(0, 0), evolve.values(made, 0)
    )
    copies = [line for line in lowered.compile().as_text().splitlines() if " copy(" in line]
    assert [line for line in copies if f"s8[512,{VOCABULARY}]" in line] == []


def test_gradients_of_a_large_vocabulary_fit():
    """Errors of 2^16 tokens, each 1 by its dither, times logits at their ends: no sum overflows."""
    assert (2 * 127 + 2**16) * pool.LOGIT_MOST < 2**31
    experts = DIRECT_LENGTH_MAX + WORDS_MAX + 2
    assert experts * 32767 * (pool.LARGEST >> 9) < 2**31
    most = 2**31 // (pool.PICKS * pool.GRADIENT_MOST)
    recipe.of(Config(MODEL, EsConfig(**ES | {"population": most // 2 * 2})), VOCABULARY)
    with pytest.raises(UserError, match="the gradients of trust can reach .* make es.population"):
        recipe.of(Config(MODEL, EsConfig(**ES | {"population": most // 2 * 2 + 2})), VOCABULARY)


def test_trust_is_shown_by_name_and_its_absence_is_said(capsys):
    """Factors of network, cache and tables by bits of the count; a sentence if none has moved."""
    recipe_, console = tiny(), runlog.Console(steps=9, seconds=0, quiet=False)
    start = evolve.initial(recipe_).tables
    found = pooling.row(MODEL, start, console)["trust"]
    assert found == {
        **{"network": [0.5], "cache": [0.5]},
        **dict.fromkeys(("context_1", "context_2", "words_1"), [0.5] * pool.BUCKETS),
    }
    assert "one document in 16 of those with 17 tokens or more" in capsys.readouterr().err
    for number, name in enumerate(context_tables.names(MODEL)):
        entry = 2 + number * pool.BUCKETS + 3
        moved = dataclasses.replace(start, trust=start.trust.at[entry].set(3 << 15))
        found = pooling.row(MODEL, moved, console)["trust"]
        assert found[name][:5] == [0.5, 0.5, 0.5, 1.5, 0.5]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_run_of_a_pool_goes_on_with_the_same_bits(tmp_path: Path, run_command):
    """By the command: at once, in two parts, on two devices; what it says is what a run holds."""
    more = {"es_dot_" + name: value for name, value in ES.items() if name != "pooled"}
    more |= {"es_dot_pooled": "true", "model_dot_direct": 2, "model_dot_cache": 3}
    more |= {"es_dot_readout": "exact", "model_dot_direct_bits": 9, "es_dot_population": 16}
    whole = run_in_three_ways(tmp_path, run_command, **more)
    opened = run.open_run(whole)
    done = run_command("-m", "int_lm.export", "--run", whole, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    exported = runtime.load(tmp_path / "out")
    found = {path: np.asarray(leaf) for path, leaf in opened.weights.by_path().items()}
    for path, leaf in exported.weights.items():
        np.testing.assert_array_equal(leaf, found[path], path)
    done = run_command("-m", "int_lm.verify", whole)
    assert done.returncode == 0, done.stderr
    logged = [row["trust"] for row in rows(whole) if "trust" in row]
    assert set(logged[-1]) == {"network", "cache", "context_2"}
    assert logged[-1]["network"] != [0.5]


@pytest.mark.parametrize(
    ("model", "es", "message"),
    [
        ({"direct": ()}, {}, "es.pooled pools a network with context tables or a document cache"),
        ({}, {"direct_dropout": 0.3}, "es.direct_dropout 0.3 do not go together"),
        (
            {},
            {"objective": "reward", "readout": "perturbed", "votes": "eggroll"},
            "es.objective reward reads none",
        ),
    ],
)
def test_impossible_pools_are_refused(model: dict, es: dict, message: str):
    """One sentence names the field."""
    with pytest.raises(UserError, match=message):
        fields = {"pooled": True, "fitness": "standard" if "objective" in es else "sign", **es}
        model = {"direct": (1,), **model}
        recipe.check(configuration.validate(Config(ModelConfig(**model), es=EsConfig(**fields))))
