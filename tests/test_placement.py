"""Many devices give the bits of one: every estimator, both architectures, any division."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evolve import ARCHITECTURES, ESTIMATORS, UPDATES, VOCABULARY, tiny, tokens_of

from int_lm.config import Config, DistributedConfig, EsConfig
from int_lm.errors import UserError
from int_lm.method import evolve, placement, population
from int_lm.method.placement import Placement
from int_lm.model import hashing, params

STEPS = 3


def over(devices: int, config: Config, update: str = "replicated") -> Placement:
    """The first so many devices of this process."""
    distributed = DistributedConfig(devices=devices, update=update)  # type: ignore[arg-type]
    return chosen(distributed, config.es)


def chosen(distributed: DistributedConfig, es: EsConfig, weights: int = 1) -> Placement:
    place = placement.choose(distributed, es, weights)
    assert place is not None
    return place


def run_over(config: Config, place: Placement | None, vocab_size: int = VOCABULARY):
    """State and scores after some steps, on the host."""
    state = evolve.initial(config, vocab_size)
    if place is not None:
        state = evolve.placed(state, evolve.specs_of(config, vocab_size), place)
    step, scores = evolve.compiled_step(config, vocab_size, place), []
    for number in range(STEPS):
        state, metrics = step(state, tokens_of(config, number, vocab_size), number)
        scores.append(np.asarray(metrics.scores_P))
    return placement.on_host(state), np.array(scores)


def assert_equal(config: Config, places: list[Placement], vocab_size: int = VOCABULARY) -> None:
    """All of them give the state and the scores of one device, to the bit."""
    expected, scores = run_over(config, None, vocab_size)
    assert hashing.weights_hash(expected.weights) != hashing.weights_hash(
        evolve.initial(config, vocab_size).weights
    )
    for place in places:
        found, found_scores = run_over(config, place, vocab_size)
        np.testing.assert_array_equal(found_scores, scores)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_four_devices_give_the_bits_of_one() -> None:
    """The default recipe: split votes, and direct connections whose columns are shared."""
    config = tiny(architecture="rwkv", votes="unit", readout="exact", update="carry", direct=(2,))
    assert_equal(config, [over(4, config, "sharded")], vocab_size=12)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("votes", "readout"), ESTIMATORS)
def test_any_number_of_devices_gives_the_bits_of_one(architecture, votes, readout) -> None:
    """2 and 8 devices, votes summed and split, with fitness and updates that need all of them."""
    update = UPDATES[(len(votes) + len(architecture)) % len(UPDATES)]
    fields = {"votes": votes, "readout": readout, "update": update, "fitness": "linear"}
    config = tiny(architecture=architecture, population=16, vote_clip=0.5, chunk=4, **fields)
    assert_equal(config, [over(2, config), over(8, config, "sharded")])


@pytest.mark.slow
def test_direct_connections_of_a_vocabulary_that_the_devices_do_not_divide() -> None:
    """Every device moves all of a table."""
    config = tiny(architecture="rwkv", votes="unit", readout="exact", update="carry", direct=(2,))
    assert VOCABULARY % 4
    assert_equal(config, [over(4, config)])


@pytest.mark.parametrize("kind", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"])
def test_only_votes_scores_and_errors_cross(kind: str) -> None:
    """The compiled step's collectives, one by one: nothing else, and no float."""
    config = tiny(architecture="rwkv", votes="unit", readout="exact", update="carry", direct=(2,))
    place = over(4, config, kind)
    settings = population.chunked(config, 4)
    state = evolve.placed(evolve.initial(config, 12), evolve.specs_of(config, 12), place)
    tokens, word = placement.put(place.by_stream, tokens_of(config, 0, 12)), jnp.uint32(0)

    @jax.jit
    def step(state: evolve.State, tokens: jax.Array):
        pace = evolve.pace(settings, 0)
        return evolve.step(settings, 12, state, tokens, word, word, pace, place)

    crossing = re.findall(
        r"= \(?(\w+)\[([\d,]*)\].*? (all-[\w-]+|reduce-scatter|collective-\w+)\(",
        step.lower(state, tokens).compile().as_text(),
    )
    assert {dtype for dtype, _, _ in crossing} <= {"s32", "s8"}, crossing
    sizes = [int(np.prod([int(n) for n in size.split(",") if n])) for _, size, _ in crossing]
    network = params.count(params.without_direct(evolve.specs_of(config, 12)))
    readings = config.es.population // 2 * config.es.segment_length
    assert max(sizes) <= max(network, readings * 12), crossing
    gathered = [
        size
        for size, (dtype, _, name) in zip(sizes, crossing, strict=True)
        if dtype == "s32" and name == "all-gather"
    ]
    assert max(gathered) <= max(config.es.population, readings), crossing  # weights cross as int8
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
    with pytest.raises(UserError, match="distributed.devices is 9, but a process has 8"):
        placement.choose(DistributedConfig(devices=9), es, 1)


def test_votes_of_large_networks_are_split() -> None:
    """`auto` splits from 2^24 weights on; the choice can be made by hand."""
    es = EsConfig(population=8)
    assert not chosen(DistributedConfig(), es, (1 << 24) - 1).sharded
    assert chosen(DistributedConfig(), es, 1 << 24).sharded
    assert chosen(DistributedConfig(update="sharded"), es).sharded
    assert not chosen(DistributedConfig(update="replicated"), es, 1 << 30).sharded
