"""Tuning: what members write, the fitness of rewards, the pull towards the start, a whole step."""

import decimal
import math
from fractions import Fraction
from typing import Any

from int_lm.config import Config
from oracle import population
from oracle.arithmetic import Vector
from oracle.noise import MASK, threefry2x32
from oracle.perturb import bare
from oracle.step import State, updated
from oracle.update import entries, like, pulled
from oracle.votes import plain_votes

NOISE_VERSION = 1
WORDS = 2**32 - 1  # the tensor that random words belong to


def weights(temperature: float, vocab_size: int) -> Vector:
    """2^(-d / (16 temperature)) for d = 0..254; the largest of V has 30 - log2 V bits."""
    bits = 30 - math.ceil(math.log2(vocab_size))
    with decimal.localcontext(prec=60):
        unit = 16 * decimal.Decimal(temperature)
        powers = [decimal.Decimal(2) ** (40 - d / unit) for d in range(255)]
        fine = [int(power.to_integral_value(decimal.ROUND_HALF_EVEN)) for power in powers]
    return [(weight + 2 ** (39 - bits)) // 2 ** (40 - bits) for weight in fine]


def drawn(logits: Vector, table: Vector, word: int) -> int:
    """The first token up to which the weights exceed the word's share of all of them."""
    each = [table[min(max(logits) - logit, 254)] for logit in logits]
    target = word * sum(each) // 2**32
    total = 0
    for token, weight in enumerate(each):
        total += weight
        if total > target:
            return token
    raise AssertionError


def word(config: Config, step: int, pair: int, number: int) -> int:
    """Random word `number` of a pair."""
    key = threefry2x32((config.run.seed, NOISE_VERSION), (step, WORDS))
    return threefry2x32(key, (pair, number // 2))[number % 2] & MASK


def initial_state(config: Config) -> population.State:
    """Of one member at a document's start."""
    leaves = {"egg": ["cell"], "rwkv": ["cell", "time_shift", "channel_shift"]}
    zeros = [[0] * config.model.width for _ in range(config.model.layers)]
    state: population.State = {name: zeros for name in leaves[config.model.architecture]}
    if config.model.direct:
        state["context"] = [0] * max(config.model.direct)
    return state


def written(
    config: Config, member: dict[str, Any], prompt: Vector, ends: set[int], words: Vector | None
) -> Vector:
    """What one member writes after a prompt, the separator in front included."""
    table = weights(config.reward.temperature, len(member["head"][0])) if words else []
    state, logits = initial_state(config), []
    for token in prompt:
        state, logits, *_ = population.read_token(config.model, member, state, token)
    tokens: Vector = []
    for t in range(config.reward.tokens):
        token = drawn(logits, table, words[t]) if words else logits.index(max(logits))
        tokens.append(token)
        if token in ends:
            break
        state, logits, *_ = population.read_token(config.model, member, state, token)
    return tokens + [0] * (config.reward.tokens - len(tokens))


def completions(
    config: Config,
    vocab_size: int,
    weights: dict[str, Any],
    prompts: list[Vector],
    ends: set[int],
    step: int,
) -> list[list[Vector]]:
    """What all members write: [P][K][C]."""
    es, reward, found = config.es, config.reward, []
    for p in range(es.population):
        member = population.member_weights(config, vocab_size, weights, config.run.seed, step, p)
        prompt, own = prompts[p // es.members_per_stream], []
        for k in range(reward.pass_at):
            numbers = range(k * reward.tokens, (k + 1) * reward.tokens)
            words = [word(config, step, p // 2, number) for number in numbers]
            own.append(written(config, member, prompt, ends, words if reward.temperature else None))
        found.append(own)
    return found


def answer(config: Config, weights: dict[str, Any], prompt: Vector, ends: set[int]) -> Vector:
    """What the bare model writes, greedily."""
    listed = population.tensors(config.model, len(weights["head"]))
    member = {
        path: value
        if listed[path][0] in ("table", "vector")
        else [bare(layer) for layer in value]
        if listed[path][2]
        else bare(value)
        for path, value in weights.items()
    }
    return written(config, member, prompt, ends, None)


def nearest(value: Fraction) -> int:
    """The nearest integer, halves away from 0."""
    whole = math.floor(abs(value) + Fraction(1, 2))
    return whole if value >= 0 else -whole


def fitness(kind: str, scores: Vector, members: int) -> Vector:
    """Fitness of pairs, by exact fractions and a search in place of a root."""
    found: Vector = []
    for first in range(0, len(scores), members):
        group = scores[first : first + members]
        mean = Fraction(sum(group), members)
        variance = sum((score - mean) ** 2 for score in group) / members
        for a, b in zip(group[0::2], group[1::2], strict=True):
            sign = (a > b) - (a < b)
            if kind == "sign":
                found.append(sign)
            elif kind == "linear":
                apart = [abs(x - y) for x, y in zip(group[0::2], group[1::2], strict=True)]
                mean_apart = Fraction(sum(apart), len(apart))
                found.append(sign * min(7, math.floor(3 * abs(a - b) / mean_apart)) if sign else 0)
            elif kind == "rank":
                ranks = [sum(x > y for y in group) - sum(x < y for y in group) for x in (a, b)]
                found.append(nearest(Fraction(7 * (ranks[0] - ranks[1]), 2 * (members - 1))))
            else:
                # the largest level up to 7 with level - 1/2 <= 2 |a - b| / deviation
                square = 4 * (a - b) ** 2
                levels = [n for n in range(1, 8) if (n - Fraction(1, 2)) ** 2 * variance <= square]
                found.append(sign * max(levels, default=0) if variance else 0)
    return found


def step(
    config: Config,
    vocab_size: int,
    state: State,
    start: dict[str, Any],
    fitnesses: Vector,
    step: int,
) -> State:
    """Weights and memory after a step whose pairs have this fitness."""
    votes = plain_votes(config, vocab_size, fitnesses, step)
    sums = {path: vote.tolist() for path, vote in votes.items()}
    own_memory = {name: kept for name, kept in state.memory.items() if name != "anchor"}
    own_state = state._replace(memory=own_memory)
    weights, kept = updated(config, vocab_size, own_state, sums, fitnesses, step)
    if config.es.anchor:
        kept["anchor"] = start
        first: dict[str, int] = {}
        for path, _, tensor, kind, _ in population.numbered(config.model, vocab_size):
            if kind != "table":
                first.setdefault(path, tensor)
        for path, tensor in first.items():
            own = entries(weights[path]), entries(start[path])
            seed = config.run.seed ^ 0xA5A5A5A5
            moved = pulled(config.es.anchor, seed, *own, tensor, step)
            weights[path] = like(weights[path], iter(moved))
    tables = {path: state.weights[path] for path in state.weights if path not in weights}
    return State(weights | tables, kept, state.counts, state.members, [])
