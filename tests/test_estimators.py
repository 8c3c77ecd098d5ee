"""Trace, unit and exact votes: equal to a reference in NumPy's int64, and rightly directed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from benchmarks import backprop
from int_lm.config import Config, EsConfig, ModelConfig, RunConfig, validate
from int_lm.limits import spare_bits
from int_lm.method import evolve, population
from int_lm.method.estimator import credit as crediting, node, votes
from int_lm.model import params, perturb, rwkv
from int_lm.model.params import Role
from int_lm.model.perturb import Weight

PAIRS, LENGTH, WIDTH, VOCABULARY = 3, 4, 8, 11
MODEL = ModelConfig(architecture="rwkv", width=WIDTH, layers=2, ffn_multiple=2)
NUMBER = 5
PAIR_NUMBERS = np.array([7, 0, 2**20])
of_segment = jax.jit(
    lambda es, members, records, pairs, number: votes.of_segment(
        es, rwkv.specs(MODEL, VOCABULARY), members, records, pairs, number
    ),
    static_argnums=0,
)


# -- Reference -------------------------------------------------------------------------------------


def root_bits(n: int) -> int:
    return oracle.rounded_log2_root(n)


def dithers(length: int, columns: int, bits: int) -> np.ndarray:
    """[T, I, columns]: over the pair, the column and the place in the run."""
    return np.array(
        [
            oracle.dither(int(pair), column, t + NUMBER * length, bits)
            for t in range(length)
            for pair in PAIR_NUMBERS
            for column in range(columns)
        ]
    ).reshape(length, PAIRS, columns)


def narrowed(x: np.ndarray, bits: int, most: int = 127) -> np.ndarray:
    if bits:
        x = (x + dithers(len(x), x.shape[-1], bits)) // 2**bits
    return np.clip(x, -most, most)


def operand(x: np.ndarray, bits: int, spare: int) -> np.ndarray:
    return narrowed(x, bits + spare, 127 // 2**spare)


def level(value: np.ndarray) -> int:
    """floor(log2 of the mean magnitude) from sixteenths, -5 where there is none."""
    rows = 16 * np.abs(value).sum(axis=1) // value.shape[1]
    return int(rows.sum() // len(value)).bit_length() - 5


def shifted(x: np.ndarray, bits: int) -> np.ndarray:
    """x / 2^bits, rounded half up."""
    return (2 * x + 2**bits) // 2 ** (bits + 1) if bits > 0 else x * 2**-bits


def errors_of(logits: np.ndarray, targets: np.ndarray, spare: int) -> np.ndarray:
    noise, scale = dithers(LENGTH, logits.shape[-1], 16), 127 // 2**spare
    rows = [
        oracle.errors(
            logits[t, i].tolist(), int(targets[t, i]), scale, noise[t, i].tolist(), -32767
        )
        for t in range(LENGTH)
        for i in range(PAIRS)
    ]
    return np.array(rows).reshape(logits.shape)


def stream_credit(records: dict, head: np.ndarray, errors: np.ndarray, spare: int) -> np.ndarray:
    bits = 7 - spare + level(head) - crediting.LEVEL
    credit = np.clip(shifted(errors @ head, bits), 1 - 2**13, 2**13 - 1)
    taken = [
        oracle.norm_credit(gain.tolist(), x.tolist(), row.tolist())
        for gain, x, row in zip(
            *(a.reshape(-1, WIDTH) for a in (records["gain"], records["residual"], credit)),
            strict=True,
        )
    ]
    return narrowed(np.array(taken).reshape(credit.shape), 2)


def through(value: np.ndarray, credit: np.ndarray) -> np.ndarray:
    return narrowed(shifted(credit @ value, level(value) + root_bits(len(value)) - 2), 4)


def score(right: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[T, I, R]."""
    product = np.einsum("tin,inr->tir", x, right)
    return np.clip(product // 2 ** (3 + root_bits(x.shape[-1])), -127, 127)


def unit(left, right, x, effect, credit, spare: int) -> np.ndarray:
    """sum of r a x^T over tokens and pairs: [M, N]."""
    B, groups = score(right, x), left.shape[1] // effect.shape[-1]
    total = np.zeros((LENGTH, PAIRS, left.shape[1]), np.int64)
    for r in range(left.shape[-1]):
        scaled = operand(credit * effect * B[..., r : r + 1], node.UNIT_SHIFT, spare)
        total += np.tile(scaled, groups) * left[None, ..., r]
    total = shifted(total, 4 + root_bits(left.shape[-1]))
    most = 127 // 2**spare
    return np.einsum("tim,tin->mn", np.clip(total, -most, most), x)


def trace(left, right, x, difference) -> np.ndarray:
    coefficient = narrowed(difference * score(right, x), 5)
    u = np.einsum("tir,tin->irn", coefficient, x).reshape(1, PAIRS, -1)
    u = narrowed(u, 3 + root_bits(LENGTH)).reshape(PAIRS, right.shape[-1], -1)
    return np.einsum("imr,irn->mn", left, u)


def trace_rows(left, right, tokens, difference, spare: int) -> np.ndarray:
    rows = np.einsum("tir,inr->tin", left[np.arange(PAIRS), tokens], right)
    rows = np.clip(rows // 2 ** (3 + root_bits(left.shape[-1])), -127, 127)
    return operand(difference * rows, 5, spare)


def scattered(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    total = np.zeros((VOCABULARY, rows.shape[-1]), np.int64)
    np.add.at(total, tokens, rows)
    return total


def reference(es: EsConfig, members: dict, records: dict) -> dict[str, np.ndarray]:
    """Votes of every tensor of `rwkv` by path; all arrays int64."""
    spare, found = spare_bits(es), {}
    errors = errors_of(records["logits"], records["targets"], spare)
    inputs, effects = records["inputs"], records["effects"]
    credit = stream_credit(records, members["head"][0], errors, spare)
    difference = narrowed(records["difference"][..., None], 10)
    matrices = ("layers/time_mixing", "layers/channel_key", "layers/channel_value")
    if es.votes == "trace":
        for path in matrices:
            value, left, right = members[path]
            found[path] = np.stack(
                [trace(left[n], right[n], inputs[path][:, n], difference) for n in range(2)]
            )
        _, left, right = members["embedding"]
        rows = trace_rows(left, right, inputs["embedding"], difference, spare)
        found["embedding"] = scattered(inputs["embedding"], rows)
        _, left, right = members["head"]
        found["head"] = trace(left, right, inputs["head"], difference)
    if es.votes == "unit":
        coarse = operand(credit, 0, spare)
        found["embedding"] = scattered(inputs["embedding"], coarse)
        found["layers/channel_value"] = np.stack(
            [np.einsum("tid,tif->df", coarse, inputs[matrices[2]][:, n]) for n in range(2)]
        )
        for path in matrices[:2]:
            layers = []
            for n in range(2):
                value, left, right = (leaf[n] for leaf in members[path])
                of = credit
                if path == "layers/channel_key":
                    of = through(members[matrices[2]][0][n], credit)
                x, effect = inputs[path][:, n], effects[path][:, n]
                layers.append(unit(left, right, x, effect, of, spare))
            found[path] = np.stack(layers)
    if es.readout == "exact":
        found["head"] = np.einsum("tiv,tin->vn", errors, inputs["head"])
    return found


# -- Exactness -------------------------------------------------------------------------------------


def segment(es: EsConfig, seed: int, extreme: bool) -> tuple[dict, dict]:
    """Members and records at random, or all at the ends of their ranges; int64."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, most: int = 127) -> np.ndarray:
        if extreme:
            return random.choice([-most, most], shape)
        return random.integers(-most, most + 1, shape)

    most = 16 if es.noise == "rademacher" else 69
    members, inputs, effects = {}, {}, {}
    for path, spec in params.flatten(rwkv.specs(MODEL, VOCABULARY)):
        stacked = (spec.layers,) if spec.layers else ()
        outputs, width = spec.shape
        members[path] = (
            draw(*stacked, outputs, width, most=127 if extreme else 40),
            draw(*stacked, PAIRS, outputs, es.rank, most=most),
            draw(*stacked, PAIRS, width, es.rank, most=most),
        )
        if spec.role is Role.EMBEDDING:
            inputs[path] = random.integers(0, VOCABULARY, (LENGTH, PAIRS))
            continue
        inputs[path] = draw(LENGTH, *stacked, PAIRS, width)
        if spec.role is Role.MATRIX:
            effect = WIDTH if "time" in path else outputs
            effects[path] = draw(LENGTH, *stacked, PAIRS, effect, most=127 if extreme else 12)
    logits = draw(LENGTH, PAIRS, VOCABULARY, most=32767 if extreme else 90)
    logits[0] = 0
    return members, {
        "inputs": inputs,
        "effects": effects,
        "difference": draw(LENGTH, PAIRS, most=2**21 if extreme else 2**17),
        "logits": logits,
        "targets": random.integers(0, VOCABULARY, (LENGTH, PAIRS)),
        "residual": draw(LENGTH, PAIRS, WIDTH),
        "gain": np.full((LENGTH, PAIRS, WIDTH), 127 if extreme else 16),
    }


@pytest.mark.parametrize(
    "voting, readout", [("trace", "perturbed"), ("trace", "exact"), ("unit", "exact")]
)
@pytest.mark.parametrize("noise, rank", [("rademacher", 1), ("gaussian", 3)])
@pytest.mark.parametrize("population_size", [512, 2**20])
@pytest.mark.parametrize("extreme", [False, True])
def test_votes_equal_the_reference(
    voting: str, readout: str, noise: str, rank: int, population_size: int, extreme: bool
):
    """Every tensor; both noises, several ranks, spare bits or none, and the ends of all ranges."""
    es = EsConfig(
        population=population_size,
        segment_length=16,
        votes=voting,  # type: ignore[arg-type]
        readout=readout,  # type: ignore[arg-type]
        noise=noise,  # type: ignore[arg-type]
        rank=rank,
    )
    assert (spare_bits(es) > 0) == (population_size > 512)
    members, records = segment(es, rank, extreme)
    int8 = functools.partial(np.asarray, dtype=np.int8)
    tree = params.unflatten(
        {
            path: Weight(*(jnp.asarray(int8(leaf)) for leaf in leaves), shift=7)
            for path, leaves in members.items()
        }
    )
    matrices = {path: int8(x) for path, x in records["inputs"].items() if path != "embedding"}
    kept = votes.Record(
        inputs=jax.tree.map(
            jnp.asarray,
            matrices | {"embedding": records["inputs"]["embedding"].astype(np.int32)},
        ),
        effects={path: jnp.asarray(int8(x)) for path, x in records["effects"].items()},
        difference_I=jnp.asarray(records["difference"].astype(np.int32)),
        logits_IV=jnp.asarray(records["logits"].astype(np.int16)),
        targets_I=jnp.asarray(records["targets"].astype(np.int32)),
        residual_ID=jnp.asarray(int8(records["residual"])),
        gain_ID=jnp.asarray(records["gain"].astype(np.int32)),
    )
    ballots, readings = of_segment(
        es, tree, kept, jnp.asarray(PAIR_NUMBERS.astype(np.int32)), jnp.uint32(NUMBER)
    )
    expected = reference(es, members, records)
    assert readings is None and set(ballots) == set(expected)
    for path, ballot in ballots.items():
        assert ballot.dtype == jnp.int32
        np.testing.assert_array_equal(ballot, expected[path], path)
        assert np.any(expected[path]), path


# -- Direction -------------------------------------------------------------------------------------


def recipe(**es) -> Config:
    fields = {
        "population": 256,
        "segment_length": 4,
        "sigma_shift": 3,
        "votes": "unit",
        "readout": "exact",
        "update": "carry",
        "learning_rate": 1.0,
        **es,
    }
    model = ModelConfig(architecture="rwkv", width=16, layers=1, ffn_multiple=2)
    return validate(Config(model=model, es=EsConfig(**fields), run=RunConfig(seed=1)))


def periodic(streams: int, length: int) -> np.ndarray:
    """Streams of 1 2 1 3 1 4 5 5 ..., each from another place: what follows 1 and 5 is memory."""
    text = np.array([1, 2, 1, 3, 1, 4, 5, 5], np.uint16)
    return text[(np.arange(streams)[:, None] + np.arange(length)[None]) % len(text)]


@pytest.mark.parametrize(
    "es, most",
    [
        ({}, 0.25),
        ({"votes": "trace"}, 0.8),
        ({"update": "stochastic"}, 0.25),
        ({"update": "threshold", "alpha": 0.3}, 0.8),
        ({"noise": "gaussian", "rank": 2, "vote_clip": 1.0}, 0.25),
    ],
)
def test_a_repeated_text_is_learned(es: dict, most: float):
    """Of log2 11 = 3.46 bits little is left; what follows a 1 needs the memory of two tokens."""
    config = recipe(**es)
    streams, length = config.es.population // 2, config.es.segment_length
    text = periodic(streams, 200 * length + 1)
    state, step = evolve.initial(config, VOCABULARY), evolve.compiled_step(config, VOCABULARY)
    for number in range(200):
        state, metrics = step(state, text[:, number * length : (number + 1) * length + 1], number)
    bits = -float(np.mean(np.asarray(metrics.scores_P))) / length / 2**16
    assert bits < most


def trained(config: Config, steps: int) -> evolve.State:
    """A state that has learned some of a structured text: neither fresh nor finished."""
    state, step = evolve.initial(config, VOCABULARY), evolve.compiled_step(config, VOCABULARY)
    for number in range(steps):
        state, _ = step(state, structured(config, number), number)
    return state


def structured(config: Config, number: int) -> np.ndarray:
    """Tokens of which every second is a function of the one before."""
    random = np.random.default_rng(number)
    shape = config.es.population // 2, config.es.segment_length + 1
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
    config = recipe(population=2048, segment_length=1, learning_rate=0.5, sigma_shift=4)
    state = trained(config, 40)
    tokens = structured(config, 999)
    specs = evolve.specs_of(config, VOCABULARY)
    _, _, ballots, _ = jax.jit(
        lambda weights, members, tokens: population.scores(
            config,
            specs,
            weights,
            members,
            tokens,
            jnp.uint32(3),
            jnp.uint32(50),
            population.all_chunks(config.es),
        )
    )(state.weights, state.members, tokens)
    real = functools.partial(params.map_leaves, lambda leaf: leaf.astype(jnp.float32))
    # the first members' states are the population's, with their own histories
    streams = jax.tree.map(lambda leaf: leaf[:, ::2], state.members)
    gradient = jax.grad(lambda *a: -backprop.loss(*a)[0])(
        real(state.weights), real(streams), jnp.asarray(tokens)
    )
    cosines = {path: cosine(ballots[path], leaf) for path, leaf in params.flatten(gradient)}
    assert cosines["head"] > 0.95, cosines
    assert cosines["layers/channel_value"] > 0.6, cosines
    assert cosines["embedding"] > 0.3, cosines
    assert cosines["layers/channel_key"] > 0.2 and cosines["layers/time_mixing"] > 0.2, cosines


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
        state = rwkv.initial_state(MODEL, 5)
        floating = params.map_leaves(lambda leaf: leaf.astype(jnp.float32), state)
        for tokens in random.integers(0, VOCABULARY, (12, 5)).astype(np.int32):
            state, logits, _ = rwkv.step(perturb.unperturbed(weights), state, jnp.asarray(tokens))
            floating, same = backprop.step(real, floating, jnp.asarray(tokens))
            np.testing.assert_array_equal(logits, same)
            jax.tree.map(np.testing.assert_array_equal, state, floating)
