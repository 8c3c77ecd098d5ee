"""The population: every member equals the one that the oracle runs alone, whatever is beside it.

Scores and states of whole steps, in chunks of several sizes, are those of test_step.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest

from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import chunks, evolve, population
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import egg, params, reading
from int_lm.model.params import Parameters, Role, Tree
from int_lm.model.perturb import Noise

VOCABULARY, SEED, STEP = 11, 5, 3
MODEL = presets.egg(width=8, layers=2, ffn_multiple=2)
ES = presets.paper_es(population=8, segment_length=4, sigma_shift=2)
SPECS = egg.specs(MODEL, VOCABULARY)
CLOCK = Clock(jnp.uint32(SEED), jnp.uint32(STEP))


def recipe_of(es: EsConfig, model: ModelConfig = MODEL) -> Recipe:
    """The recipe of these sections."""
    return presets.resolved(Config(model=model, es=es), VOCABULARY)


@functools.partial(jax.jit, static_argnames="es")
def scores(es: EsConfig, weights: Tree, state: Tree, tokens_ST):
    """`population.outcome` at (SEED, STEP): scores and states."""
    recipe = recipe_of(es)
    pairs_CI = chunks.pairs(es)
    own = population.outcome(recipe, Parameters(weights), state, tokens_ST, CLOCK, pairs_CI)
    return own.scores_P, own.members


@functools.partial(jax.jit, static_argnames="es")
def noises_of(es: EsConfig) -> dict[str, Noise]:
    """The perturbations of all pairs, by path."""
    return population.noise_of(
        recipe_of(es), CLOCK, jnp.arange(es.population // 2, dtype=jnp.int32)
    )


@functools.partial(jax.jit, static_argnames="es")
def read_perturbed(
    es: EsConfig,
    kept: dict[str, int],
    weights: Tree,
    noises: dict[str, Noise],
    tokens_PT: jax.Array,
) -> jax.Array:
    """Log-likelihoods [T, P] where the noise of every tensor is multiplied by its role's entry."""
    members, recipe = {}, recipe_of(es)
    for path, spec in params.flatten(SPECS):
        scale = jnp.asarray(kept[spec.role.name]).astype(jnp.int8)
        members[path] = jax.tree.map(lambda n, scale=scale: n * scale, noises[path])
    seen = population.perturbed(recipe, Parameters(weights), members)
    state = recipe.model.initial_state(len(tokens_PT))
    return reading.measured(recipe.model, seen, state, tokens_PT)[1]


def pair_of(noises: dict[str, Noise], pair: int) -> dict[str, Noise]:
    """One pair's perturbations."""
    specs = dict(params.flatten(SPECS))
    return {
        path: jax.tree.map(
            lambda array, path=path: jax.lax.slice_in_dim(
                array, pair, pair + 1, axis=1 if specs[path].layers else 0
            ),
            noise,
        )
        for path, noise in noises.items()
    }


def inputs_of(es: EsConfig) -> tuple[Tree, Tree, jax.Array]:
    """Random weights and member states, and a segment for every stream."""
    random = np.random.default_rng(0)
    weights = params.map_leaves(
        lambda spec: jnp.asarray(random.integers(-40, 41, spec.full_shape).astype(np.int8)), SPECS
    )
    state = random.integers(-127, 128, (MODEL.layers, es.population, MODEL.width)).astype(np.int8)
    streams = es.streams
    tokens = random.integers(0, VOCABULARY, (streams, es.segment_length + 1)).astype(np.uint16)
    return weights, {"cell": jnp.asarray(state)}, jnp.asarray(tokens)


@pytest.mark.parametrize("role", sorted({spec.role for _, spec in params.flatten(SPECS)}, key=str))
@pytest.mark.parametrize("rank", [1, 3])
def test_population_equals_single_members_for_every_role(role: Role, rank: int):
    """Perturbed in the tensors of one role: as the oracle's member, and as the pair on its own."""
    es = dataclasses.replace(ES, population=6, rank=rank)
    weights, _, _ = inputs_of(es)
    segment = np.random.default_rng(rank).integers(1, VOCABULARY, es.segment_length + 1)
    tokens = jnp.asarray(np.repeat(segment[None], es.population, axis=0).astype(np.int32))
    noises = noises_of(es)
    kept = {other.name: int(other is role) for other in Role}
    together = np.asarray(read_perturbed(es, kept, weights, noises, tokens))
    for pair in range(3):
        alone = read_perturbed(es, kept, weights, pair_of(noises, pair), tokens[:2])
        np.testing.assert_array_equal(alone, together[:, 2 * pair : 2 * pair + 2])
    config, plain = Config(model=MODEL, es=es), oracle.plain(weights)
    for p in range(es.population):
        member = oracle.member_weights(config, VOCABULARY, plain, SEED, STEP, p)
        for path, spec in params.flatten(SPECS):
            if spec.role is not role:
                bare = (lambda value: value) if spec.role is Role.VECTOR else oracle.bare
                value = plain[path]
                member[path] = [bare(layer) for layer in value] if spec.layers else bare(value)
        state = {"cell": [[0] * MODEL.width] * MODEL.layers}
        _, readings = oracle.read(MODEL, member, state, segment.tolist())
        assert together[:, p].tolist() == [reading.log_likelihood for reading in readings]
    assert len(set(map(tuple, together.T.tolist()))) > 3, "the perturbation changed no member"


@pytest.mark.parametrize(
    ("members", "chunk", "devices", "expected"),
    [
        (512, 0, 4, 128),
        (512, 128, 4, 128),
        (512, 100, 4, 64),
        (12, 8, 2, 6),
        (12, 4, 2, 2),
        (2048, 0, 1, 512),
        (2048, 0, 2, 512),
        (2048, 4096, 1, 2048),
        (768, 0, 1, 384),
        (600, 0, 1, 300),
        (2 * 521, 0, 1, 2 * 521),
        (2 * 521, 300, 1, 2),
    ],
)
def test_chunks_divide_what_a_device_has(members: int, chunk: int, devices: int, expected: int):
    """The largest one no larger than asked for; of itself no larger than caches, nor tiny."""
    es = presets.paper_es(population=members, chunk=chunk)
    assert chunks.size(es, devices) == expected


def test_a_chunk_holds_whole_streams():
    """However many members read one stream."""
    es = EsConfig(population=4096, members_per_stream=1024)
    assert chunks.size(es) == 1024
    assert chunks.size(es, 2) == 1024
    es = EsConfig(population=2 * 384, members_per_stream=384)
    assert chunks.size(es) == 384


def test_a_chunk_holds_whole_pairs():
    """Though each of their members reads a stream of its own."""
    assert chunks.size(EsConfig(population=2, members_per_stream=1)) == 2
    es = EsConfig(population=12, members_per_stream=1, chunk=4)
    assert (chunks.size(es), chunks.size(es, 2), chunks.size(es, 6)) == (4, 2, 2)


@pytest.mark.parametrize(("width", "layers", "expected"), [(256, 4, 512), (512, 6, 256)])
def test_chunks_of_large_models_are_smaller(width: int, layers: int, expected: int):
    """Their records take more memory."""
    model = ModelConfig(width=width, layers=layers)
    assert chunks.size(EsConfig(population=4096), 1, model) == expected
    assert chunks.size(EsConfig(population=4096, chunk=1024), 1, model) == 1024
    assert 2 * chunks.pairs(EsConfig(population=4096), 1, model).shape[1] == expected


def test_accelerators_take_all_members_at_once(monkeypatch: pytest.MonkeyPatch):
    """Unless a chunk is asked for: their caches are not what members should fit."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunks.size(EsConfig(population=4096)) == 4096
    assert chunks.size(EsConfig(population=4096), 2) == 2048
    assert chunks.size(EsConfig(population=4096, chunk=1024)) == 1024


@pytest.mark.parametrize("chunk", [0, 2, 4, 8])
def test_over_chunks_stacks_one_result_and_sums_the_other(chunk: int):
    """Every chunk gets its pairs and its arguments, in order."""
    es = dataclasses.replace(ES, chunk=chunk)
    pairs_CI = chunks.pairs(es)
    assert pairs_CI.shape == ((8 // chunk, chunk // 2) if chunk else (1, 4))
    assert pairs_CI.ravel().tolist() == [0, 1, 2, 3]
    arguments = jnp.arange(8, dtype=jnp.int32).reshape(len(pairs_CI), -1) ** 2
    stacked, summed = chunks.over(
        lambda pairs_I, part: ({"part": part, "pairs": pairs_I}, jnp.sum(part) + 100 * pairs_I[0]),
        pairs_CI,
        arguments,
    )
    np.testing.assert_array_equal(stacked["part"], arguments)
    np.testing.assert_array_equal(stacked["pairs"], pairs_CI)
    assert int(summed) == sum(n * n for n in range(8)) + 100 * int(pairs_CI[:, 0].sum())


def test_a_stream_reaches_its_own_members_only():
    """Other tokens in one stream change the scores of its members and of no others."""
    es = dataclasses.replace(ES, members_per_stream=4)
    weights, state, tokens = inputs_of(es)
    plain, plain_state = scores(es, weights, state, tokens)
    other = tokens.at[1].set((tokens[1] + jnp.uint16(3)) % jnp.uint16(VOCABULARY))
    changed, changed_state = scores(es, weights, state, other)
    elsewhere = np.array([p for p in range(8) if p // 4 != 1])
    np.testing.assert_array_equal(changed[elsewhere], plain[elsewhere])
    np.testing.assert_array_equal(
        changed_state["cell"][:, elsewhere], plain_state["cell"][:, elsewhere]
    )
    assert np.all(np.asarray(changed[4:8]) != np.asarray(plain[4:8]))


def test_a_members_state_reaches_no_other_member():
    """Another state of one member changes its own score only, and not across a separator."""
    weights, state, tokens = inputs_of(ES)
    tokens = tokens.at[:, 0].set(1)
    plain, _ = scores(ES, weights, state, tokens)
    other = {"cell": state["cell"].at[:, 3].set(-state["cell"][:, 3])}
    changed, _ = scores(ES, weights, other, tokens)
    assert np.flatnonzero(np.asarray(changed) != np.asarray(plain)).tolist() == [3]
    separated = tokens.at[:, 0].set(0)
    fresh, fresh_state = scores(ES, weights, state, separated)
    still, still_state = scores(ES, weights, other, separated)
    np.testing.assert_array_equal(still, fresh)
    np.testing.assert_array_equal(still_state["cell"], fresh_state["cell"])


@pytest.mark.parametrize(
    "votes",
    ["local", *(pytest.param(v, marks=pytest.mark.slow) for v in ("unit", "trace", "eggroll"))],
)
def test_padding_is_as_if_it_were_not_there(votes: str) -> None:
    """Streams that end early change no score and no vote by the separators they are filled with."""
    readout = "perturbed" if votes == "eggroll" else "exact"
    direct = () if votes == "eggroll" else (1, 2)
    model = ModelConfig(width=8, layers=1, direct=direct, direct_bits=8)
    readers = presets.readers(model.architecture, votes)  # of each of two streams
    shared = {"population": 2 * readers, "members_per_stream": readers, "sigma_shift": 4}
    shared |= {"votes": votes, "readout": readout}
    text = np.random.default_rng(0).integers(1, 11, (2, 5)).astype(np.uint16)
    text[:, -1] = 0
    padded = np.concatenate([text, np.zeros((2, 3), np.uint16)], axis=1)
    results = []
    for tokens in (text, padded):
        recipe = recipe_of(EsConfig(**shared, segment_length=tokens.shape[1] - 1), model)
        state, metrics = evolve.compiled_step(recipe)(evolve.initial(recipe), tokens, 0)
        results.append(jax.tree.map(np.asarray, (state.weights, state.tables, metrics.scores_P)))
    for first, second in zip(*map(jax.tree.leaves, results), strict=True):
        assert (first == second).all()
