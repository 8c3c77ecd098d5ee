"""GRPO on the float twin of an int8 `rwkv` model: the baseline of `benchmarks/rewards.py`.

Group relative policy optimisation (Shao et al., arXiv 2402.03300), by back-propagation through the
twin (benchmarks/backprop.py): it begins with the weights of an int8 run, its forward pass computes
the integer model's numbers, and its result is an int8 model again.

    step    Q prompts, G completions of each, drawn from the policy at temperature 1
            advantage  A = (reward - mean of the group) / (deviation of the group + epsilon)
            ratio      r = p(token) / p(token when it was drawn)
            loss       mean over tokens of  -min(r A, clip(r, 1 - low, 1 + high) A)
                       + kl (p0/p - 1 - log p0/p)              p0: the start weights
            Adam, `updates` times on the same completions

The mean is over the tokens of all completions, and the clip is wider above than below, as in DAPO
(Yu et al., arXiv 2503.14476). Groups whose rewards are all the same have no say: they are left out,
as there. A prompt is read once for all its completions, forwards and backwards, and gradients are
computed in chunks of groups, sorted by length, so that few tokens are read that do not count.

Axes: Q prompts, B = Q G completions of a step, N tokens of a prompt, C of a completion, V
vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import backprop
from int_lm.arithmetic import constants
from int_lm.config import RewardConfig
from int_lm.limits import SEPARATOR
from int_lm.model import params
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters, Tree
from int_lm.tasks import Example, Task
from int_lm.tune.prompts import Coder

EPSILON = 1e-4  # of a group's standard deviation


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of GRPO. Learning rate in units of 1/16, as weights; all others without units.

    With `rounding` the policy that writes and learns has rounded weights: one moves once its latent
    value has gone half a unit. Without it the weights stay real until the end. What is said of the
    held-out prompts is always said of the rounded weights.
    """

    prompts: int = 16  # Q
    completions: int = 16  # G
    updates: int = 1
    learning_rate: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.99
    low: float = 0.2
    high: float = 0.28
    kl: float = 0.0
    tokens: int = 32  # C
    rounding: int = 0  # 1: with
    chunk: int = 8  # groups whose gradient is computed at once


class Written(NamedTuple):
    """Completions: their tokens, the log-probability with which each was drawn, in nats, and
    whether it belongs to the completion (its end does), all [B, C]; G of each prompt in turn.
    """

    tokens_BC: Array
    drawn_BC: Array
    counts_BC: Array


def _nats(logits_BV: Array) -> Array:
    """Log-probabilities, in nats, of logits in units of 1/16 bit.

    As in the integer model (int_lm/model/likelihood.py), a logit that is further below the largest
    than its tables reach counts as being so far below.
    """
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    return jax.nn.log_softmax(jnp.maximum(below_BV, -constants.DISTANCE_MAX) * (math.log(2) / 16))


def _of(values_BV: Array, tokens_B: Array) -> Array:
    return jnp.take_along_axis(values_BV, tokens_B[:, None], axis=-1)[:, 0]


def _read(weights: Tree, start: Tree, prompts_QN: Array, count: int) -> tuple[Tree, Array]:
    """The state before the last token of each prompt, and this token, for `count` completions."""

    def read(state: Tree, token_Q: Array) -> tuple[Tree, None]:
        return backprop.step(weights, state, token_Q)[0], None

    state, _ = jax.lax.scan(read, start, prompts_QN[:, :-1].T)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=1), state)
    return repeated, jnp.repeat(prompts_QN[:, -1], count)


def write(
    weights: Tree,
    start: Tree,
    prompts_QN: Array,
    count: int,
    ends_V: Array,
    length: int,
    key: Array | None,
) -> Written:
    """Write completions of `length` tokens at most: drawn, or the likeliest if `key` is None.

    Args:
      weights: float32. start: the state at a document's start, Q streams.
      count: completions of each prompt.
    """

    def add(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        index, state, token_B, done_B, (tokens_CB, nats_CB, counts_CB) = carry
        state, logits_BV = backprop.step(weights, state, token_B)
        nats_BV = _nats(logits_BV)
        if key is None:
            token_B = jnp.argmax(logits_BV, axis=-1)
        else:
            token_B = jax.random.categorical(jax.random.fold_in(key, index), nats_BV)
        token_B = jnp.where(done_B, SEPARATOR, token_B.astype(jnp.int32))
        written = (
            tokens_CB.at[index].set(token_B),
            nats_CB.at[index].set(_of(nats_BV, token_B)),
            counts_CB.at[index].set(~done_B),
        )
        return index + 1, state, token_B, done_B | ends_V[token_B], written

    def unfinished(carry: tuple[Any, ...]) -> Array:
        return (carry[0] < length) & ~jnp.all(carry[3])

    state, last_B = _read(weights, start, prompts_QN, count)
    shape = length, len(last_B)
    empty = (jnp.full(shape, SEPARATOR, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool))
    carry = jnp.int32(0), state, last_B, jnp.zeros(shape[1:], bool), empty
    return Written(*(leaf.T for leaf in jax.lax.while_loop(unfinished, add, carry)[-1]))


def log_probabilities(weights: Tree, start: Tree, prompts_QN: Array, tokens_BC: Array) -> Array:
    """Nats of each token of completions, given those before it: [B, C]."""

    def read(carry: tuple[Tree, Array], token_B: Array) -> tuple[tuple[Tree, Array], Array]:
        state, logits_BV = backprop.step(weights, *carry)
        return (state, token_B), _of(_nats(logits_BV), token_B)

    carry = _read(weights, start, prompts_QN, len(tokens_BC) // len(prompts_QN))
    return jax.lax.scan(read, carry, tokens_BC.T)[1].T


def bits_per_token(
    model: LanguageModel, weights: Parameters, documents: Sequence[np.ndarray]
) -> float:
    """What the twin says of documents, as `int_lm.measure.evaluate` counts: each ends with 0."""
    longest = max(map(len, documents)) + 1
    tokens_BC = np.full((len(documents), longest), SEPARATOR, np.int32)
    for row, ids in zip(tokens_BC, documents, strict=True):
        row[: len(ids)] = ids
    start = backprop.real(model.initial_state(len(documents)))
    first_B1 = jnp.full((len(documents), 1), SEPARATOR, jnp.int32)
    nats_BC = np.asarray(
        jax.jit(log_probabilities)(_real(weights), start, first_B1, jnp.asarray(tokens_BC))
    )
    pairs = zip(nats_BC.astype(np.float64), documents, strict=True)
    nats = sum(row[: len(ids) + 1].sum() for row, ids in pairs)
    return -float(nats) / math.log(2) / sum(len(ids) + 1 for ids in documents)


def _real(weights: Parameters) -> Tree:
    """int8 weights in float32."""
    return backprop.real(params.map_leaves(jnp.asarray, weights.network))


def _lengths(most: int) -> list[int]:
    """The lengths that completions are cut to, all of which are compiled: 4, 8, 12, ..., `most`."""
    return [*range(4, min(most, 16), 4), *range(16, most, 8), most]


def advantages(rewards_QG: np.ndarray) -> np.ndarray:
    """Of every completion within its group: float32 [Q, G]; 0 where all rewards are the same."""
    mean, deviation = rewards_QG.mean(1, keepdims=True), rewards_QG.std(1, keepdims=True)
    return ((rewards_QG - mean) / (deviation + EPSILON)).astype(np.float32)


def loss(
    weights: Tree,
    start: Tree,
    prompts_QN: Array,
    written: Written,
    advantages_B: Array,
    origin_BC: Array | None,
    settings: Settings,
) -> Array:
    """GRPO's loss, as a sum over tokens.

    Args:
      weights: float32.
      origin_BC: nats of the tokens by the start weights; None where `settings.kl` is 0.
    """
    nats_BC = log_probabilities(weights, start, prompts_QN, written.tokens_BC)
    ratio_BC = jnp.exp(nats_BC - written.drawn_BC)
    clipped_BC = jnp.clip(ratio_BC, 1 - settings.low, 1 + settings.high)
    gain_B1 = advantages_B[:, None]
    loss_BC = -jnp.minimum(ratio_BC * gain_B1, clipped_BC * gain_B1)
    if origin_BC is not None:
        log_ratio_BC = origin_BC - nats_BC
        loss_BC += settings.kl * (jnp.exp(log_ratio_BC) - 1 - log_ratio_BC)
    return jnp.sum(jnp.where(written.counts_BC, loss_BC, 0.0))


class Grpo:
    """A tuning under way.

    Attributes:
      latent: weights in units of 1/16, float32; rounded to int8 they are the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        weights: Parameters,
        task: Task,
        tokenizer: Any,
        settings: Settings,
        seed: int,
    ):
        """Begin with the int8 weights of a model without context tables."""
        import optax

        self._model, self._task, self._settings = model, task, settings
        self.coder = Coder(tokenizer, task.stop, RewardConfig().prompt_tokens)
        self.latent = _real(weights)
        origin = self.latent
        self._key = jax.random.key(seed)
        adam = optax.adam(settings.learning_rate, b1=settings.beta1, b2=settings.beta2)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
        self._moments = optimizer.init(self.latent)
        ends_V = jnp.asarray(self.coder.ends_V)

        def used(latent: Tree) -> Tree:
            to = backprop.rounded if settings.rounding else backprop.saturate
            return jax.tree.map(to, latent)

        @jax.jit
        def drawn(latent: Tree, prompts_QN: Array, key: Array) -> Written:
            start, count = self._start(len(prompts_QN)), settings.completions
            return write(used(latent), start, prompts_QN, count, ends_V, settings.tokens, key)

        @jax.jit
        def likeliest(latent: Tree, prompts_QN: Array) -> Array:
            weights, start = jax.tree.map(backprop.rounded, latent), self._start(len(prompts_QN))
            return write(weights, start, prompts_QN, 1, ends_V, settings.tokens, None).tokens_BC

        @jax.jit
        def gradient(
            latent: Tree, total: Tree, prompts_QN: Array, written: Written, advantages_B: Array
        ) -> Tree:
            start, origin_BC = self._start(len(prompts_QN)), None
            if settings.kl:
                origin_BC = log_probabilities(origin, start, prompts_QN, written.tokens_BC)

            def of(latent: Tree) -> Array:
                return loss(
                    used(latent), start, prompts_QN, written, advantages_B, origin_BC, settings
                )

            return jax.tree.map(jnp.add, total, jax.grad(of)(latent))

        @jax.jit
        def update(latent: Tree, moments: Any, total: Tree, tokens: Array) -> Any:
            mean = jax.tree.map(lambda leaf: leaf / tokens, total)
            change, moments = optimizer.update(mean, moments, latent)
            return optax.apply_updates(latent, change), moments

        self._drawn, self._likeliest, self._gradient = drawn, likeliest, gradient
        self._update = update
        self._zeros = jax.tree.map(jnp.zeros_like, self.latent)

    def _start(self, count: int) -> Tree:
        return backprop.real(self._model.initial_state(count))

    def compile(self, examples: Sequence[Example]) -> None:
        """Compile steps on Q prompts, for every length of completions; nothing else changes."""
        prompts_QN = self.coder.batch(examples).tokens_SN
        written = jax.device_get(self._drawn(self.latent, jnp.asarray(prompts_QN), self._key))
        flat_QG = np.zeros((len(prompts_QN), self._settings.completions), np.float32)
        groups = np.arange(min(self._settings.chunk, len(prompts_QN)))
        for length in _lengths(self._settings.tokens):
            part = self._part(prompts_QN, written, flat_QG, groups, length)
            total = self._gradient(self.latent, self._zeros, *part)
        self._update(self.latent, self._moments, total, jnp.float32(1))

    def _part(
        self,
        prompts_QN: np.ndarray,
        written: Written,
        gains_QG: np.ndarray,
        groups: np.ndarray,
        length: int,
    ) -> tuple[Array, Written, Array]:
        """Some groups, cut to a length; filled up to a chunk with completions without a say."""
        missing = self._settings.chunk - len(groups)
        filled = np.concatenate([groups, np.zeros(missing, groups.dtype)])
        shape = len(prompts_QN), self._settings.completions, -1
        tokens, drawn, counts = (
            np.asarray(leaf).reshape(shape)[filled, :, :length].reshape(-1, length)
            for leaf in written
        )
        gains_B = gains_QG[filled].reshape(-1)
        own_B = np.arange(len(gains_B)) < len(groups) * self._settings.completions
        part = Written(
            jnp.asarray(tokens), jnp.asarray(drawn), jnp.asarray(counts & own_B[:, None])
        )
        return jnp.asarray(prompts_QN[filled]), part, jnp.asarray(gains_B)

    def step(self, examples: Sequence[Example]) -> float:
        """One step on Q prompts; returns the mean reward of what was written."""
        count, prompts_QN = self._settings.completions, self.coder.batch(examples).tokens_SN
        self._key, key = jax.random.split(self._key)
        written = jax.device_get(self._drawn(self.latent, jnp.asarray(prompts_QN), key))
        owners = [example for example in examples for _ in range(count)]
        rewards_B = self._rewards(owners, written.tokens_BC)
        gains_QG = advantages(rewards_B.reshape(-1, count))
        groups = np.flatnonzero(gains_QG.any(axis=1))
        longest_Q = written.counts_BC.sum(axis=1).reshape(-1, count).max(axis=1)
        groups = groups[np.argsort(longest_Q[groups], kind="stable")]
        parts = []
        for first in range(0, len(groups), self._settings.chunk):
            some = groups[first : first + self._settings.chunk]
            longest = longest_Q[some].max()
            length = next(size for size in _lengths(self._settings.tokens) if size >= longest)
            parts.append(self._part(prompts_QN, written, gains_QG, some, length))
        tokens = jnp.float32(written.counts_BC.reshape(len(examples), -1)[groups].sum())
        for _ in range(self._settings.updates if parts else 0):
            total = self._zeros
            for part in parts:
                total = self._gradient(self.latent, total, *part)
            self.latent, self._moments = self._update(self.latent, self._moments, total, tokens)
        jax.block_until_ready(self.latent)
        return float(rewards_B.mean())

    def answers(self, examples: Sequence[Example]) -> np.ndarray:
        """Rewards of the greedy completions of examples by the rounded weights."""
        prompts_QN = jnp.asarray(self.coder.batch(examples).tokens_SN)
        return self._rewards(examples, np.asarray(self._likeliest(self.latent, prompts_QN)))

    def _rewards(self, examples: Sequence[Example], tokens_BC: np.ndarray) -> np.ndarray:
        reward: Callable[..., float] = self._task.reward
        texts = map(self.coder.completion, tokens_BC)
        return np.array(
            [
                reward(example.prompt, text, example.facts)
                for example, text in zip(examples, texts, strict=True)
            ]
        )
