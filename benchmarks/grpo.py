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
(Yu et al., arXiv 2503.14476). Groups whose rewards are all the same have no say.

Axes: B completions of a step, N tokens of a prompt, C of a completion, V vocabulary.
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

    A rounded weight moves once its latent value has gone half a unit: after ten steps of 0.05 in
    one direction.
    """

    prompts: int = 32  # Q
    completions: int = 16  # G
    updates: int = 2
    learning_rate: float = 0.05
    low: float = 0.2
    high: float = 0.28
    kl: float = 0.0
    tokens: int = 32  # C


class Written(NamedTuple):
    """Completions: tokens with their prompts [B, N+C]; the log-probability with which each token
    was drawn, in nats, and whether it belongs to the completion (its end does), both [B, C].
    """

    tokens_BT: Array
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


def write(
    weights: Tree, start: Tree, prompts_BN: Array, ends_V: Array, length: int, key: Array | None
) -> Written:
    """Write completions of `length` tokens at most: drawn, or the likeliest if `key` is None.

    Args:
      weights: rounded, float32. start: the state at a document's start, B streams.
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

    state, last_B = _read(weights, start, prompts_BN)
    shape = length, len(prompts_BN)
    empty = (jnp.full(shape, SEPARATOR, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool))
    carry = jnp.int32(0), state, last_B, jnp.zeros(shape[1:], bool), empty
    tokens_CB, nats_CB, counts_CB = jax.lax.while_loop(unfinished, add, carry)[-1]
    tokens_BT = jnp.concatenate([prompts_BN, tokens_CB.T], axis=1)
    return Written(tokens_BT, nats_CB.T, counts_CB.T)


def _read(weights: Tree, start: Tree, prompts_BN: Array) -> tuple[Tree, Array]:
    """The state before the last token of each prompt, and this token."""

    def read(state: Tree, token_B: Array) -> tuple[Tree, None]:
        return backprop.step(weights, state, token_B)[0], None

    state, _ = jax.lax.scan(read, start, prompts_BN[:, :-1].T)
    return state, prompts_BN[:, -1]


def log_probabilities(weights: Tree, start: Tree, tokens_BT: Array, length: int) -> Array:
    """Nats of each of the last `length` tokens, given those before it: [B, C]."""

    def read(carry: tuple[Tree, Array], token_B: Array) -> tuple[tuple[Tree, Array], Array]:
        state, logits_BV = backprop.step(weights, *carry)
        return (state, token_B), _of(_nats(logits_BV), token_B)

    carry = _read(weights, start, tokens_BT[:, :-length])
    _, nats_CB = jax.lax.scan(read, carry, tokens_BT[:, -length:].T)
    return nats_CB.T


def bits_per_token(
    model: LanguageModel, weights: Parameters, documents: Sequence[np.ndarray]
) -> float:
    """What the twin says of documents, as `int_lm.measure.evaluate` counts: each ends with 0."""
    longest = max(map(len, documents)) + 1
    tokens_BT = np.full((len(documents), longest + 1), SEPARATOR, np.int32)
    for row, ids in zip(tokens_BT, documents, strict=True):
        row[1 : len(ids) + 1] = ids
    start = backprop.real(model.initial_state(len(documents)))
    read = jax.jit(log_probabilities, static_argnums=3)
    nats_BT = np.asarray(read(_real(weights), start, jnp.asarray(tokens_BT), longest))
    pairs = zip(nats_BT.astype(np.float64), documents, strict=True)
    nats = sum(row[: len(ids) + 1].sum() for row, ids in pairs)
    return -float(nats) / math.log(2) / sum(len(ids) + 1 for ids in documents)


def _real(weights: Parameters) -> Tree:
    """int8 weights in float32."""
    return backprop.real(params.map_leaves(jnp.asarray, weights.network))


def _lengths(most: int) -> list[int]:
    """The lengths that completions are cut to, all of which are compiled: 8, 16, ..., `most`."""
    return [*range(8, most, 8), most]


def _shortened(
    written: Written, origin_BC: Array | None, length: int
) -> tuple[Written, Array | None]:
    """The first `length` tokens of completions; no later one counts."""
    first = written.tokens_BT.shape[1] - written.drawn_BC.shape[1]
    part = Written(
        written.tokens_BT[:, : first + length],
        written.drawn_BC[:, :length],
        written.counts_BC[:, :length],
    )
    return part, None if origin_BC is None else origin_BC[:, :length]


def advantages(rewards_QG: np.ndarray) -> np.ndarray:
    """Of every completion within its group: float32 [Q, G]; 0 where all rewards are the same."""
    mean, deviation = rewards_QG.mean(1, keepdims=True), rewards_QG.std(1, keepdims=True)
    return ((rewards_QG - mean) / (deviation + EPSILON)).astype(np.float32)


def loss(
    latent: Tree,
    start: Tree,
    written: Written,
    advantages_B: Array,
    origin_BC: Array | None,
    settings: Settings,
) -> Array:
    """GRPO's loss.

    Args:
      origin_BC: nats of the tokens by the start weights; None where `settings.kl` is 0.
    """
    weights = jax.tree.map(backprop.rounded, latent)
    length = written.drawn_BC.shape[1]
    nats_BC = log_probabilities(weights, start, written.tokens_BT, length)
    ratio_BC = jnp.exp(nats_BC - written.drawn_BC)
    clipped_BC = jnp.clip(ratio_BC, 1 - settings.low, 1 + settings.high)
    gain_B1 = advantages_B[:, None]
    loss_BC = -jnp.minimum(ratio_BC * gain_B1, clipped_BC * gain_B1)
    if origin_BC is not None:
        log_ratio_BC = origin_BC - nats_BC
        loss_BC += settings.kl * (jnp.exp(log_ratio_BC) - 1 - log_ratio_BC)
    counts_BC = written.counts_BC.astype(jnp.float32)
    return jnp.sum(loss_BC * counts_BC) / jnp.sum(counts_BC)  # every completion has a token


class Grpo:
    """A tuning under way.

    Attributes:
      latent: weights in units of 1/16, float32; the policy is these, rounded to int8.
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
        self._origin = self.latent
        self._key = jax.random.key(seed)
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(settings.learning_rate, b2=0.99)
        )
        self._moments = optimizer.init(self.latent)
        ends_V = jnp.asarray(self.coder.ends_V)

        @jax.jit
        def drawn(latent: Tree, prompts_BN: Array, key: Array) -> tuple[Written, Array | None]:
            rounded, start = jax.tree.map(backprop.rounded, latent), self._start(len(prompts_BN))
            written = write(rounded, start, prompts_BN, ends_V, settings.tokens, key)
            if settings.kl == 0:
                return written, None
            return written, log_probabilities(
                self._origin, start, written.tokens_BT, settings.tokens
            )

        @jax.jit
        def likeliest(latent: Tree, prompts_BN: Array) -> Array:
            rounded, start = jax.tree.map(backprop.rounded, latent), self._start(len(prompts_BN))
            return write(rounded, start, prompts_BN, ends_V, settings.tokens, None).tokens_BT

        @jax.jit
        def update(
            latent: Tree, moments: Any, written: Written, origin_BC: Any, advantages_B: Array
        ) -> tuple[Tree, Any]:
            start = self._start(len(advantages_B))
            gradient = jax.grad(loss)(latent, start, written, advantages_B, origin_BC, settings)
            change, moments = optimizer.update(gradient, moments, latent)
            return optax.apply_updates(latent, change), moments

        self._drawn, self._likeliest, self._update = drawn, likeliest, update

    def _start(self, count: int) -> Tree:
        return backprop.real(self._model.initial_state(count))

    def compile(self, examples: Sequence[Example]) -> None:
        """Compile steps on Q prompts, for every length of completions; nothing else changes."""
        prompts_BN = jnp.asarray(self._prompts(examples))
        written, origin_BC = self._drawn(self.latent, prompts_BN, self._key)
        for length in _lengths(self._settings.tokens):
            self._update(
                self.latent,
                self._moments,
                *_shortened(written, origin_BC, length),
                jnp.zeros(len(prompts_BN), jnp.float32),
            )

    def _prompts(self, examples: Sequence[Example]) -> np.ndarray:
        """Each prompt as often as it is completed: int32 [B, N]."""
        return np.repeat(self.coder.batch(examples).tokens_SN, self._settings.completions, axis=0)

    def step(self, examples: Sequence[Example]) -> float:
        """One step on Q prompts; returns the mean reward of what was written."""
        count, prompts_BN = self._settings.completions, self._prompts(examples)
        self._key, key = jax.random.split(self._key)
        written, origin_BC = self._drawn(self.latent, jnp.asarray(prompts_BN), key)
        owners = [example for example in examples for _ in range(count)]
        rewards_B = self._rewards(owners, np.asarray(written.tokens_BT), prompts_BN.shape[1])
        advantages_B = jnp.asarray(advantages(rewards_B.reshape(-1, count)).reshape(-1))
        longest = int(np.asarray(written.counts_BC).sum(axis=1).max())
        length = next(length for length in _lengths(self._settings.tokens) if length >= longest)
        part = _shortened(written, origin_BC, length)
        for _ in range(self._settings.updates):
            self.latent, self._moments = self._update(
                self.latent, self._moments, *part, advantages_B
            )
        jax.block_until_ready(self.latent)
        return float(rewards_B.mean())

    def answers(self, examples: Sequence[Example]) -> np.ndarray:
        """Rewards of the greedy completions of examples."""
        prompts_BN = self.coder.batch(examples).tokens_SN
        tokens_BT = np.asarray(self._likeliest(self.latent, jnp.asarray(prompts_BN)))
        return self._rewards(examples, tokens_BT, prompts_BN.shape[1])

    def _rewards(
        self, examples: Sequence[Example], tokens_BT: np.ndarray, first: int
    ) -> np.ndarray:
        reward: Callable[..., float] = self._task.reward
        texts = [self.coder.completion(row[first:]) for row in tokens_BT]
        return np.array(
            [
                reward(example.prompt, text, example.facts)
                for example, text in zip(examples, texts, strict=True)
            ]
        )
