"""Many devices give the bits of one: every estimator, both architectures, any division."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import USERS
from test_evolve import ARCHITECTURES, ESTIMATORS, UPDATES, VOCABULARY, tiny, tokens_of

from int_lm.config import DistributedConfig, EsConfig
from int_lm.errors import UserError
from int_lm.method import evolve, placement
from int_lm.method.clock import Clock
from int_lm.method.evolve import State
from int_lm.method.placement import Placement
from int_lm.method.recipe import Recipe
from int_lm.model import hashing, params

STEPS = 3


def over(devices: int, recipe: Recipe, update: str = "replicated") -> Placement:
    """The first so many devices of this process."""
    distributed = DistributedConfig(devices=devices, update=update)  # type: ignore[arg-type]
    return chosen(distributed, recipe.settings.es)


def chosen(distributed: DistributedConfig, es: EsConfig, weights: int = 1) -> Placement:
    place = placement.choose(distributed, es, weights)
    assert place is not None
    return place


def run_over(recipe: Recipe, place: Placement | None):
    """State and scores after some steps, on the host."""
    state = evolve.placed(recipe, evolve.initial(recipe), place)
    compiled, scores = evolve.compiled_step(recipe, place), []
    for step in range(STEPS):
        state, metrics = compiled(state, tokens_of(recipe, step), step)
        scores.append(np.asarray(metrics.scores_P))
    return placement.on_host(state), np.array(scores)


def assert_equal(recipe: Recipe, places: list[Placement]) -> None:
    """All of them give the state and the scores of one device, to the bit."""
    expected, scores = run_over(recipe, None)
    assert hashing.weights_hash(expected.weights) != hashing.weights_hash(
        evolve.initial(recipe).weights
    )
    for place in places:
        found, found_scores = run_over(recipe, place)
        np.testing.assert_array_equal(found_scores, scores)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def token_recipe(vocab_size: int, votes: str = "unit", update: str = "carry") -> Recipe:
    """Votes token by token, with a context table."""
    es = {"votes": votes, "readout": "exact", "update": update}
    return tiny(architecture="rwkv", direct=(2,), vocab_size=vocab_size, **es)


@pytest.mark.parametrize(("votes", "update"), [("unit", "carry"), ("local", "adaptive")])
def test_four_devices_give_the_bits_of_one(votes: str, update: str) -> None:
    """Split votes, of pairs and of members, and context tables; updates of whole tensors."""
    recipe = token_recipe(12, votes, update)
    assert_equal(recipe, [over(4, recipe, "sharded")])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("votes", "readout"), ESTIMATORS)
def test_any_number_of_devices_gives_the_bits_of_one(architecture, votes, readout) -> None:
    """2 and 8 devices, votes summed and split, with fitness and updates that need all of them."""
    update = UPDATES[(len(votes) + len(architecture)) % len(UPDATES)]
    fields = {"votes": votes, "readout": readout, "update": update, "fitness": "linear"}
    recipe = tiny(architecture=architecture, population=16, chunk=4, **fields)
    assert_equal(recipe, [over(2, recipe), over(8, recipe, "sharded")])


@pytest.mark.slow
def test_context_tables_of_a_vocabulary_that_the_devices_do_not_divide() -> None:
    """Every device moves all of a table."""
    recipe = token_recipe(VOCABULARY)
    assert VOCABULARY % 4
    assert_equal(recipe, [over(4, recipe)])


@pytest.mark.optimised
@pytest.mark.parametrize("kind", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"])
def test_only_votes_scores_and_errors_cross(kind: str) -> None:
    """The compiled step's collectives, one by one: nothing else, and no float."""
    recipe = token_recipe(12)
    place = over(4, recipe, kind)
    state = evolve.placed(recipe, evolve.initial(recipe), place)
    tokens = placement.put(place.by_stream, tokens_of(recipe, 0))

    @jax.jit
    def step(state: State, tokens: jax.Array):
        clock, values = Clock(jnp.uint32(0), jnp.uint32(0)), evolve.values(recipe, 0)
        return evolve.step(recipe, state, tokens, clock, values, place)

    crossing = re.findall(
        r"= \(?(\w+)\[([\d,]*)\].*? (all-[\w-]+|reduce-scatter|collective-\w+)\(",
        step.lower(state, tokens).compile(compiler_options=USERS).as_text(),
    )
    assert {dtype for dtype, _, _ in crossing} <= {"s32", "s8"}, crossing
    sizes = [int(np.prod([int(n) for n in size.split(",") if n])) for _, size, _ in crossing]
    network = params.count(recipe.model.specs.network)
    rows = recipe.es.population // 2 * recipe.es.segment_length
    assert max(sizes) <= max(network, rows * 12), crossing
    gathered = [
        size
        for size, (dtype, _, name) in zip(sizes, crossing, strict=True)
        if dtype == "s32" and name == "all-gather"
    ]
    assert max(gathered) <= max(recipe.es.population, rows), crossing  # weights cross as int8
    kinds = {name for _, _, name in crossing}
    assert ("reduce-scatter" in kinds) == (kind == "sharded"), crossing


def test_votes_are_split_where_they_can_be() -> None:
    """Along the first axis that the devices divide; otherwise every device has all."""
    place = over(4, tiny(), "sharded")
    assert tuple(place.split((2, 8, 6))) == (None, "population")
    assert tuple(place.split((4, 8))) == ("population",)
    assert tuple(place.split((2, 3))) == ()
    assert tuple(over(4, tiny()).split((4, 8))) == ()


def test_devices_that_cannot_share_the_streams_are_not_used_or_refused() -> None:
    """8 members are 4 streams: of 8 devices 4 are used; 3 or 8 asked for are refused."""
    es = EsConfig(population=8)
    assert chosen(DistributedConfig(), es).devices == 4
    assert chosen(DistributedConfig(devices=2), es).devices == 2
    assert placement.choose(DistributedConfig(devices=1), es, 1) is None
    for devices in (3, 8):
        with pytest.raises(UserError, match="4 streams .* choose a population that is a multiple"):
            placement.choose(DistributedConfig(devices=devices), es, 1)
    alone = EsConfig(population=8, members_per_stream=1)  # each of 8 streams; pairs stay together
    assert chosen(DistributedConfig(), alone).devices == 4
    with pytest.raises(UserError, match="8 streams .* by 1 process of 8 devices; .* of 16,"):
        placement.choose(DistributedConfig(devices=8), alone, 1)
    with pytest.raises(UserError, match="distributed.devices is 9, but a process has 8"):
        placement.choose(DistributedConfig(devices=9), es, 1)


def test_votes_of_large_networks_are_split() -> None:
    """`auto` splits from 2^24 weights on; the choice can be made by hand."""
    es = EsConfig(population=8)
    assert not chosen(DistributedConfig(), es, (1 << 24) - 1).sharded
    assert chosen(DistributedConfig(), es, 1 << 24).sharded
    assert chosen(DistributedConfig(update="sharded"), es).sharded
    assert not chosen(DistributedConfig(update="replicated"), es, 1 << 30).sharded
