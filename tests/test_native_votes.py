"""The kernels of likelihood, votes, context tables and hash give the bits of the JAX code."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import PATHS

from int_lm import limits, native
from int_lm.config import EsConfig
from int_lm.method.estimator import credit, deep, local, node, outer, unit
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import context_tables, document_cache, hashing, likelihood, params
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Parameters
from int_lm.model.perturb import Weight
from int_lm.native import cpu

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built")
LENGTH = 3
Both = Callable[..., Any]


@pytest.fixture(params=PATHS)
def both(request: pytest.FixtureRequest) -> Both:
    """Calls a function with kernels, of the one or the other path, and without: the same."""

    def call(function: Callable[..., Any], *operands: Any) -> Any:
        with_kernels = jax.jit(lambda *operands: function(*operands))
        assert "int_lm_" in with_kernels.lower(*operands).as_text()
        with native.instructions(request.param):
            got = jax.tree.map(np.asarray, with_kernels(*operands))
        with native.without_kernels():
            plain = jax.jit(lambda *operands: function(*operands))
            assert "int_lm_" not in plain.lower(*operands).as_text()
            want = plain(*operands)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, np.asarray(theirs))
        return got

    return call


def drawing(seed: int, extreme: bool) -> Callable[..., jax.Array]:
    """Draws int8 arrays within +-most; the two ends only, if `extreme`."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, most: int = 127) -> jax.Array:
        ends = random.choice([-most, most], shape)
        found = ends if extreme else random.integers(-most, most + 1, shape)
        return jnp.asarray(found.astype(np.int8))

    return draw


def rounding(pairs: int, spare_bits: int) -> Rounding:
    """Pairs and a step so far on that every product of the dither wraps."""
    numbers = np.random.default_rng(pairs).integers(0, 2**30, pairs).astype(np.int32)
    return Rounding(jnp.asarray(numbers), jnp.uint32(2**31 + 5), spare_bits)


def logits_of(dtype: type, *shape: int, extreme: bool) -> np.ndarray:
    """Two ends, or what is likely; the first row's are all alike."""
    random, most = np.random.default_rng(shape[-1]), np.iinfo(dtype).max
    logits = random.choice([-most, most], shape) if extreme else random.integers(-90, 91, shape)
    logits[0, 0] = logits[0, 0, 0]
    return logits.astype(dtype)


cases = pytest.mark.parametrize("spare_bits, extreme", [(0, False), (3, True)])
kinds_of_logits = pytest.mark.parametrize(
    "dtype, vocabulary", [(np.int8, 11), (np.int8, 300), (np.int16, 256), (np.int16, 300)]
)


@pytest.mark.parametrize("extreme", [False, True])
@kinds_of_logits
def test_likelihood(both: Both, dtype: type, vocabulary: int, extreme: bool) -> None:
    """Every logit alike, the two ends, the first and the last target; both forms of the sum."""
    logits = logits_of(dtype, 33, 2, vocabulary, extreme=extreme).reshape(66, vocabulary)
    targets = np.random.default_rng(0).integers(0, vocabulary, 66).astype(np.int32)
    targets[:2] = 0, vocabulary - 1
    found = both(likelihood.log2_likelihood, jnp.asarray(logits), jnp.asarray(targets))
    assert found.max() <= 0 and np.unique(found).size > 1


def test_likelihood_of_the_largest_vocabulary(both: Both) -> None:
    """Of 65 536 tokens, all as likely: 16 bits."""
    logits, targets = jnp.zeros((2, 65536), jnp.int16), jnp.array([5, 65535])
    assert both(likelihood.log2_likelihood, logits, targets).tolist() == [-(16 << 16)] * 2


@cases
@kinds_of_logits
def test_errors(both: Both, dtype: type, vocabulary: int, spare_bits: int, extreme: bool) -> None:
    """Every logit alike, the two ends, padding and real targets; both forms of the sum."""
    logits = logits_of(dtype, LENGTH, 4, vocabulary, extreme=extreme)
    targets = np.random.default_rng(0).integers(0, vocabulary, logits.shape[:2])
    targets[1] = NO_TARGET
    errors = both(
        lambda *operands: credit.readout_errors(*operands, rounding(4, spare_bits)),
        jnp.asarray(logits),
        jnp.asarray(targets.astype(np.int32)),
    )
    assert not np.any(errors[1]) and np.abs(errors).max() <= 127 >> spare_bits


def test_errors_of_the_largest_vocabulary(both: Both) -> None:
    """Of 65 536 tokens, all as likely: the largest sum there is."""
    logits, targets = jnp.zeros((1, 2, 65536), jnp.int16), jnp.array([[5, 65535]])
    errors = both(
        lambda *operands: credit.readout_errors(*operands, rounding(2, 0)), logits, targets
    )
    assert np.count_nonzero(errors[0, 0] > 0) == 1


@cases
@pytest.mark.parametrize(
    "pairs, width, most, gain", [(1, 1, 3, 16), (3, 33, 0, -127), (4, 130, 127, 127)]
)
def test_stream(
    both: Both, pairs: int, width: int, most: int, gain: int, spare_bits: int, extreme: bool
) -> None:
    """Large, small and no weights of the head, whose level shifts to either side."""
    draw = drawing(width, extreme)
    both(
        lambda *operands: credit.of_stream(*operands, rounding(pairs, spare_bits)),
        jnp.full((LENGTH, pairs, width), gain, jnp.int32),
        draw(LENGTH, pairs, width, most=max(1, most)),
        draw(21, width, most=most),
        draw(LENGTH, pairs, 21, most=127 >> spare_bits),
    )


@cases
@pytest.mark.parametrize("pairs, columns, most", [(1, 1, 127), (3, 33, 3), (4, 130, 0)])
def test_through(
    both: Both, pairs: int, columns: int, most: int, spare_bits: int, extreme: bool
) -> None:
    draw = drawing(columns, extreme)
    both(
        lambda *operands: credit.through(*operands, rounding(pairs, spare_bits)),
        draw(66, columns, most=most),
        draw(LENGTH, pairs, 66),
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("width", [8, 72])
def test_credit_that_is_shifted_left_and_clipped(both: Both, width: int, sign: int) -> None:
    """A head of small weights, whose products all have one sign; a projection of few weights."""
    draw = drawing(width, extreme=True)
    head_VD = jnp.full((21, width), 3, jnp.int8)
    assert 7 + int(credit._level(head_VD)) - credit.LEVEL < 0  # the right shift
    found = both(
        lambda *operands: credit.of_stream(*operands, rounding(2, 0)),
        jnp.full((LENGTH, 2, width), 9, jnp.int32),
        draw(LENGTH, 2, width, most=40),
        head_VD,
        jnp.full((LENGTH, 2, 21), sign * 127, jnp.int8),
    )
    assert np.any(found)
    value_DF = jnp.where(jnp.arange(66 * width).reshape(66, width) % 17 == 3, 1, 0)
    found = both(
        lambda *operands: credit.through(*operands, rounding(2, 0)),
        value_DF.astype(jnp.int8),
        draw(LENGTH, 2, 66, most=5),
    )
    assert np.any(found)


@cases
@pytest.mark.parametrize("rank, pairs, effects", [(1, 4, 33), (2, 1, 1), (3, 3, 130), (4, 2, 16)])
def test_unit(
    both: Both, pairs: int, effects: int, rank: int, spare_bits: int, extreme: bool
) -> None:
    """Outputs that share effects, and the largest perturbations there are."""
    draw = drawing(effects, extreme)
    operands = draw(LENGTH, pairs, 37), draw(LENGTH, pairs, effects), draw(LENGTH, pairs, effects)
    left, right = draw(pairs, 3 * effects, rank, most=69), draw(pairs, 37, rank, most=69)
    both(
        lambda left, right, *operands: node.operand(
            Weight(left, left, right), *operands, rounding(pairs, spare_bits)
        ),
        *(left, right, *operands),
    )


def test_in_a_loop_over_layers(both: Both) -> None:
    """As in `token_votes.votes`: every layer with weights of its own."""
    draw = drawing(0, extreme=False)
    values, credit_TID = draw(3, 8, 12), draw(LENGTH, 2, 8)
    both(
        lambda values, of: jax.lax.map(
            lambda value: credit.through(value, of, rounding(2, 0)), values
        ),
        *(values, credit_TID),
    )


@pytest.mark.parametrize("dtype, extreme", [(np.int8, False), (np.int16, False), (np.int16, True)])
@pytest.mark.parametrize("lengths, vocabulary", [((1,), 33), ((1, 2, 3, 4, 5, 6), 256)])
def test_direct_added(
    both: Both, lengths: tuple[int, ...], vocabulary: int, dtype: type, extreme: bool
) -> None:
    """One table and many, their first and last rows; sums that 16 bits do not hold."""
    draw, random = drawing(vocabulary, extreme), np.random.default_rng(0)
    logits = logits_of(dtype, 1, 130, vocabulary, extreme=extreme)[0]
    tables = {f"context_{k}": draw(40, vocabulary) for k in lengths}
    rows = {name: random.integers(0, 40, 130).astype(np.int32) for name in tables}
    for picked in rows.values():
        picked[:2] = 0, 39
    total = both(context_tables.added, tables, rows, jnp.asarray(logits))
    assert np.abs(total.astype(int)).max() == 32767 if extreme else np.abs(total).max() > 127


@pytest.mark.parametrize("population, rate", [(16, 127.0), (16, 0.01), (2**20, 40.0)])
@pytest.mark.parametrize("size, readings", [(256, 1), (256, 300), (3, 700), (5000, 700)])
def test_direct_update(both: Both, size: int, readings: int, population: int, rate: float) -> None:
    """Rows read by all, by some and by one; padding; counts from 0 to the largest; errors alike."""
    es = EsConfig(direct_rate=rate, population=population, segment_length=4)
    random, most = np.random.default_rng(size), 127 >> limits.spare_bits(es)
    rows = random.integers(0, size + 2, readings).astype(np.int32)
    errors = random.integers(-most, most + 1, (readings, 70)).astype(np.int8)
    errors[:, :2] = -most, most
    counts = random.choice([0, 1, 4095, 4096, 2**20, 2**31 - 2, 2**31 - 1], size).astype(np.int32)
    table = random.integers(-127, 128, (size, 70)).astype(np.int8)
    operands = [jnp.asarray(x) for x in (table, counts, rows, errors)]
    moved, seen = both(lambda *x: context_tables.update(es, *x), *operands, jnp.uint32(2**32 - 5))
    read = np.unique(rows[rows < size])
    assert np.array_equal(np.flatnonzero(seen != counts), read[counts[read] < 2**31 - 1])
    untouched = np.setdiff1d(np.arange(size), read)
    assert np.array_equal(moved[untouched], table[untouched])
    assert np.array_equal(np.asarray(operands[0]), table)  # a copy of what was not given away


def test_direct_update_of_padding_only(both: Both) -> None:
    """Nothing moves, and nothing is counted."""
    table, counts = jnp.ones((7, 9), jnp.int8), jnp.arange(7, dtype=jnp.int32)
    rows, errors = jnp.full(20, 7, jnp.int32), jnp.ones((20, 9), jnp.int8)
    moved, seen = both(
        lambda *x: context_tables.update(EsConfig(), *x), table, counts, rows, errors, jnp.uint32(1)
    )
    assert np.array_equal(moved, table) and np.array_equal(seen, counts)


@pytest.mark.parametrize("shape", [(1, 4), (3, 2, 8), (131, 4004), (2, 6)])
def test_hash_of_weights(both: Both, shape: tuple[int, ...]) -> None:
    """One word, one thread's share and a little more, and beside a tensor of broken words."""
    draw = drawing(sum(shape), extreme=False)
    weights = {"weight": draw(*shape), "whole": draw(2, 4)}
    found = both(hashing.lanes, Parameters(weights))
    for place in ((0,) * len(shape), tuple(size - 1 for size in shape)):
        changed = weights | {"weight": weights["weight"].at[place].add(1)}
        assert not np.any(np.asarray(hashing.lanes(Parameters(changed))) == found)


def test_operands_that_do_not_fit_are_refused() -> None:
    """Before anything is read past their ends."""
    int8, of_pairs = jnp.int8, rounding(2, 0)
    logits, targets = jnp.zeros((6, 1, 9), jnp.int16), jnp.zeros((5, 1), jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="errors: shapes do not fit"):
        cpu.errors(logits, targets, of_pairs)
    with pytest.raises(jax.errors.JaxRuntimeError, match="norm: shapes do not fit"):
        cpu.norm(jnp.zeros((1, 8), int8), jnp.zeros((6, 8), int8))
    operands = [jnp.zeros(shape, int8) for shape in ((6, 9), (9, 8), (6, 8), (6, 4))]
    errors, head, gain, residual = operands
    with pytest.raises(jax.errors.JaxRuntimeError, match="stream: shapes do not fit"):
        cpu.stream(errors, head, jnp.int32(0), gain, residual, of_pairs)
    x, value = jnp.zeros((3, 2, 8), int8), jnp.zeros((8, 4), int8)
    of_others = rounding(4, 0)  # six rows are no whole number of four pairs' tokens
    with pytest.raises(jax.errors.JaxRuntimeError, match="through: shapes do not fit"):
        cpu.through(x, value, jnp.int32(0), 4, of_others)
    parts = [(x, jnp.zeros((3, 2, 16), int8)), (x, jnp.zeros((3, 2, 24), int8))]
    with pytest.raises(jax.errors.JaxRuntimeError, match="to_outputs: shapes do not fit"):
        cpu.to_outputs(parts, [jnp.int32(0)], 9, of_pairs)  # a later part has more outputs
    starts, shift_D = jnp.zeros((2, 2), bool), jnp.zeros(8, jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="to_stream: shapes do not fit"):
        cpu.to_stream(x, x, x, jnp.int32(0), shift_D, starts, of_pairs)
    weight = Weight(value, jnp.zeros((2, 4, 1), int8), jnp.zeros((2, 8, 1), int8))
    effect = jnp.zeros((3, 2, 4), int8)
    right = jnp.zeros((2, 8, 2), int8)  # of another rank
    for operands in (
        (weight, x, effect, effect[:2], of_pairs),
        (dataclasses.replace(weight, right=right), x, effect, effect, of_pairs),
        (weight, x, effect, effect, of_others),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="unit: shapes do not fit"):
            cpu.unit(*operands, 4, 10, 4)


WITHOUT_MEMORY = """
import gc, resource
from pathlib import Path
import jax, jax.numpy as jnp
from int_lm.model import layers
from int_lm.model.perturb import Weight

size = 1 << 13
weight, x_PN = Weight(jnp.ones((size, size), jnp.int8)), jnp.ones((8, size), jnp.int8)
linear = jax.jit(lambda weight, x_PN: layers.narrowed(weight, x_PN, 4, jnp.int8))
linear(weight, x_PN).block_until_ready()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + size * size // 2, before[1]))
try:
    linear(weight, x_PN).block_until_ready()
except Exception as error:  # the class depends on whether JAX dispatched it or waited for it
    print(error)
resource.setrlimit(resource.RLIMIT_AS, before)
assert int(linear(weight, x_PN)[0, 0]) == 127
"""


def test_a_kernel_without_memory_is_an_error() -> None:
    """The process goes on: a linear whose packed weights find no room in the address space.

    In a process of its own, whose memory nothing else takes or gives back in between.
    """
    program = [sys.executable, "-c", WITHOUT_MEMORY]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "no memory for a kernel" in done.stdout


@cases
@pytest.mark.parametrize("effects, parts", [(17, (3,)), (70, (3, 2, 1))])
def test_to_outputs(
    both: Both, effects: int, parts: tuple[int, ...], spare_bits: int, extreme: bool
) -> None:
    """Parts of fewer outputs, units far apart, products that the clip of a term stops."""
    draw = drawing(effects, extreme)
    credits = [draw(LENGTH, 25, effects) for _ in parts]
    responses = [draw(LENGTH, 25, groups * effects) for groups in parts]
    for down in (-12, 30) if extreme else (3, 9):
        outputs = both(
            lambda credits, responses, downs: deep.to_outputs(
                list(zip(credits, responses, strict=True)), downs, 9, rounding(25, spare_bits)
            ),
            *(credits, responses, [jnp.int32(down + k) for k in range(len(parts) - 1)]),
        )
        assert outputs.shape == (LENGTH, 25, parts[0] * effects) and np.any(outputs)


@cases
@pytest.mark.parametrize("width", [17, 300])
def test_to_stream(both: Both, width: int, spare_bits: int, extreme: bool) -> None:
    """Documents that begin, the segment's last token; a stream of zeros; units far apart."""
    draw, random = drawing(width, extreme), np.random.default_rng(width)
    stream, credit_TID, normed = (draw(LENGTH, 25, width) for _ in range(3))
    stream = stream.at[0, 0].set(0)
    starts = jnp.asarray(random.random((LENGTH, 25)) < 0.3)
    shift = jnp.asarray(random.choice([0, 127] if extreme else np.arange(128), width), jnp.int32)
    for down in (-12, 30) if extreme else (0, 5):
        found = both(
            lambda *operands: deep.to_stream(*operands, rounding(25, spare_bits)),
            *(stream, credit_TID, normed, jnp.int32(down), shift, starts),
        )
        assert found.shape == stream.shape and np.any(found)


# -- All layers at once ----------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("rank, effects, groups, through", [(1, 17, 3, False), (4, 70, 1, True)])
def test_unit_votes(
    both: Both, rank: int, effects: int, groups: int, through: bool, spare_bits: int, extreme: bool
) -> None:
    """More terms than are made at once, sizes of no vector; a PROJECTION behind or none."""
    layers, pairs, length, inputs, width = 2, 5, 211, 66, 13
    draw = drawing(rank, extreme)
    left = draw(layers, pairs, effects * groups, rank)
    weight = Weight(draw(layers, effects * groups, inputs), left, draw(layers, pairs, inputs, rank))
    votes = both(
        lambda weight, x, effect, credit, through: unit.unit_votes(
            *(weight, x, effect, credit, through, jnp.array([3, -2]), rounding(5, spare_bits)),
            *node.shifts_of(weight, inputs),
            4,
        ),
        weight,
        draw(layers, length, pairs, inputs),
        draw(layers, length, pairs, effects),
        draw(length, pairs, width if through else effects),
        draw(layers, width, effects) if through else None,
    )
    assert votes.shape == (layers, effects * groups, inputs) and np.any(votes[0] != votes[1])


@cases
@pytest.mark.parametrize("effects, groups, through", [(17, 3, False), (70, 1, True)])
def test_local_votes(
    both: Both, effects: int, groups: int, through: bool, spare_bits: int, extreme: bool
) -> None:
    """More terms than are made at once, sizes of no vector; a PROJECTION behind or none."""
    layers, voters, length, inputs, width = 2, 5, 211, 66, 13
    draw = drawing(groups, extreme)
    votes = both(
        lambda responses, x, credit, through: local.local_votes(
            *(responses, x, credit, through, jnp.array([3, -2]), rounding(voters, spare_bits)),
            *(local.PRODUCT_SHIFT, 4),
        ),
        draw(layers, length, voters, effects * groups),
        draw(layers, length, voters, inputs),
        draw(length, voters, width if through else effects),
        draw(layers, width, effects) if through else None,
    )
    assert votes.shape == (layers, effects * groups, inputs) and np.any(votes[0] != votes[1])


@pytest.mark.parametrize("terms, outputs, inputs", [(1, 1, 1), (700, 200, 70), (261, 65, 300)])
def test_outer_of_layers(both: Both, terms: int, outputs: int, inputs: int) -> None:
    """Columns in an order of their own, a last block, sums that go on: those of NumPy."""
    draw = drawing(terms, True)
    left, x = draw(terms, 1, outputs), draw(2, terms, 1, inputs)
    votes = both(outer.outer_of_layers, left, x)
    wide = np.asarray(left[:, 0], np.int32), np.asarray(x[:, :, 0], np.int32)
    np.testing.assert_array_equal(votes, np.einsum("jm,ljn->lmn", *wide))


@pytest.mark.parametrize("size", [1, 64, 255 * 64 + 70])
def test_counts(both: Both, size: int) -> None:
    """Of every weight, of none, of a rest."""
    draw = np.random.default_rng(size)
    new, old = (draw.integers(-127, 128, (1, size)).astype(np.int8) for _ in range(2))
    new[0, :2], old[0, -1] = 127, -127
    found = both(params.counts, jnp.asarray(new), jnp.asarray(old))
    assert found.tolist() == [np.sum(new != old), np.sum(np.abs(new) == 127)]


# -- The document cache ----------------------------------------------------------------------------


def test_the_document_cache_reads_a_segment(both: Both) -> None:
    """Rows that others overwrite, documents that end, places that wrap, a second segment."""
    random, sizes = np.random.default_rng(0), (16, 5, 2, 1)
    tokens = random.choice([0, 1, 2, 3, 65_535], (90, 19), p=[0.03, 0.5, 0.2, 0.2, 0.07])
    tokens = jnp.asarray(tokens.astype(np.int32))
    places = jnp.asarray(random.integers(-40, 1, (2, 19)), jnp.int32).at[1].set(-41)
    words = jnp.asarray(random.integers(-(2**31), 2**31, (4, 19, 16, 3)), jnp.int32)

    def two_segments(words: Any, places: Any, hashes: Any, context: Any, tokens: Any) -> Any:
        first = document_cache._over_tokens(sizes, 4, words, places, hashes, context, tokens[:50])
        context = tokens[49:33:-1]
        return first[3:], document_cache._over_tokens(sizes, 4, *first[:3], context, tokens[50:])

    context = jnp.asarray(random.integers(0, 4, (17, 19)), jnp.int32)
    hashes = jnp.asarray(random.integers(-(2**31), 2**31, (4, 19)), jnp.int32)
    (weights, _), *_ = both(two_segments, words, places, hashes, context, tokens)
    assert 0.2 < np.mean(weights < 4 * 4 * 3 * 32) < 0.95


@pytest.mark.parametrize("readers", [1, 3])
def test_the_document_cache_is_added(both: Both, readers: int) -> None:
    """Slots of one token, empty ones, logits at their ends."""
    random, streams, slots, size = np.random.default_rng(readers), 70, 12, 96
    table = jnp.asarray(random.choice([-127, 127], (3, 32)).astype(np.int8))
    weights = jnp.asarray(random.integers(0, size + 1, (streams, slots)), jnp.int32)
    tokens = jnp.asarray(random.integers(0, 5, (streams, slots)), jnp.int32)
    logits = random.choice([-32_767, 0, 32_767, 32_700], (streams * readers, 7)).astype(np.int16)
    reading = document_cache.Reading(weights, tokens)
    found = both(document_cache.added, table, reading, jnp.asarray(logits))
    assert np.any(found != logits) and found.max() == 32_767


def test_single_weights_are_learnt_from_sums(both: Both) -> None:
    """Weights read once, often and never, errors at their ends, padding."""
    random, size = np.random.default_rng(4), 96
    rows = random.integers(0, 40, 5000).astype(np.int32)
    rows[:300], rows[300] = size, 95
    errors = random.choice([-127, 127], (5000, 1), p=[0.7, 0.3]).astype(np.int8)
    counts = jnp.asarray(random.integers(0, 9, size), jnp.int32).at[3].set(2**31 - 1)
    moved, after = both(
        lambda *operands: context_tables.learnt(*operands, 300, 2),
        *(jnp.zeros((size, 1), jnp.int8), counts, jnp.asarray(rows), jnp.asarray(errors)),
        jnp.uint32(7),
    )
    assert np.any(moved) and after[95] == counts[95] + 1 and after[50] == counts[50]
