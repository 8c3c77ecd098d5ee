"""The training step: in integers only, in little memory, compiled once; its bits: test_step.py."""

import dataclasses
import functools
import logging
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import presets
import pytest
from conftest import USERS
from presets import STOCHASTIC

from int_lm.arithmetic import constants
from int_lm.config import Config, RunConfig
from int_lm.method import evolve, population
from int_lm.method.clock import Clock
from int_lm.method.evolve import State
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, params
from int_lm.model.params import Parameters

VOCABULARY = 11
GOLDEN_HASH = "1c176f50704d6853"

Leaf = jax.ShapeDtypeStruct | jax.extend.core.Var | jax.extend.core.Literal


step_of = functools.cache(evolve.compiled_step)  # tests of one configuration share it


# (votes, readout) that go together
ESTIMATORS = [
    ("eggroll", "perturbed"),
    ("eggroll", "exact"),
    ("trace", "perturbed"),
    ("trace", "exact"),
    ("unit", "exact"),
    ("local", "exact"),
]
UPDATES = ["threshold", "carry", STOCHASTIC]
ARCHITECTURES = ["egg", "rwkv"]


def tiny(
    seed: int = 3,
    width: int = 8,
    layers: int = 2,
    architecture: str = "egg",
    direct: tuple[int, ...] = (),
    vocab_size: int = VOCABULARY,
    **es,
) -> Recipe:
    """A small recipe; keyword arguments are fields of `es`."""
    model = presets.egg(
        architecture=architecture,
        width=width,
        layers=layers,
        ffn_multiple=2,
        direct=direct,
        direct_bits=8,
    )
    fields = {"population": 8, "segment_length": 4, "sigma_shift": 2, **es}
    fields |= {"members_per_stream": presets.readers(architecture, es.get("votes", ""))}
    run = RunConfig(seed=seed, steps=100)
    config = Config(model=model, es=presets.paper_es(**fields), run=run)
    return presets.resolved(config, vocab_size)


def tokens_of(recipe: Recipe, step: int) -> np.ndarray:
    """Random tokens of a step, uint16 [S, T+1]."""
    shape = recipe.es.streams, recipe.es.segment_length + 1
    random = np.random.default_rng(step)
    return random.integers(0, recipe.model.vocab_size, shape).astype(np.uint16)


def run(recipe: Recipe, steps: int) -> State:
    """The state after some steps on random tokens."""
    state, step_of_recipe = evolve.initial(recipe), step_of(recipe)
    for step in range(steps):
        state, _ = step_of_recipe(state, tokens_of(recipe, step), step)
    return state


def arguments_of(recipe: Recipe):
    """What `evolve.step` takes after its recipe, as shapes."""
    word, number = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.uint32, jnp.int32))
    shape = recipe.es.streams, recipe.es.segment_length + 1
    tokens = jax.ShapeDtypeStruct(shape, jnp.uint16)
    values = {name: number for name in evolve.values(recipe, 0)}
    return evolve.abstract(recipe), tokens, Clock(word, word), values  # type: ignore[arg-type]


def jaxpr_of(recipe: Recipe):
    """The step's jaxpr."""
    return jax.make_jaxpr(functools.partial(evolve.step, recipe))(*arguments_of(recipe))


def leaves(value) -> list[Leaf]:
    """Every variable, literal and constant of a jaxpr, those of the jaxprs inside it included."""
    if isinstance(value, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
        constants = getattr(value, "consts", ())
        found = [jax.ShapeDtypeStruct(np.shape(constant), constant.dtype) for constant in constants]
        jaxpr = getattr(value, "jaxpr", value)
        found += [*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars]
        for equation in jaxpr.eqns:
            found += [*equation.invars, *equation.outvars, *leaves(equation.params)]
        return found
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return []


def shapes(jaxpr) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of a jaxpr."""
    avals = [getattr(leaf, "aval", leaf) for leaf in leaves(jaxpr)]
    return [(aval.shape, np.dtype(aval.dtype)) for aval in avals]


def inexact(jaxpr) -> list[np.dtype]:
    """The dtypes of a jaxpr that are neither integer nor boolean."""
    return [dtype for _, dtype in shapes(jaxpr) if dtype.kind not in "iub"]


# -- What a step does ------------------------------------------------------------------------------


def test_pairs_that_tie_move_no_weight():
    """A last norm of 0 makes every model uniform: all pairs tie, and a step changes nothing."""
    recipe = tiny(sigma_shift=6)  # vectors of +-16 then move by 0
    state = evolve.initial(recipe)
    network = {**state.network, "final_norm": jnp.zeros_like(state.network["final_norm"])}
    state = dataclasses.replace(state, network=network)
    following, metrics = step_of(recipe)(state, np.maximum(tokens_of(recipe, 0), 1), 0)
    assert len(set(metrics.scores_P.tolist())) == 1
    assert hashing.weights_hash(following.weights) == hashing.weights_hash(state.weights)
    assert int(metrics.changed) == 0
    assert np.any(following.members["cell"])


def test_a_tiny_model_learns_a_constant_text():
    """From over 8 bits to under 2 for a byte that never changes, in 80 steps."""
    recipe = tiny(population=64, segment_length=4, sigma_shift=4, layers=1, vocab_size=256)
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    tokens, bits = np.full((32, 5), 97, np.uint8), []
    for step in range(80):
        state, metrics = compiled(state, tokens, step)
        bits.append(constants.bits(sum(metrics.scores_P.tolist())) / (64 * 4))
    assert bits[0] > 8 and bits[-1] < 2, bits[::10]


# -- Bits that never change ------------------------------------------------------------------------


@pytest.mark.optimised
def test_weights_after_five_steps_are_what_they_have_always_been():
    """The golden hash of a tiny run: it must be the same on every machine and in every version.

    Compiled as a user's programs are.
    """
    recipe = tiny()
    state, seed = evolve.initial(recipe), jnp.uint32(recipe.settings.run.seed)

    def arguments(step: int):
        clock, values = Clock(seed, jnp.uint32(step)), evolve.values(recipe, step)
        return *evolve.donated(state), tokens_of(recipe, step), clock, values

    step_of_users = evolve.jitted_step(recipe).lower(*arguments(0)).compile(compiler_options=USERS)
    for step in range(5):
        state, _ = step_of_users(*arguments(step))
    assert hashing.weights_hash(state.weights) == GOLDEN_HASH, (
        "training no longer gives the bits it used to give. If you did not mean to change them, "
        "you broke something: find it with the other tests. If you did, put the new hash here, "
        "raise noise.NOISE_VERSION if the noise changed, and write it into docs/log.md, "
        "because runs and checkpoints made before cannot be continued bit for bit"
    )


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    """Initial weights and trained ones are pure functions of the configuration."""
    first, again = (run(tiny(sigma_shift=6), 3) for _ in range(2))
    assert hashing.weights_hash(first.weights) == hashing.weights_hash(again.weights)
    np.testing.assert_array_equal(first.members["cell"], again.members["cell"])
    fresh = [evolve.initial(tiny(seed=seed)).weights for seed in (3, 3, 4)]
    hashes = [hashing.weights_hash(weights) for weights in fresh]
    assert hashes[0] == hashes[1] != hashes[2]


def test_weights_hash_sees_every_weight_and_name():
    """One weight, a path, a shape: each changes the hash."""
    tree = {"a": np.zeros((2, 3), np.int8), "b": {"c": np.ones(4, np.int8)}}
    rows = np.arange(8, dtype=np.int8).reshape(2, 4)
    variants = [
        tree,
        {**tree, "a": rows},
        {**tree, "a": rows[::-1]},
        {**tree, "a": np.zeros((3, 2), np.int8)},
        {**tree, "a": np.eye(2, 3, dtype=np.int8)},
        {"a": tree["a"], "d": tree["b"]},
    ]
    hashes = [hashing.weights_hash(Parameters(variant)) for variant in variants]
    assert len(set(hashes)) == len(hashes)
    assert hashing.weights_hash(Parameters(dict(tree))) == hashes[0]
    same = {"a": jnp.zeros((2, 3), jnp.int8), "b": tree["b"]}
    assert hashing.weights_hash(Parameters(same)) == hashes[0]


def test_weights_hash_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch):
    """Whether rows are hashed at once, a few at a time or with some left over."""
    rng = np.random.default_rng(0)
    shapes = [(7, 10), (2, 5, 8), (3, 1, 9), (6,)]
    tree = {f"t{len(s)}{s[0]}": rng.integers(-127, 128, s).astype(np.int8) for s in shapes}
    weights = Parameters(tree)
    expected = hashing.shown(np.asarray(hashing.lanes(weights)))
    for block in (1, 16, 30, 70):
        monkeypatch.setattr(hashing, "BLOCK", block)
        assert hashing.shown(np.asarray(hashing.lanes(weights))) == expected


# -- The program -----------------------------------------------------------------------------------


def test_the_walk_over_a_jaxpr_finds_a_hidden_float():
    """A float in a branch in a loop in a compiled function, as a literal, and as a constant."""

    def root(n):
        return jnp.sqrt(n.astype(jnp.float32)).astype(jnp.int32)

    @jax.jit
    def hidden(x):
        def body(carry, n):
            return carry + jax.lax.cond(n > 0, root, lambda n: n, n), n

        return jax.lax.scan(body, x, jnp.arange(3, dtype=jnp.int32))

    constant = np.array([0.5, 1.5], np.float32)
    x = jnp.int32(1)
    assert not inexact(jax.make_jaxpr(lambda x: jax.jit(lambda y: y + 1)(x))(x))
    assert inexact(jax.make_jaxpr(hidden)(x))
    assert inexact(jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda n: n < 3, root, x))(x))
    assert inexact(jax.make_jaxpr(lambda x: jnp.where(jnp.float32(0.5) > 0, x, 2))(x))
    assert inexact(jax.make_jaxpr(lambda x: jnp.asarray(constant)[x] > 1)(x))
    assert inexact(jax.make_jaxpr(jax.vmap(lambda x: jax.checkpoint(root)(x)))(x[None]))


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("fitness", ["sign", "linear"])
@pytest.mark.parametrize("rank", [1, 3])
def test_no_float_enters_the_step(noise: str, fitness: str, rank: int):
    """The walk over the step's jaxpr finds integers and booleans only.

    Half of the cases are in chunks, so that any two of the others stand with and without them.
    """
    chunked = (noise == "gaussian") ^ (fitness == "linear") ^ (rank == 3)
    jaxpr = jaxpr_of(tiny(noise=noise, fitness=fitness, rank=rank, chunk=4 if chunked else 0))
    assert len(leaves(jaxpr)) > 3 * len(jaxpr.jaxpr.eqns), "the walk did not enter the loops"
    assert inexact(jaxpr) == []


@functools.cache  # tests of one recipe share it
def jaxpr_with_updates(architecture: str, voting: str, readout: str, rank: int = 1):
    """What a population of 256 pairs in two chunks says, and every update of it, in one jaxpr."""
    recipes = [
        tiny(
            architecture=architecture,
            votes=voting,
            readout=readout,
            update=update,
            rank=rank,
            population=512,
            chunk=256,
            width=64,
            segment_length=3,
            direct=(1, 2) if readout == "exact" else (),
        )
        for update in UPDATES
    ]

    def program(states, tokens, clock, values):
        state = states[0]
        operands = state.network, state.tables, state.members, tokens, clock
        result = population.result(recipes[0], *operands)
        return result, [
            evolve.moved(recipe, state, result, clock, values)
            for recipe, state, values in zip(recipes, states, values, strict=True)
        ]

    states, tokens, clocks, values = zip(*map(arguments_of, recipes), strict=True)
    return jax.make_jaxpr(program)(states, tokens[0], clocks[0], values)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("voting, readout", ESTIMATORS)
def test_no_float_enters_the_step_of_any_recipe(architecture: str, voting: str, readout: str):
    """Every architecture, estimator, readout and update that go together."""
    assert inexact(jaxpr_with_updates(architecture, voting, readout)) == []


@pytest.mark.parametrize("voting, readout", [("eggroll", "perturbed"), ("unit", "exact")])
def test_no_float_enters_the_step_of_a_wide_vocabulary(voting: str, readout: str):
    """Nor where the likelihood sums in two limbs."""
    assert inexact(jaxpr_of(tiny(votes=voting, readout=readout, vocab_size=300))) == []


@functools.cache
def some_steps(architecture: str, voting: str, readout: str, chunk: int):
    """State and metrics after three steps from random weights, and those weights.

    With update carry, whose remainders show the sign of every step's vote; with context tables in
    one case.
    """
    recipe = tiny(
        architecture=architecture,
        votes=voting,
        readout=readout,
        update="carry",
        learning_rate=1.3,
        segment_length=3,
        chunk=chunk,
        direct=(2,) if (voting, readout) == ("trace", "exact") else (),
    )
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    random = np.random.default_rng(1)

    def drawn(leaf: jax.Array) -> jax.Array:
        return jnp.asarray(random.integers(-30, 31, leaf.shape).astype(np.int8))

    network = params.map_leaves(drawn, state.network)
    values = params.map_leaves(drawn, state.tables.values)
    tables = dataclasses.replace(state.tables, values=values)
    state = dataclasses.replace(state, network=network, tables=tables)
    before = jax.tree.map(np.array, state.weights)
    for step in range(3):
        state, metrics = compiled(state, tokens_of(recipe, step), step)
    return state, metrics, before


@pytest.mark.slow  # test_step.py has quick ones: the oracle has no chunks
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("voting, readout", ESTIMATORS)
@pytest.mark.parametrize("chunk", [2, 4, 8])
def test_chunks_change_no_bit(architecture: str, voting: str, readout: str, chunk: int):
    """Weights, remainders, states, scores and context tables: whole, and in chunks of any size.

    Every tensor learns, and nothing becomes -128.
    """
    whole = some_steps(architecture, voting, readout, 0)
    chunked = some_steps(architecture, voting, readout, chunk)
    jax.tree.map(np.testing.assert_array_equal, chunked, whole)
    state, _, before = whole
    moved = jax.tree.map(
        lambda new, old: bool(np.any(np.asarray(new) != old)), state.weights, before
    )
    assert all(jax.tree.leaves(moved)), moved
    narrow = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int8]
    assert min(int(leaf.min()) for leaf in narrow) >= -127
    distinct = {path: len(np.unique(rest)) for path, rest in state.memory["remainders"].items()}
    assert min(distinct.values()) > 4, distinct


@pytest.mark.parametrize(
    "es",
    [
        {"alpha_halflife": 2.0},
        {"votes": "unit", "readout": "exact", "update": "carry", "schedule": "linear"},
        {"votes": "trace", "update": STOCHASTIC, "schedule": "cosine"},
    ],
    ids=lambda es: es.get("update", "threshold"),
)
def test_the_step_compiles_once(caplog: pytest.LogCaptureFixture, es: dict):
    """Neither the step, nor the schedules, nor new tokens or weights compile it again."""
    recipe = tiny(**es)
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    host = jax.tree.map(np.asarray, state)  # as a checkpoint restores it

    def compilations() -> int:
        return sum("Compiling jit(jitted)" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.DEBUG), jax.log_compiles():
        state, _ = compiled(state, tokens_of(recipe, 0), 0)
        assert compilations() == 1
        for step in (1, 2, 70000):
            state, _ = compiled(state, tokens_of(recipe, step), step)
        compiled(host, tokens_of(recipe, 9), 9)
    assert compilations() == 1


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("voting, readout", ESTIMATORS)
@pytest.mark.slow
def test_no_array_holds_a_matrix_per_pair(rank: int, voting: str, readout: str):
    """The largest array of the step has far fewer than I m n entries, I of a chunk, at any rank."""
    jaxpr = jaxpr_with_updates("egg", voting, readout, rank)
    arrays = [math.prod(shape) for shape, _ in shapes(jaxpr)]
    assert max(arrays) < 128 * 64 * 64 / 2


@pytest.mark.slow
@pytest.mark.optimised
def test_the_perturbation_takes_memory_in_proportion_to_its_factors():
    """Auxiliary memory of the compiled step is O(R (m + n)) a pair.

    Twice the width makes a member's matrices four times as large, but temporary memory only a
    little more than twice (the votes, one int32 a weight, are the rest), and it stays far below
    one set of matrices per member.
    """
    members = 512

    def measured(width: int) -> int:
        recipe = tiny(population=members, width=width)
        step = jax.jit(functools.partial(evolve.step, recipe))
        compiled = step.lower(*arguments_of(recipe)).compile(compiler_options=USERS)
        memory = compiled.memory_analysis()
        matrices = members * params.count(recipe.model.specs.network)
        assert 0 < memory.temp_size_in_bytes < matrices / 4
        return memory.temp_size_in_bytes

    narrow, wide = measured(64), measured(128)
    assert 1.5 * narrow < wide < 2.5 * narrow
