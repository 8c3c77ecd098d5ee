"""Trace, unit, local and exact votes: equal to the oracle's, and rightly directed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest
from presets import STOCHASTIC

from benchmarks import backprop, cuts
from int_lm.config import Config, EsConfig, ModelConfig, RunConfig
from int_lm.limits import spare_bits
from int_lm.method import chunks, evolve, population, token_votes
from int_lm.method.clock import Clock
from int_lm.method.recipe import Recipe
from int_lm.model import params, perturb, rwkv
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Role
from int_lm.model.perturb import Weight

PAIRS, LENGTH, WIDTH, VOCABULARY = 3, 4, 8, 11
MODEL = ModelConfig(architecture="rwkv", width=WIDTH, layers=2, ffn_multiple=2)
STEP = 5
PAIR_NUMBERS = np.array([7, 0, 2**20])
of_segment = jax.jit(token_votes.votes, static_argnums=0)


# -- Exactness -------------------------------------------------------------------------------------


def numbers_of(es: EsConfig) -> np.ndarray:
    """Numbers of the voters: pairs, or members that each read a stream of their own."""
    members = np.stack([2 * PAIR_NUMBERS, 2 * PAIR_NUMBERS + 1], axis=1)
    return PAIR_NUMBERS if es.members_per_stream > 1 else members.ravel()


def segment(es: EsConfig, seed: int, extreme: bool) -> tuple[dict, dict]:
    """Members and records at random, or all at the ends of their ranges; int64."""
    random, voters = np.random.default_rng(seed), len(numbers_of(es))

    def draw(*shape: int, most: int = 127) -> np.ndarray:
        if extreme:
            return random.choice([-most, most], shape)
        return random.integers(-most, most + 1, shape)

    most = 16 if es.noise == "rademacher" else 69
    members, inputs, effects, answers = {}, {}, {}, {}
    for path, spec in params.flatten(rwkv.specs(MODEL, VOCABULARY)):
        stacked = (spec.layers,) if spec.layers else ()
        outputs, width = spec.shape
        members[path] = (
            draw(*stacked, outputs, width, most=127 if extreme else 40),
            draw(*stacked, PAIRS, outputs, es.rank, most=most),
            draw(*stacked, PAIRS, width, es.rank, most=most),
        )
        if spec.role is Role.EMBEDDING:
            inputs[path] = random.integers(0, VOCABULARY, (LENGTH, voters))
            continue
        inputs[path] = draw(LENGTH, *stacked, voters, width)
        if spec.role is Role.MATRIX:
            effect = WIDTH if "time" in path else outputs
            effects[path] = draw(LENGTH, *stacked, voters, effect, most=127 if extreme else 12)
            answers[path] = draw(LENGTH, *stacked, voters, outputs)
    logits = draw(LENGTH, voters, VOCABULARY, most=32767 if extreme else 90)
    logits[0] = 0
    return members, {
        "inputs": inputs,
        "effects": effects,
        "answers": answers,
        "difference": draw(LENGTH, voters, most=2**21 if extreme else 2**17),
        "logits": logits,
        "targets": random.integers(0, VOCABULARY, (LENGTH, voters)),
        "residual": draw(LENGTH, voters, WIDTH),
        "gain": np.full((LENGTH, voters, WIDTH), 127 if extreme else 16),
    }


@pytest.mark.parametrize(
    "voting, readout, noise, rank, spare",
    [
        ("trace", "perturbed", "gaussian", 3, 3),
        ("trace", "exact", "rademacher", 1, 4),
        ("unit", "exact", "rademacher", 1, 4),
        ("unit", "exact", "gaussian", 3, 3),
        ("local", "exact", "rademacher", 1, 3),
        ("local", "exact", "rademacher", 1, 4),
    ],
)
@pytest.mark.parametrize("extreme", [False, True])
def test_votes_of_a_large_population_equal_the_oracle(
    voting: str, readout: str, noise: str, rank: int, spare: int, extreme: bool
):
    """Every tensor, where operands spare bits; both noises and the ends of all ranges.

    Whole steps, which spare none, are those of test_step.py.
    """
    es = EsConfig(
        population=2 ** (14 + spare - (voting == "local")),
        members_per_stream=1 if voting == "local" else 2,
        segment_length=16,
        votes=voting,  # type: ignore[arg-type]
        readout=readout,  # type: ignore[arg-type]
        noise=noise,  # type: ignore[arg-type]
        rank=rank,
    )
    assert spare_bits(es) == oracle.spare_bits(es) == spare
    config = Config(model=MODEL, es=es)
    recipe = presets.resolved(config, VOCABULARY)
    members, records = segment(es, rank, extreme)
    int8 = functools.partial(np.asarray, dtype=np.int8)
    tree = params.unflatten(
        {
            path: Weight(*(jnp.asarray(int8(leaf)) for leaf in leaves), shift=7)
            for path, leaves in members.items()
        }
    )
    matrices = {path: int8(x) for path, x in records["inputs"].items() if path != "embedding"}
    inputs = matrices | {"embedding": records["inputs"]["embedding"].astype(np.int32)}
    second = records["answers" if voting == "local" else "effects"]
    effects = {path: int8(x) for path, x in second.items()}
    with_two = {path for path in inputs if voting in ("unit", "local") and path != "head"}
    kept = token_votes.Record(
        tensors=jax.tree.map(
            jnp.asarray,
            {path: (x, effects.get(path)) if path in with_two else x for path, x in inputs.items()},
        ),
        rows={},
        cache=None,
        difference_I=jnp.asarray(records["difference"].astype(np.int32))
        if voting != "local"
        else None,
        logits_IV=jnp.asarray(records["logits"].astype(np.int16)),
        targets_I=jnp.asarray(records["targets"].astype(np.int32)),
        residual_ID=jnp.asarray(int8(records["residual"])),
        gain_ID=jnp.asarray(int8(records["gain"])),
    )
    pairs_I, clock = (
        jnp.asarray(PAIR_NUMBERS.astype(np.int32)),
        Clock(jnp.uint32(0), jnp.uint32(STEP)),
    )
    votes, row_errors = of_segment(recipe, Parameters(tree), kept, pairs_I, clock)
    place = oracle.votes.Place(numbers_of(es).tolist(), STEP, spare)
    expected, _ = oracle.votes.token_votes(
        config, VOCABULARY, members, oracle.votes.Records(**records), place
    )
    assert row_errors is None and set(votes) == set(expected)
    for path, sums in votes.items():
        assert sums.dtype == jnp.int32
        np.testing.assert_array_equal(sums, expected[path], path)
        assert np.any(expected[path]), path


# -- Direction -------------------------------------------------------------------------------------


def learning(width: int = 16, **es) -> Recipe:
    """A small recipe that learns; other keyword arguments are fields of `es`."""
    fields = {
        "population": 256,
        "segment_length": 4,
        "sigma_shift": 3,
        "votes": "unit",
        "readout": "exact",
        "update": "carry",
        "learning_rate": 1.0,
        "schedule": "inverse",
        **es,
    }
    model = ModelConfig(architecture="rwkv", width=width, layers=1, ffn_multiple=2)
    config = Config(model=model, es=EsConfig(**fields), run=RunConfig(seed=1))
    return presets.resolved(config, VOCABULARY)


def periodic(streams: int, length: int) -> np.ndarray:
    """Streams of 1 2 1 3 1 4 5 5 ..., each from another place: what follows 1 and 5 is memory."""
    text = np.array([1, 2, 1, 3, 1, 4, 5, 5], np.uint16)
    return text[(np.arange(streams)[:, None] + np.arange(length)[None]) % len(text)]


@pytest.mark.parametrize(
    "es, most",
    [
        ({}, 0.25),
        ({"votes": "local", "members_per_stream": 1, "population": 128}, 0.25),
        pytest.param({"votes": "trace"}, 0.8, marks=pytest.mark.slow),
        ({"update": STOCHASTIC, "noise": "gaussian", "rank": 2}, 0.25),
        ({"update": "threshold", "alpha": 0.3}, 0.8),
    ],
)
def test_a_repeated_text_is_learned(es: dict, most: float):
    """Of log2 11 = 3.46 bits little is left; what follows a 1 needs the memory of two tokens."""
    recipe = learning(**es)
    streams, length = recipe.es.streams, recipe.es.segment_length
    text = periodic(streams, 200 * length + 1)
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    for step in range(200):
        state, metrics = compiled(state, text[:, step * length : (step + 1) * length + 1], step)
    bits = -float(np.mean(np.asarray(metrics.scores_P))) / length / 2**16
    assert bits < most


def trained(recipe: Recipe, steps: int) -> evolve.State:
    """A state that has learned some of a structured text: neither fresh nor finished."""
    state, compiled = evolve.initial(recipe), evolve.compiled_step(recipe)
    for step in range(steps):
        state, _ = compiled(state, structured(recipe, step), step)
    return state


def structured(recipe: Recipe, step: int) -> np.ndarray:
    """Tokens of which every second is a function of the one before."""
    random = np.random.default_rng(step)
    shape = recipe.es.streams, recipe.es.segment_length + 1
    tokens = random.integers(1, VOCABULARY, shape)
    tokens[:, 1::2] = tokens[:, :-1:2] * 3 % (VOCABULARY - 1) + 1
    return tokens.astype(np.uint16)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.slow
def test_votes_point_along_the_straight_through_gradient():
    """Segments of one token, where credit through time plays no part: the readout's votes are the
    gradient but for rounding, the others go its way far more than chance would."""
    recipe = learning(population=2048, segment_length=1, learning_rate=0.5, sigma_shift=4)
    state = trained(recipe, 40)
    tokens, clock = structured(recipe, 999), Clock(jnp.uint32(3), jnp.uint32(50))
    pairs_CI = chunks.pairs(recipe.es)
    outcome = jax.jit(functools.partial(population.outcome, recipe))
    votes = outcome(state.weights, state.members, tokens, clock, pairs_CI).votes
    real = functools.partial(params.map_leaves, lambda leaf: leaf.astype(jnp.float32))
    # the first members' states are the population's, with their own histories
    streams = jax.tree.map(lambda leaf: leaf[:, ::2], state.members)
    gradient = jax.grad(lambda *a: -backprop.loss(*a)[0])(
        real(state.network), real(streams), jnp.asarray(tokens)
    )
    cosines = {path: cosine(votes[path], leaf) for path, leaf in params.flatten(gradient)}
    assert cosines["head"] > 0.95, cosines
    assert cosines["layers/channel_value"] > 0.6, cosines
    assert cosines["embedding"] > 0.3, cosines
    assert cosines["layers/channel_key"] > 0.2 and cosines["layers/time_mixing"] > 0.2, cosines


@pytest.mark.slow
def test_local_votes_are_the_gradient_along_the_skip_path():
    """Of every tensor, and of each of the gates, but for rounding and the size of the step."""
    recipe = learning(
        width=64, segment_length=16, learning_rate=0.5, votes="local", members_per_stream=1
    )
    state = trained(recipe, 40)
    outcome = jax.jit(functools.partial(population.outcome, recipe))
    skip = functools.partial(cuts.windowed, cuts.cut_of("skip"))
    gradient = jax.jit(jax.grad(lambda *operands: -skip(*operands)[0]))
    latent, streams = backprop.real(state.network), backprop.real(state.members)
    votes, expected = (dict.fromkeys(state.weights.by_path(), 0.0) for _ in range(2))
    for step in range(999, 1007):
        tokens, clock = structured(recipe, step), Clock(jnp.uint32(3), jnp.uint32(step))
        operands = state.weights, state.members, tokens, clock, chunks.pairs(recipe.es)
        slopes = dict(params.flatten(gradient(latent, streams, tokens.astype(np.int32))))
        for path, sums in outcome(*operands).votes.items():
            votes[path] += np.asarray(sums, np.float64)
            expected[path] += np.asarray(slopes[path], np.float64)
    for each in (votes, expected):
        parts = np.split(each.pop("layers/time_mixing"), 3, axis=1)
        each |= dict(zip(("forget", "candidate", "receptance"), parts, strict=True))
    cosines = {path: cosine(votes[path], expected[path]) for path in votes}
    assert min(cosines.values()) > 0.9, cosines


@pytest.mark.slow
def test_the_twin_is_the_integer_model_number_for_number():
    """Logits and states of `benchmarks/backprop.py` equal those of `rwkv.step`."""
    random = np.random.default_rng(0)
    for most in (20, 127):
        weights = params.map_leaves(
            lambda spec, most=most: jnp.asarray(
                random.integers(-most, most + 1, spec.full_shape).astype(np.int8)
            ),
            rwkv.specs(MODEL, VOCABULARY),
        )
        real = params.map_leaves(lambda leaf: leaf.astype(jnp.float32), weights)
        bare, model = perturb.unperturbed(Parameters(weights)), LanguageModel(MODEL, VOCABULARY)
        state = rwkv.initial_state(MODEL, 5)
        floating = params.map_leaves(lambda leaf: leaf.astype(jnp.float32), state)
        for tokens in random.integers(0, VOCABULARY, (12, 5)).astype(np.int32):
            state, logits, _ = model.step(bare, state, jnp.asarray(tokens))
            floating, same = backprop.step(real, floating, jnp.asarray(tokens))
            np.testing.assert_array_equal(logits, same)
            jax.tree.map(np.testing.assert_array_equal, state, floating)


@pytest.mark.slow
def test_a_cut_lets_credit_reach_just_so_far():
    """`benchmarks/cuts.py`: whole is the twin's gradient; within 1 is a sum over pairs of tokens;
    along the skip path, tensors that write to the stream last have the gradient of the token."""
    random = np.random.default_rng(1)
    latent = params.map_leaves(
        lambda spec: jnp.asarray(random.integers(-40, 41, spec.full_shape), jnp.float32),
        rwkv.specs(MODEL, VOCABULARY),
    )
    state = backprop.real(rwkv.initial_state(MODEL, 5))
    tokens = jnp.asarray(random.integers(1, VOCABULARY, (5, LENGTH + 1)).astype(np.int32))

    def of(name: str) -> dict:
        cut = cuts.cut_of(name)
        gradient = jax.grad(lambda *a: cuts.windowed(cut, *a)[0])(latent, state, tokens)
        return dict(params.flatten(gradient))

    twin = jax.jit(jax.grad(backprop.loss, has_aux=True))
    whole, last = of("whole"), "layers/channel_value"
    for path, leaf in params.flatten(twin(latent, state, tokens)[0]):
        np.testing.assert_allclose(whole[path], leaf, rtol=1e-3, atol=1e-7)
    # the loss of token t alone, from the state before token t - back
    expected = {back: dict.fromkeys(whole, 0.0) for back in (0, 1)}
    states = [state]
    for t in range(LENGTH):
        states.append(twin(latent, states[-1], tokens[:, t : t + 2])[1])
    for back, sums in expected.items():
        for t in range(LENGTH):
            begin = max(0, t - back)
            of_both = twin(latent, states[begin], tokens[:, begin : t + 2])[0]
            for path, leaf in params.flatten(of_both):
                sums[path] = sums[path] + leaf * (t + 1 - begin) / LENGTH
            if begin < t:
                for path, leaf in params.flatten(
                    twin(latent, states[begin], tokens[:, begin : t + 1])[0]
                ):
                    sums[path] = sums[path] - leaf / LENGTH
    for back, name in ((0, "layers"), (1, "within 1")):
        found = of(name)
        for path in found:
            np.testing.assert_allclose(found[path], expected[back][path], rtol=1e-3, atol=1e-7)
    skip = of("skip")
    np.testing.assert_allclose(skip[last][-1], expected[0][last][-1], rtol=1e-3, atol=1e-7)
    assert np.abs(skip["embedding"] - expected[0]["embedding"]).max() > 1e-4
