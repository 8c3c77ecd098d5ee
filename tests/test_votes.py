"""Fitness, plain votes and thresholds: equal to the oracle, exact at bounds, rightly directed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import limits
from int_lm.arithmetic import noise
from int_lm.config import Config, EsConfig
from int_lm.limits import FITNESS_MAX, INT32_MAX, LOG2_FRACTION_BITS, WORST_BITS_PER_TOKEN
from int_lm.method import estimator, fitness
from int_lm.method.estimator import eggroll
from int_lm.method.objective.log_likelihood import LOG_LIKELIHOOD
from int_lm.method.update import threshold
from int_lm.model.params import Role

KINDS = ["rademacher", "gaussian"]
FITNESSES = ["sign", "linear"]
LONGEST = INT32_MAX // (WORST_BITS_PER_TOKEN << LOG2_FRACTION_BITS)  # segment_length at its bound
plain_votes = jax.jit(eggroll.votes, static_argnums=0)
by_fitness = jax.jit(threshold.by_fitness, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=0)
def fitness_of(es: EsConfig, scores_P: jax.Array) -> jax.Array:
    """`fitness.fitness` of log-likelihoods."""
    return fitness.fitness(es, scores_P, LOG_LIKELIHOOD.score_max(es))


@functools.partial(jax.jit, static_argnames=("kind", "pairs", "size"))
def draw(kind: str, seed: int, pairs: int, size: int):
    """int8 [pairs, size]."""
    key = noise.tensor_key(jnp.uint32(seed), jnp.uint32(0), jnp.uint32(0))
    return noise.draw(kind, key, jnp.arange(pairs, dtype=jnp.int32), size)


def factors(es: EsConfig, pairs: int, outputs: int, inputs: int):
    """A [I, M, R] and B [I, N, R]."""
    left = draw(es.noise, 1, pairs, outputs * es.rank).reshape(pairs, outputs, es.rank)
    return left, draw(es.noise, 2, pairs, inputs * es.rank).reshape(pairs, inputs, es.rank)


def most_pairs(es: EsConfig) -> int:
    """The largest number of pairs whose votes `recipe.of` allows."""
    return INT32_MAX // (es.rank * limits.noise_max(es) ** 2 * FITNESS_MAX[es.fitness])


# -- Fitness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FITNESSES)
@pytest.mark.parametrize("segment_length", [5, LONGEST])
def test_fitness_equals_the_oracle(kind: str, segment_length: int):
    """Random scores, ties, a single pair, and scores as far apart as there are."""
    es = EsConfig(fitness=kind, segment_length=segment_length)
    worst = segment_length * WORST_BITS_PER_TOKEN << LOG2_FRACTION_BITS
    random = np.random.default_rng(segment_length)
    populations = [
        [0, 0],
        [0, -1],
        [-worst, 0],
        [0, -worst] * 40,
        [0, -worst] + [-5, -5] * 30,
        [-7, -7] * 4,
        random.integers(-worst, 1, 64).tolist(),
        random.integers(-9, 1, 64).tolist(),
        [int(-n) for n in random.exponential(worst / 60, 64)],
    ]
    for scores in populations:
        result = fitness_of(es, jnp.array(scores, jnp.int32))
        assert result.dtype == jnp.int8
        assert result.tolist() == oracle.fitness(es, scores)
        assert np.abs(result).max() <= FITNESS_MAX[kind]


def test_fitness_reaches_its_stated_maximum_and_its_mean_level():
    """One pair far from the rest gets 7 levels; pairs at the mean magnitude get 3; ties get 0."""
    linear = EsConfig(fitness="linear")
    lone = fitness_of(linear, jnp.array([-900, 0] + [-1, -1] * 9, jnp.int32)).tolist()
    assert lone == [-FITNESS_MAX["linear"]] + [0] * 9
    even = jnp.array([0, -(2**20), -(2**20), 0], jnp.int32)
    assert fitness_of(linear, even).tolist() == [3, -3]
    assert fitness_of(EsConfig(fitness="sign"), even).tolist() == [FITNESS_MAX["sign"], -1]


def test_linear_fitness_is_exact_for_the_largest_population():
    """The longest segment, the most pairs, every difference at its worst: still the mean level."""
    es = EsConfig(fitness="linear", segment_length=LONGEST)
    worst = LONGEST * WORST_BITS_PER_TOKEN << LOG2_FRACTION_BITS
    scores = jnp.tile(jnp.array([0, -worst], jnp.int32), most_pairs(es))
    assert np.unique(np.asarray(fitness_of(es, scores))).tolist() == [3]


# -- Votes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("levels", FITNESSES)
def test_votes_equal_explicit_sums_of_outer_products(kind: str, rank: int, levels: str):
    """Matrices and vectors, alone and with a leading layer axis."""
    es, pairs = EsConfig(noise=kind, rank=rank, fitness=levels), 7
    most = FITNESS_MAX[levels]
    fitnesses = np.random.default_rng(rank).integers(-most, most + 1, pairs)
    fitnesses[:3] = most, -most, 0
    fitness_I = jnp.asarray(fitnesses.astype(np.int8))
    left, right = factors(es, pairs, 4, 5)
    expected = oracle.matrix_votes(
        list(zip(left.tolist(), right.tolist(), strict=True)), fitnesses.tolist()
    )
    matrix = plain_votes(es, (left, right), fitness_I)
    assert matrix.dtype == jnp.int32 and matrix.tolist() == expected
    layers = plain_votes(es, (jnp.stack([left, -left]), jnp.stack([right, right])), fitness_I)
    assert layers.tolist() == [expected, (-np.array(expected)).tolist()]
    vectors = left[..., 0]
    flat = oracle.vector_votes(vectors.tolist(), fitnesses.tolist())
    assert plain_votes(es, (vectors, None), fitness_I).tolist() == flat
    stacked = plain_votes(es, (jnp.stack([vectors, -vectors]), None), fitness_I)
    assert stacked.dtype == jnp.int32
    assert stacked.tolist() == [flat, [-vote for vote in flat]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", FITNESSES)
def test_votes_are_exact_for_the_largest_population_that_config_allows(kind: str, levels: str):
    """I R max|A| max|B| max|f| < 2^31, the bound of `recipe.of`, reached without a wrap."""
    es = EsConfig(noise=kind, fitness=levels, rank=3)
    pairs, most = most_pairs(es), limits.noise_max(es)
    assert FITNESS_MAX[levels] * most <= 127 or kind == "gaussian"
    fitness_I = jnp.full((pairs,), -FITNESS_MAX[levels], jnp.int8)
    full = jnp.full((pairs, 1, 3), most, jnp.int8)
    expected = -pairs * 3 * most**2 * FITNESS_MAX[levels]
    assert INT32_MAX + expected < 3 * most**2 * FITNESS_MAX[levels]
    assert plain_votes(es, (full, full), fitness_I).tolist() == [[expected]]


def test_a_tied_pair_votes_for_nothing():
    """Its perturbation leaves Z unchanged, and where all pairs tie Z is 0 and no weight moves."""
    es = EsConfig(rank=2)
    left, right = factors(es, 4, 6, 6)
    scores = jnp.array([-5, -9, -4, -4, -8, -2, -3, -3], jnp.int32)
    fitness_I = fitness_of(es, scores)
    assert fitness_I.tolist() == [1, 0, -1, 0]
    decided = jnp.array([0, 2])
    np.testing.assert_array_equal(
        plain_votes(es, (left, right), fitness_I),
        plain_votes(es, (left[decided], right[decided]), fitness_I[decided]),
    )
    tied = fitness_of(es, jnp.full(8, -77, jnp.int32))
    votes = plain_votes(es, (left, right), tied)
    assert not np.any(votes)
    weight = draw("gaussian", 3, 6, 6)
    for role in (Role.MATRIX, Role.VECTOR):
        moved = by_fitness(role, 2, weight, votes, tied, jnp.int32(0))
        np.testing.assert_array_equal(moved, weight)


@pytest.mark.parametrize(
    "voting, readout, expected",
    [
        ("eggroll", "perturbed", ("eggroll",) * 4),
        ("eggroll", "exact", ("eggroll", "eggroll", "exact", "eggroll")),
        ("trace", "perturbed", ("trace",) * 4),
        ("trace", "exact", ("trace", "trace", "exact", "trace")),
        ("unit", "exact", ("unit", "unit", "exact", "unit")),
        ("local", "exact", ("local", "local", "exact", "local")),
    ],
)
def test_every_role_has_its_estimator(voting: str, readout: str, expected: tuple[str, ...]):
    """As `votes` and `readout` say; vectors always take the plain one, context tables none.

    Members perturb what is voted on, but where the votes are exact along the skip path.
    """
    es = EsConfig(votes=voting, readout=readout)  # type: ignore[arg-type]
    estimators = estimator.choose(es)
    roles = (Role.MATRIX, Role.PROJECTION, Role.READOUT, Role.EMBEDDING)
    for role, name in zip((*roles, Role.VECTOR), (*expected, "eggroll"), strict=True):
        assert estimator.votes_on(estimators, role) is estimator.get(name)
    for role, name in zip(roles, expected, strict=True):
        bare = name in ("exact", "local") or (name == "unit" and role is not Role.MATRIX)
        assert (role in estimator.votes_on(estimators, role).perturbed) == (not bare)
    assert not any(Role.TABLE in chosen.roles for chosen in estimators)


# -- Update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "rank"), [(Role.MATRIX, 1), (Role.VECTOR, 1), *((role, 3) for role in Role)]
)
@pytest.mark.parametrize("z", [0, 1, 700, 1024, 2**13 - 1])
def test_threshold_equals_the_oracle(role: Role, rank: int, z: int):
    """Votes around the limit on both sides, of weights at 0, +-126 and +-127."""
    kind = "vector" if role is Role.VECTOR else "matrix"
    es, fitnesses = EsConfig(rank=rank), [3, -1, 0, 7, -7, 2, 1]
    limit = oracle.vote_limit(kind, es, fitnesses, z)
    around = [0, 1, limit - 1, limit, limit + 1, limit + 300, INT32_MAX]
    votes = [vote * sign for vote in around for sign in (1, -1)]
    weights = [-127, -126, 0, 126, 127]
    moved = by_fitness(
        role,
        rank,
        jnp.array([weights] * len(votes), jnp.int8),
        jnp.array([[vote] * 5 for vote in votes], jnp.int32),
        jnp.array(fitnesses, jnp.int8),
        jnp.int32(z),
    )
    assert moved.dtype == jnp.int8
    assert moved.tolist() == [[oracle.moved(w, v, limit) for w in weights] for v in votes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", FITNESSES)
def test_threshold_is_right_for_the_largest_population_that_config_allows(kind: str, levels: str):
    """The sum of squared fitness fits: votes 1 % below the limit stay, 1 % above move."""
    es = EsConfig(noise=kind, fitness=levels)
    pairs, z = most_pairs(es), 2**13 - 1
    fitness_I = jnp.full((pairs,), FITNESS_MAX[levels], jnp.int8)
    for role, deviation in ((Role.MATRIX, 256), (Role.VECTOR, 16)):
        limit = z / 1024 * deviation * FITNESS_MAX[levels] * pairs**0.5
        votes = jnp.array([int(limit * 0.99), int(limit * 1.01), -int(limit * 1.01)], jnp.int32)
        moved = by_fitness(role, 1, jnp.zeros(3, jnp.int8), votes, fitness_I, jnp.int32(z))
        assert moved.tolist() == [0, 1, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank, levels", [(1, "sign"), (3, "linear")])
def test_a_share_alpha_of_pure_noise_votes_moves_its_weight(kind: str, rank: int, levels: str):
    """Fitness that knows nothing of the perturbations moves about alpha of the weights."""
    es = EsConfig(noise=kind, rank=rank, fitness=levels, alpha=0.2)
    scores = np.random.default_rng(7).integers(-(2**20), 0, 1024).astype(np.int32)
    fitness_I = fitness_of(es, jnp.asarray(scores))
    z = jnp.int32(threshold.vote_threshold(Config(es=es), 0))
    left, right = factors(es, 512, 64, 64)
    moved = by_fitness(
        Role.MATRIX,
        rank,
        jnp.zeros((64, 64), jnp.int8),
        plain_votes(es, (left, right), fitness_I),
        fitness_I,
        z,
    )
    assert abs(float(np.mean(np.asarray(moved) != 0)) - 0.2) < 0.04
    vectors = draw(kind, 5, 512, 4096)
    votes = plain_votes(es, (vectors, None), fitness_I)
    moved = by_fitness(Role.VECTOR, rank, jnp.zeros(4096, jnp.int8), votes, fitness_I, z)
    assert abs(float(np.mean(np.asarray(moved) != 0)) - 0.2) < 0.04


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_weights_follow_the_one_member_that_scores(kind: str, rank: int):
    """Fitness that prefers one member's direction moves every weight along its A B^T."""
    es = EsConfig(noise=kind, rank=rank)
    left, right = factors(es, 4, 5, 6)
    weight = jnp.zeros((5, 6), jnp.int8)
    for preferred in range(8):
        scores = [-50] * 8
        scores[preferred] = -40
        fitness_I = fitness_of(es, jnp.array(scores, jnp.int32))
        votes = plain_votes(es, (left, right), fitness_I)
        moved = by_fitness(Role.MATRIX, rank, weight, votes, fitness_I, jnp.int32(0))
        pair = preferred // 2
        direction = np.array(left[pair], np.int32) @ np.array(right[pair], np.int32).T
        np.testing.assert_array_equal(moved, np.sign(direction) * (1 - 2 * (preferred % 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank, levels", [(1, "sign"), (3, "linear")])
def test_a_planted_direction_is_followed(kind: str, rank: int, levels: str):
    """Scores that grow along a hidden direction G move the weights along G."""
    es = EsConfig(noise=kind, rank=rank, fitness=levels, alpha=0.3)
    left, right = factors(es, 512, 8, 8)
    hidden = np.random.default_rng(3).choice([-1, 1], (8, 8))
    along = np.einsum("imr,inr,mn->i", *(np.asarray(n, np.int32) for n in (left, right)), hidden)
    scores = np.stack([along, -along], axis=1).reshape(-1) - 2**20
    fitness_I = fitness_of(es, jnp.asarray(scores.astype(np.int32)))
    votes = plain_votes(es, (left, right), fitness_I)
    z = jnp.int32(threshold.vote_threshold(Config(es=es), 0))
    moved = np.asarray(
        by_fitness(Role.MATRIX, rank, jnp.zeros((8, 8), jnp.int8), votes, fitness_I, z)
    )
    assert np.sum(moved == hidden) > 40 and np.sum(moved == -hidden) <= 2
