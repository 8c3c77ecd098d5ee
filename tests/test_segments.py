"""Segments in one kernel give the bits of what JAX computes token by token, for every architecture.

The programs are compiled from what JAX traces (`compile.tiles`), so an architecture that is a
plug-in has them, too. Without a compiler these tests are skipped.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import presets
import pytest

from int_lm import native
from int_lm.compile import tiles
from int_lm.compile.program import UnsupportedError
from int_lm.compile.tiles import Argument
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import population, token_votes
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import context_tables, perturb, reading
from int_lm.model.params import Parameters
from int_lm.native import segment

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built")
CLOCK = Clock(jnp.uint32(5), jnp.uint32(3))
UNIT = {"votes": "unit", "readout": "exact", "update": "carry"}
LOCAL = {**UNIT, "votes": "local", "members_per_stream": 1}
PLAIN = {"votes": "eggroll", "readout": "perturbed"}
CACHE = {"cache": (1, 3), "cache_bits": 4}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs are compiled, whatever the user's cache has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        segment.loaded.cache_clear()
        yield
    segment.loaded.cache_clear()


def recipe_of(model: dict[str, Any], es: dict[str, Any], vocabulary: int) -> Recipe:
    sections = {"segment_length": 5, "sigma_shift": 2, "members_per_stream": 2, **es}
    config = Config(model=ModelConfig(**model), es=EsConfig(**sections))
    return presets.resolved(config, vocabulary)


def random_weights(recipe: Recipe, extreme: bool) -> Parameters:
    """Weights at random, so that none is at rest; the two ends only, if `extreme`."""
    random = np.random.default_rng(7)

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        if extreme:
            return jnp.asarray(random.choice(np.array([-127, 127], np.int8), shape))
        return jnp.asarray(random.integers(-40, 41, shape, dtype=np.int8))

    specs = recipe.model.specs.by_path()
    return Parameters.of_paths({path: leaf(spec.full_shape) for path, spec in specs.items()})


def tokens_of(recipe: Recipe) -> np.ndarray:
    """Tokens of streams, with documents that end and padding between them: int32 [P, T+1]."""
    shape = recipe.es.streams, recipe.es.segment_length + 1
    tokens = np.random.default_rng(3).integers(0, recipe.model.vocab_size, shape, dtype=np.int32)
    tokens[0, 1:3] = 0
    return np.repeat(tokens, recipe.es.members_per_stream, axis=0)


def everything(recipe: Recipe, weights: Parameters, tokens_PT: np.ndarray) -> tuple[Any, str]:
    """State, scores and records of a segment after another one; the compiled program's text."""
    pairs_I = jnp.arange(recipe.es.population // 2, dtype=jnp.int32)

    def run(weights: Parameters, tokens_PT: jax.Array) -> Any:
        seen = population.perturbed(recipe, weights, population.noise_of(recipe, CLOCK, pairs_I))
        objective = functools.partial(recipe.objective.run, recipe.model, seen)
        keep = token_votes.keep(recipe)
        es = recipe.es
        state = recipe.model.initial_state(es.population, es.members_per_stream)
        state |= context_tables.limits(es, pairs_I)
        state, *_ = objective(state, tokens_PT, keep)
        return objective(state, tokens_PT[:, ::-1], keep)

    compiled = jax.jit(run).lower(weights, tokens_PT).compile()
    return compiled(weights, tokens_PT), (compiled.as_text() or "")


def compare(recipe: Recipe, weights: Parameters, tokens_PT: np.ndarray) -> None:
    """Both ways give the same; the kernel is called."""
    with native.segments("never"):
        expected, text = everything(recipe, weights, tokens_PT)
        assert "int_lm_segment" not in text
    with native.segments("always"):
        found, text = everything(recipe, weights, tokens_PT)
        assert "int_lm_segment" in text
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


CASES = {
    # tiles with some members of others; context tables; the sizes of no vector
    "rwkv, unit": (
        {"architecture": "rwkv", "width": 24, "direct": (1, 3), "direct_bits": 8},
        UNIT,
        11,
    ),
    # words, for which tokens are bytes, and tables that are left out
    "rwkv, words": (
        {"architecture": "rwkv", "width": 16, "direct": (2,), "words": (1, 2), "direct_bits": 8},
        {**UNIT, "direct_dropout": 0.5, "direct_dropout_above": 1},
        256,
    ),
    # a document cache, whose streams are read by a pair or by two of them
    "rwkv, cache": (
        {"architecture": "rwkv", "width": 16, "direct": (2,), "direct_bits": 8, **CACHE},
        UNIT,
        9,
    ),
    "egg, cache, two pairs": (
        {"architecture": "egg", "width": 16, **CACHE},
        {**UNIT, "members_per_stream": 4},
        9,
    ),
    # members that each vote and read a stream of their own; answers of the outputs
    "rwkv, local": (
        {"architecture": "rwkv", "width": 24, "direct": (2,), "direct_bits": 8, **CACHE},
        {**LOCAL, "direct_dropout": 0.5, "direct_dropout_above": 1},
        11,
    ),
    "egg, local": (
        {"architecture": "egg", "width": 16},
        {**LOCAL, "members_per_stream": 2, "rank": 2},
        9,
    ),
    "rwkv, trace": (
        {"architecture": "rwkv", "width": 20},
        {**UNIT, "votes": "trace", "rank": 4},
        7,
    ),
    "egg, plain": ({"architecture": "egg", "width": 33, "layers": 1}, PLAIN, 37),
    "egg, unit": ({"architecture": "egg", "width": 16}, {**UNIT, "rank": 4}, 300),
    "gru, plain": ({"architecture": "plugins.gru:GRU", "width": 18}, {**PLAIN, "rank": 3}, 19),
    "gru, unit": ({"architecture": "plugins.gru:GRU", "width": 32}, UNIT, 256),
}


# slow: kinds that others cover in part
LONG = ("egg, local", "egg, cache, two pairs", "gru, plain", "rwkv, trace")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES],
)
def test_bits_are_those_of_jax(name: str) -> None:
    model, es, vocabulary = CASES[name]
    recipe = recipe_of({"layers": 2, **model}, {"population": 52, **es}, vocabulary)
    compare(recipe, random_weights(recipe, False), tokens_of(recipe))


def test_bits_are_those_of_jax_with_extreme_weights() -> None:
    """The largest weights and noise, and the kernels' narrowest path."""
    model = {"architecture": "rwkv", "width": 16, "layers": 1, "direct": (2,), "direct_bits": 8}
    recipe = recipe_of(model, {"population": 30, "sigma_shift": 1, **UNIT}, 40)
    with native.instructions("narrowest"):
        compare(recipe, random_weights(recipe, True), tokens_of(recipe))


@pytest.mark.parametrize("lanes", [1, 3, 50])
def test_reading_without_perturbations(lanes: int) -> None:
    """Evaluation reads any number of lanes, from a state that is not the first."""
    model = {"architecture": "rwkv", "width": 16, "layers": 2, "direct": (1, 2), "direct_bits": 8}
    recipe = recipe_of(model, {"population": 8, **UNIT}, 23)
    weights, random = random_weights(recipe, False), np.random.default_rng(1)
    tokens = random.integers(0, 23, (lanes, 9), dtype=np.int32)

    def run(weights: Parameters, tokens_PT: jax.Array) -> Any:
        seen, state = perturb.unperturbed(weights), recipe.model.initial_state(lanes)
        state, _ = reading.measured(recipe.model, seen, state, tokens_PT)
        return reading.measured(recipe.model, seen, state, tokens_PT)

    found = []
    for when in ("never", "always"):
        with native.segments(when):
            jitted = jax.jit(functools.partial(run))  # a function of its own, traced anew
            compiled = jitted.lower(weights, tokens).compile()
            assert ("int_lm_segment" in (compiled.as_text() or "")) == (when == "always")
            found.append(jax.tree.leaves(compiled(weights, tokens)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


# -- Where there is no kernel ----------------------------------------------------------------------


def totals_of(combine: Any, members: int) -> Any:
    """Totals of tokens, of a network that does nothing else."""

    def token(
        arguments: Any, state: jax.Array, each: None, token_P: jax.Array, target_P: jax.Array
    ) -> Any:
        state = combine(state, token_P)
        return state, state[0] - target_P

    tokens_TP = jnp.arange(4 * members, dtype=jnp.int32).reshape(-1, members) % 9
    state = jnp.zeros((1, members), jnp.int32)
    return native.over_tokens(token, {}, {}, state, tokens_TP, 9, work=1)


def running_totals(combine: Any, members: int) -> tuple[Any, str]:
    """`totals_of`, compiled; the program's text."""
    compiled = jax.jit(lambda: totals_of(combine, members)).lower().compile()
    return compiled(), compiled.as_text() or ""


def test_little_work_is_not_compiled() -> None:
    _, text = running_totals(lambda state, token_P: state + token_P[None], 4)
    assert "int_lm_segment" not in text


def sorted_totals(state: jax.Array, token_P: jax.Array) -> jax.Array:
    """A sort has no counterpart."""
    return state + jnp.sort(jnp.stack([token_P, token_P * 0 + 4]), axis=0)[:1]


def test_what_cannot_be_compiled_is_computed_by_jax() -> None:
    with native.segments("always"):
        found, text = running_totals(sorted_totals, 4)
    assert "int_lm_segment" not in text
    expected, _ = running_totals(sorted_totals, 4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_value_from_outside_is_no_argument() -> None:
    """What is read of a token must not hold values of the function around it."""
    with native.segments("always"):
        lowered = jax.jit(
            lambda more: totals_of(lambda state, token_P: state + token_P[None] + more, 4)
        ).lower(jnp.int32(3))
    assert "int_lm_segment" not in lowered.as_text()


def test_totals_are_compiled() -> None:
    """Unless something is in the way, as in the tests above."""
    with native.segments("always"):
        found, text = running_totals(lambda state, token_P: state + token_P[None], 4)
    assert "int_lm_segment" in text
    expected, _ = running_totals(lambda state, token_P: state + token_P[None], 4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("missing", ["compiler", "cache"])
def test_without_a_compiler_or_a_cache_jax_computes(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if missing == "compiler":
        monkeypatch.setattr(segment.build, "COMPILERS", ("there-is-no-such-compiler",))
    else:
        (tmp_path / "file").touch()
    folder = tmp_path / ("file" if missing == "cache" else "folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    segment.loaded.cache_clear()
    with native.segments("always"):
        _, text = running_totals(lambda state, token_P: state * 2 + token_P[None], 6)
    assert "int_lm_segment" not in text


@pytest.mark.parametrize("damaged", [True, False])
def test_a_program_that_cannot_be_loaded_is_deleted(
    damaged: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JAX computes, and the next process compiles it again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = f"int other = {int(damaged)};"
    _, path = segment.build.compiled(text, native.supported()[0])
    assert path is not None
    if damaged:
        path.write_bytes(b"damaged")
    with pytest.raises(UnsupportedError, match="cannot be loaded"):
        segment.loaded(text)
    assert not path.exists()


def test_programs_are_compiled_once_and_old_ones_are_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(segment.build, "KEPT", 2)
    made = []
    for number in (1, 2, 3):
        text = f"int int_lm_tile = {number};"
        _, path = segment.build.compiled(text, native.supported()[0])
        assert path is not None
        made.append(path)
        written = path.stat().st_ino
        assert segment.build.compiled(text, native.supported()[0])[1].stat().st_ino == written  # type: ignore[union-attr]
        os.utime(path, (number, number))
    assert [path.exists() for path in made] == [False, True, True]


def test_wide_networks_get_smaller_tiles() -> None:
    """Arrays of a tile stay within the stack; what is too large for it is refused."""

    def arguments(width: int) -> list[Argument]:
        state = Argument((1, 96, width), "int32", 1, 1, -9, 9)
        return [state, *[Argument((96,), "int32", 0, 1, 0, 8)] * 2]

    def token(state: jax.Array, token_P: jax.Array, target_P: jax.Array) -> list[jax.Array]:
        return [state + 1]

    found = [tiles.source(token, arguments(n), [0], [], 96).tile for n in (8, 8000, 16000)]
    assert found == [24, 12, 6]
    with pytest.raises(UnsupportedError, match="too large"):
        tiles.source(token, arguments(10**6), [0], [], 96)
