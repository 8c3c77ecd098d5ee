"""A step of tuning: what members write, fitness of rewards, the update; integers, and the oracle's.

Completions, votes, weights and the pull towards the start are compared number for number, on one
device and on several. What a user sees of it is in test_tune.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest
from oracle import tuning as expected
from test_evolve import inexact
from test_step import plain

from int_lm.config import Config, DistributedConfig, RewardConfig, RunConfig
from int_lm.errors import UserError
from int_lm.method import chunks, evolve, placement, pull, rewards, tuning
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, sampler

VOCABULARY = 11
ENDS = {0, 7}
ENDS_V = np.array([token in ENDS for token in range(VOCABULARY)])
SAMPLED = {"temperature": 1.0, "pass_at": 2}


def tiny(
    reward: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **es: Any
) -> Recipe:
    """A small recipe; keyword arguments are fields of `es`."""
    sizes = {"architecture": "rwkv", "width": 8, "layers": 1, "ffn_multiple": 2, "direct_bits": 8}
    fields = {"population": 8, "members_per_stream": 4, "sigma_shift": 1, "fitness": "standard"}
    fields |= {"update": "carry", "learning_rate": 2.0, "schedule": "constant"}
    fields |= {"objective": "reward"} | es
    config = Config(
        model=presets.egg(**sizes | (model or {})),
        es=presets.paper_es(**fields),
        run=RunConfig(seed=3, steps=100, init_from="there"),
        reward=RewardConfig(tokens=5, **(reward or {})),
    )
    return presets.resolved(config, VOCABULARY)


def prompts_of(recipe: Recipe, step: int) -> np.ndarray:
    """Random prompts [S, N], one of them shorter, with separators in front."""
    prompts = np.random.default_rng(step).integers(1, VOCABULARY, (recipe.es.streams, 5))
    prompts[:, 0] = prompts[0, :3] = 0
    return prompts


def shortened(prompts: np.ndarray) -> list[list[int]]:
    """With a single separator in front."""
    return [row[max(0, np.argmax(row > 0) - 1) :].tolist() for row in prompts]


def scores_of(written_PKC: np.ndarray) -> list[int]:
    """Some scores that the completions decide."""
    return [int((own * np.arange(1, 6)).sum()) << 16 for own in written_PKC]


writer_of = functools.cache(tuning.compiled_writer)
learner_of = functools.cache(tuning.compiled_learner)


# -- Parts -----------------------------------------------------------------------------------------


def test_a_word_picks_its_share_of_a_total() -> None:
    """floor(word total / 2^32), at the ends and at random."""
    random = np.random.default_rng(0)
    words = np.concatenate([[0, 1, 2**16, 2**32 - 1], random.integers(0, 2**32, 500)])
    for total in (1, 2, 65535, 65536, 2**30 - 1, 2**30):
        found = sampler.scaled(jnp.asarray(words, jnp.uint32), jnp.full(len(words), total))
        assert found.tolist() == [int(word) * total // 2**32 for word in words]


@pytest.mark.parametrize(("size", "temperature"), [(11, 1.0), (256, 0.7), (300, 2.5)])
def test_a_drawn_token_is_the_one_that_the_weights_say(size: int, temperature: float) -> None:
    """The table and every draw; words at the ends of the range too."""
    table = sampler.weights(temperature, size)
    assert table.tolist() == expected.weights(temperature, size)
    assert int(table[0]) * size <= 2**30
    random = np.random.default_rng(size)
    logits = random.integers(-127, 128, (60, size)) // random.integers(1, 30, (60, 1))
    words = np.concatenate([[0, 2**32 - 1], random.integers(0, 2**32, 58)])
    found = jax.jit(sampler.drawn)(
        jnp.asarray(logits, jnp.int16), jnp.asarray(table), jnp.asarray(words, jnp.uint32)
    )
    each = zip(logits.tolist(), words.tolist(), strict=True)
    assert found.tolist() == [expected.drawn(row, table.tolist(), word) for row, word in each]


def test_draws_have_the_right_frequencies() -> None:
    """Half of the draws at equal distances of one octave: 2 : 1 for logits 16 apart."""
    logits = jnp.tile(jnp.array([[16, 0, -127]], jnp.int8), (3000, 1))
    words = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, 3000), jnp.uint32)
    table = jnp.asarray(sampler.weights(1.0, 3))
    counts = np.bincount(jax.jit(sampler.drawn)(logits, table, words), minlength=3)
    assert abs(counts[0] - 2000) < 100 and counts[2] < 20


@pytest.mark.parametrize("kind", rewards.KINDS)
@pytest.mark.parametrize("members", [2, 6, 8])
def test_fitness_equals_exact_fractions(kind: str, members: int) -> None:
    """Of ties, of solved or not, of any numbers up to the largest."""
    random = np.random.default_rng(members)
    limit = rewards.fixed_point(rewards.REWARD_MAX)
    scores: list[int] = [5] * members
    for most in (1, 3, 1000, limit):
        scores += random.integers(-most, most + 1, 4 * members).tolist()
    scores += [limit, -limit] * (members // 2)
    found = rewards.fitness(kind, scores, members).tolist()
    assert found == expected.fitness(kind, scores, members)
    assert found[: members // 2] == [0] * (members // 2)
    swapped = [score for a, b in zip(scores[0::2], scores[1::2], strict=True) for score in (b, a)]
    assert rewards.fitness(kind, swapped, members).tolist() == [-value for value in found]


def test_a_rare_success_counts_most_in_standard_deviations() -> None:
    """As sign it counts 1; a prompt that all members solve says nothing."""
    rare, common = [1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0, 0, 1]
    assert rewards.fitness("standard", rare, 8).tolist() == [6, 0, 0, 0]
    assert rewards.fitness("standard", common, 8).tolist() == [4, 4, 4, -4]
    assert rewards.fitness("sign", rare, 8).tolist() == [1, 0, 0, 0]
    assert rewards.fitness("rank", [1] * 8, 8).tolist() == [0] * 4


def test_what_all_of_a_pair_share_hides_in_standard_deviations() -> None:
    """Pairs that play other episodes: `linear` sees the differences, whatever the levels."""
    scores = [101, 100, 900, 901, 501, 500, 300, 302]
    assert rewards.fitness("standard", scores, 8).tolist() == [0, 0, 0, 0]
    assert rewards.fitness("linear", scores, 8).tolist() == [2, -2, 2, -4]


def test_rewards_become_integers() -> None:
    """In units of 2^-16, halves to even; the best of a member's completions is its score."""
    halves = [rewards.fixed_point(x / 2**17) for x in (1, 2, 3, -1)]
    assert halves == [0, 1, 2, 0]
    assert rewards.of_members([[3, 5], [7, -9]]) == [5, 7]
    with pytest.raises(UserError, match="a reward is 20000"):
        rewards.fixed_point(20000.0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="es.fitness rank and es.objective log_likelihood"):
        tiny(fitness="rank", objective="log_likelihood")
    assert tiny(fitness="linear").es.fitness == "linear"
    with pytest.raises(UserError, match="needs what members write to be judged"):
        recipe = tiny()
        evolve.compiled_step(recipe)(evolve.initial(recipe), np.zeros((2, 3), np.uint8), 0)
    with pytest.raises(UserError, match="without a temperature"):
        tiny({"pass_at": 2})


# -- Whole steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "model", "es"),
    [
        ({}, {}, {"chunk": 4, "anchor": 0.25, "decay": 0.125}),
        (SAMPLED, {"direct": (1, 3)}, {"rank": 2, "fitness": "rank"}),
        pytest.param(
            {"temperature": 0.5},
            {"architecture": "egg"},
            {"update": "threshold", "alpha": 0.8, "anchor": 0.5, "fitness": "sign"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["greedy rwkv anchored and decayed", "sampled rwkv with tables", "sampled egg anchored"],
)
def test_steps_equal_the_oracle(reward: dict, model: dict, es: dict) -> None:
    """Completions of all members, and weights and remainders after each of two steps."""
    recipe = tiny(reward, model, **es)
    config, state = recipe.settings, evolve.initial(recipe)
    for table in state.tables.values.values():
        assert not table.any()
    state = evolve.initial(recipe, _with_tables(state.weights))
    before = plain(state)
    start = {path: value for path, value in before.weights.items() if "direct" not in path}
    write, learn = writer_of(recipe), learner_of(recipe)
    lengths = set()
    for step in range(2):
        prompts = prompts_of(recipe, step)
        written = np.asarray(write(state.weights, prompts, ENDS_V, step))
        own = expected.completions(
            config, VOCABULARY, before.weights, shortened(prompts), ENDS, step
        )
        assert written.tolist() == own
        lengths |= {int((row != 0).sum()) for row in written.reshape(-1, 5)}
        scores = scores_of(written)
        fitness = rewards.fitness(config.es.fitness, scores, config.es.members_per_stream)
        assert fitness.any()
        state, metrics = learn(state, np.array(scores), fitness, step)
        after = expected.step(config, VOCABULARY, before, start, fitness.tolist(), step)
        found = plain(state)
        assert found.weights == after.weights
        assert found.memory == after.memory
        assert metrics.scores_P.tolist() == scores
        assert int(metrics.changed) > 0
        before = after
    assert len(lengths) > 1  # some completions end early


def _with_tables(weights: Any) -> Any:
    """Weights whose context tables hold random logits."""
    random = np.random.default_rng(2)
    tables = {
        name: random.integers(-20, 21, leaf.shape).astype(np.int8)
        for name, leaf in weights.tables.items()
    }
    return type(weights)(weights.network, jax.tree.map(jnp.asarray, tables))


def test_the_bare_model_answers_as_the_oracle() -> None:
    """Greedily, from prompts of different lengths."""
    recipe = tiny()
    weights, prompts = evolve.initial(recipe).weights, prompts_of(recipe, 4)
    found = tuning.answers(recipe.model, weights, prompts, ENDS_V, 5)
    own = [
        expected.answer(recipe.settings, oracle.plain(weights.by_path()), prompt, ENDS)
        for prompt in shortened(prompts)
    ]
    assert np.asarray(found).tolist() == own


@pytest.mark.slow
def test_any_devices_and_chunks_give_the_same_bits() -> None:
    """Hashes of the weights after three steps, and everything that is written on the way."""
    found = set()
    for devices, chunk, update in ((1, 0, "auto"), (2, 4, "sharded"), (4, 0, "auto")):
        recipe = tiny(SAMPLED, population=16, chunk=chunk, anchor=0.25)
        setup = DistributedConfig(devices=devices, update=update)
        place = placement.choose(setup, recipe.es, 10) if devices > 1 else None
        state = evolve.placed(recipe, evolve.initial(recipe), place)
        write, learn = writer_of(recipe, place), learner_of(recipe, place)
        log: list[Any] = []
        for step in range(3):
            written = np.asarray(write(state.weights, prompts_of(recipe, step), ENDS_V, step))
            scores = scores_of(written)
            fitness = rewards.fitness("standard", scores, 4)
            state, _ = learn(state, np.array(scores), fitness, step)
            weights = jax.tree.map(np.asarray, state.weights)
            log += [written.tobytes(), hashing.weights_hash(weights)]
        found.add(tuple(log))
    assert len(found) == 1
    assert len({entry for entry in log if isinstance(entry, str)}) == 3


def test_both_parts_of_a_step_are_integers() -> None:
    """No array of either has a floating dtype."""
    recipe = tiny(SAMPLED, anchor=0.25)
    state, word = evolve.abstract(recipe), jax.ShapeDtypeStruct((), np.uint32)
    clock = Clock(word, word)  # type: ignore[arg-type]
    pairs = chunks.pairs(recipe.es)
    prompts = jax.ShapeDtypeStruct((2, 5), np.int32)
    ends = jax.ShapeDtypeStruct((VOCABULARY,), bool)
    write = functools.partial(tuning.completions, recipe, pairs)
    assert inexact(jax.make_jaxpr(write)(state.weights, prompts, ends, clock)) == []
    learn = functools.partial(tuning.learn, recipe, functools.partial(tuning.votes, recipe), None)
    scores, fitness = (jax.ShapeDtypeStruct((n,), t) for n, t in ((8, np.int32), (4, np.int8)))
    values = evolve.values(recipe, 0)
    assert inexact(jax.make_jaxpr(learn)(state, scores, fitness, clock, values)) == []


def test_an_update_may_keep_an_array_of_the_name_anchor() -> None:
    """It begins as the update says; together with es.anchor, which adds one, it is refused."""
    recipe = tiny()
    own, twos = recipe.update.memory, functools.partial(jnp.full, fill_value=2, dtype=jnp.int8)
    named = recipe.update._replace(
        memory=lambda spec: own(spec) | {"anchor": twos(spec.full_shape)}
    )
    memory = evolve.initial(dataclasses.replace(recipe, update=named)).memory["anchor"]
    assert all(np.all(np.asarray(array) == 2) for array in memory.values())
    pulled = tiny(anchor=0.5)
    for update in (named, recipe.update._replace(values=lambda *_: {"anchor": 1})):
        with pytest.raises(UserError, match="the update mine has a 'anchor' of its own"):
            both = dataclasses.replace(pulled, update=pull.anchored("mine", update))
            evolve.values(both, 0)
            evolve.initial(both)


def test_the_pull_fades_with_the_schedule() -> None:
    """It is a share of the rate at which weights move, so that it does not undo them at the end."""
    recipe = tiny(anchor=0.5, decay=0.25, schedule="linear")
    found = [evolve.values(recipe, step) for step in (0, 50, 100)]
    assert [values["anchor"] for values in found] == [2**15, 2**14, 0]
    assert [values["decay"] for values in found] == [2**14, 2**13, 0]
