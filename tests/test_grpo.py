"""GRPO of the benchmarks: what it writes, how likely it says that is, what it learns from it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, RunCommand

import tokenization
from benchmarks import backprop, grpo
from int_lm import sample, tasks
from int_lm.config import ModelConfig
from int_lm.measure import evaluate
from int_lm.model import params, rwkv
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Tree
from int_lm.runtime import Sampler
from int_lm.tasks import Example
from int_lm.tune.prompts import Coder

SETTINGS = ModelConfig(architecture="rwkv", width=8, layers=1, ffn_multiple=1)
LENGTH = 5
EXAMPLES = [Example("ab;", {"answer": "ab"}), Example("cdefg;", {"answer": "cdefg"})]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A small `rwkv` over bytes."""
    return LanguageModel(SETTINGS, 256)


@pytest.fixture(scope="module")
def weights() -> Parameters:
    """Random int8 weights."""
    random = np.random.default_rng(0)

    def leaf(spec: params.Spec) -> np.ndarray:
        return random.integers(-40, 41, spec.full_shape).astype(np.int8)

    return Parameters(params.map_leaves(leaf, rwkv.specs(SETTINGS, 256)))


@pytest.fixture(scope="module")
def coder() -> Coder:
    """Bytes; a line end ends a completion."""
    return Coder(tokenization.load("bytes"), "\n", most=9)


def real(weights: Parameters) -> Tree:
    """Weights in floats."""
    return backprop.real(params.map_leaves(jnp.asarray, weights.network))


def prompts_of(coder: Coder) -> jax.Array:
    """The prompts of the examples."""
    return jnp.asarray(coder.batch(EXAMPLES).tokens_SN)


def write(model: LanguageModel, weights: Tree, coder: Coder, key) -> grpo.Written:
    """Four completions, two of each example."""
    prompts, start = prompts_of(coder), backprop.real(model.initial_state(2))
    return grpo.write(weights, start, prompts, 2, jnp.asarray(coder.ends_V), LENGTH, key)


def test_the_likeliest_completion_is_that_of_the_integer_model(model, weights, coder) -> None:
    """Token for token."""
    written = np.asarray(write(model, real(weights), coder, None).tokens_BC)[::2]
    for example, row in zip(EXAMPLES, written, strict=True):
        prompt, greedy = example.prompt.encode(), Sampler(temperature=0)
        expected = list(sample.generate(model, weights, list(prompt), greedy, tokens=LENGTH))
        assert row[: len(expected)].tolist() == expected


def test_bits_are_those_of_the_integer_model(model, weights) -> None:
    """To the precision of its tables."""
    texts = [b"ab;ab\n", b"sorted", b"x"]
    ids = [np.frombuffer(text, np.uint8) for text in texts]
    read = evaluate.evaluate(model, weights, ids, [len(text) for text in texts])
    assert grpo.bits_per_token(model, weights, ids) == pytest.approx(
        read.bits / int(read.tokens.sum()), abs=2e-4
    )


@pytest.mark.slow
def test_the_gradient_is_that_of_rewarded_log_likelihood(model, weights, coder) -> None:
    """Where nothing has moved yet, by the tokens that were drawn up to each end.

    The log-probability with which a token was drawn is that which is found in reading it.
    """
    latent = real(weights)
    written = write(model, latent, coder, jax.random.key(3))
    tokens = np.asarray(written.tokens_BC).copy()
    tokens[1, -3:] = [10, 0, 0]
    counts = np.ones((4, LENGTH), bool)
    counts[1, -2:] = False
    prompts, start = prompts_of(coder), backprop.real(model.initial_state(2))
    rounded = jax.tree.map(backprop.rounded, latent)
    nats = grpo.log_probabilities(rounded, start, prompts, jnp.asarray(tokens))
    same = np.arange(4) != 1
    np.testing.assert_allclose(nats[same], np.asarray(written.drawn_BC)[same], atol=1e-4)
    changed = grpo.Written(jnp.asarray(tokens), nats, jnp.asarray(counts))
    gains = jnp.asarray([1.0, -1.0, 0.5, 0.0])

    def rewarded(latent: Tree):
        weights = jax.tree.map(backprop.rounded, latent)
        prompted = jnp.repeat(prompts, 2, axis=0)  # every completion with a prompt of its own
        start = backprop.real(model.initial_state(4))
        nats = grpo.log_probabilities(weights, start, prompted, jnp.asarray(tokens))
        return -jnp.sum(nats * counts.astype(np.float32) * gains[:, None])

    settings = grpo.Settings(kl=0.0)
    found = jax.grad(grpo.loss)(rounded, start, prompts, changed, gains, None, settings)
    expected = jax.grad(rewarded)(latent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-4


def test_the_ratio_is_clipped_and_the_start_holds_back(model, weights, coder) -> None:
    """The loss of tokens that became e^0.5 times likelier, by hand."""
    latent = real(weights)
    prompts, start = prompts_of(coder), backprop.real(model.initial_state(2))
    written = write(model, latent, coder, jax.random.key(3))
    nats = grpo.log_probabilities(latent, start, prompts, written.tokens_BC)
    counts = jnp.ones((4, LENGTH), bool)
    likelier = grpo.Written(written.tokens_BC, nats - 0.5, counts)
    gains = jnp.asarray([1.0, 1.0, 1.0, -1.0])
    ratio = math.exp(0.5)
    settings = grpo.Settings(low=0.2, high=0.28, kl=0.0)
    found = grpo.loss(latent, start, prompts, likelier, gains, None, settings)
    assert float(found) == pytest.approx(LENGTH * (-3 * 1.28 + ratio), rel=1e-4)
    settings = grpo.Settings(low=0.2, high=0.28, kl=0.1)
    held = grpo.loss(latent, start, prompts, likelier, gains, nats + 1.0, settings)
    assert float(held - found) == pytest.approx(LENGTH * 4 * 0.1 * (math.e - 2), rel=1e-3)


def test_advantages_are_of_a_group() -> None:
    """Mean 0 and deviation 1 in each; a group whose rewards are the same has none."""
    found = grpo.advantages(np.array([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]]))
    np.testing.assert_allclose(found, [[1, -1, -1, 1], [0, 0, 0, 0]], atol=1e-3)


@pytest.mark.slow
def test_what_is_rewarded_becomes_likelier(model, weights) -> None:
    """A reward for one letter: a few steps, and completions are full of it."""
    pytest.importorskip("optax")

    def reward(prompt: str, completion: str, facts) -> float:
        return completion.count("e") / LENGTH

    task = tasks.of("copying")._replace(reward=reward)
    settings = grpo.Settings(prompts=4, completions=32, tokens=LENGTH, learning_rate=1.0)
    flat = Parameters(weights.network | {"head": np.zeros_like(weights.network["head"])})
    tuner = grpo.Grpo(model, flat, task, tokenization.load("bytes"), settings, seed=1)
    before = tuner.latent
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as optax needs
        tuner.compile(EXAMPLES * 2)
        assert tuner.latent is before
        means = [tuner.step(EXAMPLES * 2) for _ in range(80)]
    assert np.mean(means[:5]) < 0.1 < 0.5 < np.mean(means[-5:])
    assert tuner.answers(EXAMPLES).tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_chunks_change_no_step(model, weights) -> None:
    """Groups are cut to lengths, sorted and filled up; the step is the same as in one piece."""
    pytest.importorskip("optax")

    def reward(prompt: str, completion: str, facts) -> float:
        return len(completion) + ord(completion[:1] or "a") % 2

    task = tasks.of("copying")._replace(reward=reward)
    bytes_ = tokenization.load("bytes")
    found = []
    for chunk in (1, 3, 4):
        settings = grpo.Settings(prompts=4, completions=16, tokens=LENGTH, chunk=chunk)
        tuner = grpo.Grpo(model, weights, task, bytes_, settings, seed=1)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tuner.step([*EXAMPLES, *EXAMPLES])
        found.append(tuner.latent)
    for other in found[1:]:
        apart = jax.tree.map(lambda a, b: float(np.abs(a - b).mean()), found[0], other)
        assert max(jax.tree.leaves(apart)) < 1e-4  # a weight moves by 0.02
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found[0], real(weights))
    assert max(jax.tree.leaves(moved)) > 0.01


@pytest.mark.slow
def test_a_task_named_in_full_is_tuned(whole, run_command: RunCommand) -> None:
    """`benchmarks/rewards.py --task module:NAME`: what the user names is trusted, here and in
    `int_lm.tune`."""
    small = "--es.population 8 --es.members_per_stream 4 --reward.tokens 4"
    flags = ["--task", "plugins.parity:PARITY", "--method", "ours", "--seconds", "1"]
    flags += ["--prompts", "8", f"--ours={small}", "--json"]
    here = {"PYTHONPATH": str(ROOT / "tests")}
    done = run_command("benchmarks/rewards.py", "--run", str(whole[0]), *flags, env=here)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["task"], row["prompts"]) == ("parity", 8) and row["steps"] > 0
