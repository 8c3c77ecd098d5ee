"""The kernel of a segment for GPUs gives JAX's bits, and can be lowered for a GPU.

Without a GPU it is interpreted, and lowered from Pallas to Triton all the same: an operation that
this lowering does not have is found on any machine. What Triton compiles is not tested here.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evolve import inexact
from test_segments import (
    CLOCK,
    LOCAL,
    PLAIN,
    UNIT,
    random_weights,
    recipe_of,
    sorted_totals,
    tokens_of,
    totals_of as totals,
)

from benchmarks import throughput
from int_lm import native
from int_lm.compile import pallas_kernel, pallas_segment, places
from int_lm.compile.places import Columns, Member, Pair
from int_lm.compile.program import UnsupportedError
from int_lm.compile.tile_writing import Argument, Result
from int_lm.method import population, token_votes
from int_lm.method.recipe import Recipe
from int_lm.model import perturb, reading
from int_lm.model.params import Parameters
from int_lm.native import dispatch

ON_GPU = native.on_gpu()
BY_KERNEL = "always" if ON_GPU else "interpreted"
GRU = "plugins.gru:GRU"
RWKV = {"architecture": "rwkv", "ffn_multiple": 2, "layers": 2}
TABLES = {"direct": (2,), "direct_bits": 8, "cache": (2,), "cache_bits": 4}

# model, recipe, vocabulary, members: tiles that are not full, blocks that are not full, both; a
# state that is recorded as it was before the token; several blocks of an axis; a document cache
CASES = {
    "rwkv, unit": ({**RWKV, "width": 24}, UNIT, 7, 52),
    "rwkv, tables": ({**RWKV, "width": 24, **TABLES}, UNIT, 11, 52),
    "rwkv, plain": ({**RWKV, "width": 64}, PLAIN, 256, 64),
    "rwkv, local": ({**RWKV, "width": 24, **TABLES}, LOCAL, 11, 52),
    "egg, local": (
        {"architecture": "egg", "layers": 2, "width": 16},
        {**LOCAL, "members_per_stream": 2},
        9,
        34,
    ),
    "rwkv, trace": ({**RWKV, "width": 20}, {**UNIT, "votes": "trace", "rank": 4}, 7, 6),
    "egg, plain": ({"architecture": "egg", "layers": 1, "width": 33}, PLAIN, 37, 34),
    "egg, unit": ({"architecture": "egg", "layers": 2, "width": 16}, {**UNIT, "rank": 4}, 300, 52),
    "gru, plain": ({"architecture": GRU, "layers": 2, "width": 18}, {**PLAIN, "rank": 3}, 19, 8),
    "gru, unit": ({"architecture": GRU, "layers": 2, "width": 160}, UNIT, 9, 66),
}
FAST = ("rwkv, unit",)  # a few seconds each, most of which compile what the interpreter makes


def cases() -> list[Any]:
    return [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]


def started(recipe: Recipe, members: int) -> Any:
    """A state that is not the first one."""
    random = np.random.default_rng(1)

    def leaf(first: jax.Array) -> jax.Array:
        drawn = random.integers(-127, 128, first.shape).astype(first.dtype)
        return jnp.asarray(drawn if first.dtype == jnp.int8 else abs(drawn) % 7)

    readers = recipe.es.members_per_stream if members == recipe.es.population else 1
    return jax.tree.map(leaf, recipe.model.initial_state(members, readers))


def perturbed(recipe: Recipe, weights: Parameters, tokens_PT: jax.Array, state: Any) -> Any:
    """State, scores and records of a segment, under perturbations."""
    pairs_I = jnp.arange(recipe.es.population // 2, dtype=jnp.int32)
    seen = population.perturbed(recipe, weights, population.noise_of(recipe, CLOCK, pairs_I))
    return recipe.objective.run(recipe.model, seen, state, tokens_PT, token_votes.keep(recipe))


def unperturbed(recipe: Recipe, weights: Parameters, tokens_PT: jax.Array, state: Any) -> Any:
    """State and likelihoods of a segment."""
    return reading.measured(recipe.model, perturb.unperturbed(weights), state, tokens_PT)


def both_ways(run: Any, *operands: Any) -> None:
    """The kernel gives what JAX gives."""
    with native.segments("never"):
        expected = jax.jit(functools.partial(run))(*operands)
    with native.segments(BY_KERNEL):
        traced = jax.jit(functools.partial(run)).trace(*operands)
        assert str(traced.jaxpr).count("name=segment") == 1 and not inexact(traced.jaxpr)
        found = traced.lower().compile()(*operands)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", cases())
def test_bits_are_those_of_jax(name: str) -> None:
    model, es, vocabulary, members = CASES[name]
    recipe = recipe_of(model, {"population": members, "segment_length": 3, **es}, vocabulary)
    operands = tokens_of(recipe), started(recipe, members)
    both_ways(functools.partial(perturbed, recipe), random_weights(recipe, False), *operands)


@pytest.mark.slow
def test_bits_are_those_of_jax_with_extreme_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest weights and noise, and the largest tiles."""
    monkeypatch.setattr(pallas_segment, "PROGRAMS", 1)
    recipe = recipe_of({**RWKV, "width": 16}, {"population": 32, "sigma_shift": 1, **UNIT}, 40)
    operands = random_weights(recipe, True), tokens_of(recipe), started(recipe, 32)
    both_ways(functools.partial(perturbed, recipe), *operands)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3, 50])
def test_reading_without_perturbations(lanes: int) -> None:
    """Evaluation reads any number of lanes."""
    recipe = recipe_of({**RWKV, "width": 16, **TABLES}, {"population": 8, **UNIT}, 23)
    tokens = np.random.default_rng(1).integers(0, 23, (lanes, 4), dtype=np.int32)
    operands = random_weights(recipe, False), tokens, started(recipe, lanes)
    both_ways(functools.partial(unperturbed, recipe), *operands)


# -- Lowering for a GPU ----------------------------------------------------------------------------


def lowered(run: Any, *operands: Any) -> str:
    """A program for GPUs, as on a machine with one."""
    with pytest.MonkeyPatch.context() as patch, native.segments("always"):
        patch.setattr(dispatch, "on_gpu", lambda: True)
        traced = jax.jit(functools.partial(run)).trace(*operands)
        assert str(traced.jaxpr).count("name=segment") == 1
        assert "num_stages=2)" in str(traced.jaxpr)  # a layer's matrices are loaded ahead
        try:
            return traced.lower(lowering_platforms=("cuda",)).as_text()
        except RuntimeError as error:  # later versions compile here what Pallas has lowered
            pytest.skip(f"this JAX lowers kernels on machines with a GPU only: {error}")


@pytest.mark.parametrize(
    ("model", "es"),
    [
        ({**RWKV, "width": 64, **TABLES}, UNIT),
        pytest.param(
            *({"architecture": "egg", "width": 32}, {**PLAIN, "rank": 2}), marks=pytest.mark.slow
        ),
        ({"architecture": GRU, "width": 32}, UNIT),
    ],
    ids=["rwkv, unit", "egg, plain", "gru, unit"],
)
def test_it_can_be_lowered_for_a_gpu(model: dict[str, Any], es: dict[str, Any]) -> None:
    """Every operation of the kernel has a rule in Pallas's lowering to Triton."""
    recipe = recipe_of(model, {"population": 64, **es}, 64)
    shapes = [
        jax.eval_shape(lambda: random_weights(recipe, False)),
        jax.ShapeDtypeStruct((64, 3), jnp.int32),
        jax.eval_shape(lambda: started(recipe, 64)),
    ]
    text = lowered(functools.partial(perturbed, recipe), *shapes)
    assert len(re.findall(r"custom_call @\S*triton\w*\(", text)) == 1


# -- Where there is no kernel ----------------------------------------------------------------------


def test_totals() -> None:
    """A function without layers; one that sorts, which blocks cannot: JAX computes it.

    Without layers, the compiler would load the state ahead that the token before has yet to write.
    """
    for combine, kernels in ((lambda x, y: x + y[None], 1), (sorted_totals, 0)):
        run = functools.partial(totals, combine, 4)
        with native.segments("never"):
            expected = run()
        with native.segments(BY_KERNEL):
            program = str(jax.make_jaxpr(run)())
            assert program.count("name=segment") == program.count("num_stages=1)") == kernels
            found = run()
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)


def _added(_: Any, state: Any, each: Any, token_P: Any, target_P: Any) -> Any:
    return state + token_P[None], target_P


def test_gpus_have_the_kernel_if_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed has not been measured: it is not what a GPU does unless one says so."""
    monkeypatch.setattr(dispatch, "on_gpu", lambda: True)

    def program() -> str:
        def run() -> Any:
            tokens_TP, state = jnp.zeros((3, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32)
            return native.over_tokens(_added, {}, {}, state, tokens_TP, 9, work=1 << 40)

        return str(jax.make_jaxpr(run)())

    monkeypatch.delenv("INT_LM_GPU_SEGMENTS", raising=False)
    assert "name=segment" not in program()
    monkeypatch.setenv("INT_LM_GPU_SEGMENTS", "1")
    assert "name=segment" in program()
    with native.without_kernels():
        assert "name=segment" not in program()


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_measuring_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["throughput.py", "--gpu"])
    with pytest.raises(SystemExit) as ended:
        throughput.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- Parts -----------------------------------------------------------------------------------------


def test_blocks_of_an_axis() -> None:
    """They are powers of two, at least 32 long, and do not cross cuts."""
    assert places.blocks(24) == [Columns(0, 24, 32)]
    assert places.blocks(300) == [Columns(0, 128, 128), Columns(128, 128, 128), *_tail(256, 300)]
    assert places.blocks(48, [24]) == [Columns(0, 24, 32), Columns(24, 24, 32)]
    assert places.blocks(96) == [Columns(0, 64, 64), Columns(64, 32, 32)]


def _tail(first: int, end: int) -> list[Columns]:
    return [Columns(first, 32, 32), Columns(first + 32, end - first - 32, 32)]


def test_members_are_halves_of_pairs() -> None:
    pairs, members = places.PAIRS, places.MEMBERS
    block = Columns(8, 8, 32)
    split = places.regrouped((Pair(), 1, block), (pairs, 2, 24), (members, 24))
    assert split == (Member(1), block)
    assert places.regrouped(split, (members, 24), (pairs, 2, 24)) == (Pair(), 1, block)
    assert places.regrouped((Member(0), block), (members, 24), (members, 3, 8)) == (
        *(Member(0), 1),
        Columns(0, 8, 32),
    )
    with pytest.raises(UnsupportedError, match="in the middle"):
        places.regrouped((Member(0), Columns(4, 8, 32)), (members, 24), (members, 3, 8))


def test_arrays_that_are_too_large_are_refused() -> None:
    members = 1 << 24
    state = Argument((1, members), "int8", 1, 1, -127, 127)
    token = Argument((members,), "int32", 0, 1, 0, 8)

    def kernel(length: int) -> Any:
        kept = Result((members,), "int32", 0, 1)
        of = pallas_segment.Segment((state, token, token), (0,), (kept,), members, length)
        return pallas_kernel.kernel(lambda state, token, target: (state, token), of, True)

    assert kernel(127)
    with pytest.raises(UnsupportedError, match="entries or more"):
        kernel(128)


def test_tiles_are_small_if_members_are_few_or_wide() -> None:
    def segment(members: int, width: int) -> pallas_segment.Segment:
        state = Argument((2, members, width), "int8", 1, 1, -127, 127)
        return pallas_segment.Segment((state,), (0,), (), members, 1)

    few = [segment(members, 64).pairs for members in (1, 512, 8192, 16384, 1 << 20)]
    assert few == [16, 16, 32, 32, 32]
    assert [segment(1 << 20, width).pairs for width in (8, 32, 128, 4096)] == [64, 64, 16, 16]
    assert [segment(1 << 20, width).warps for width in (64, 256)] == [4, 8]
