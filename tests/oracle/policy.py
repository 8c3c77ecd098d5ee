"""A policy: the encoding of observations, its tensors and members, one step, and plain votes."""

import math
from fractions import Fraction
from typing import Any

from int_lm.config import Config
from oracle import egg, population, rwkv
from oracle.arithmetic import Matrix, Vector, norm
from oracle.noise import MASK, NOISE_VERSION, matrix_noise, threefry2x32, vector_noise
from oracle.perturb import linear, perturbed_matrix, perturbed_vector, readout
from oracle.votes import matrix_votes, vector_votes

TRAINING = 2**32 - 2  # the tensor that the words of episodes belong to


def encoded(mean: int, deviation: int, x: int) -> int:
    """16 (x - mean) / deviation, by the rounded multiplier, clipped to +-127."""
    deviation = max(deviation, 16)
    limit = min(8 * deviation, 2**31 - 1)
    shift = max(0, len(f"{limit:b}") - 15)
    multiplier = math.floor(Fraction(16 * 2**16 * 2**shift, deviation) + Fraction(1, 2))
    difference = min(max(x - mean, -limit), limit) // 2**shift
    return min(
        max(math.floor(Fraction(difference * multiplier, 2**16) + Fraction(1, 2)), -127), 127
    )


def tensors(config: Config, observations: int, outputs: int) -> population.Tensors:
    """(kind, shape, layers) of every tensor by path: a matrix in place of the embedding."""
    listed = population.tensors(config.model, outputs)
    return listed | {"embedding": ("matrix", (config.model.width, observations + 1), 0)}


def numbered(config: Config, *sizes: int) -> list[tuple[str, int, int, str, tuple[int, ...]]]:
    """(path, layer or -1, number, kind, shape) of every matrix and vector."""
    listed = []
    for path, (kind, shape, layers) in tensors(config, *sizes).items():
        for layer in range(layers) if layers else [-1]:
            listed.append((path, layer, len(listed), kind, shape))
    return listed


def member(config: Config, sizes: tuple[int, int], weights: Any, step: int, p: int) -> Any:
    """The tree that member p uses at a step."""
    es, pair, sign = config.es, p // 2, 1 - 2 * (p % 2)
    tree: dict[str, Any] = {}
    for path, layer, number, kind, shape in numbered(config, *sizes):
        value = population.at(weights, path, layer)
        if kind == "vector":
            noise = vector_noise(es, shape[0], config.run.seed, step, number, pair)
            leaf: Any = perturbed_vector(es, value, noise, sign)
        else:
            size = shape[0], shape[1]
            factors = matrix_noise(es, size, config.run.seed, step, number, pair)
            leaf = perturbed_matrix(es, value, factors, sign)
        if layer < 0:
            tree[path] = leaf
        else:
            tree.setdefault(path, []).append(leaf)
    return tree


def start(config: Config) -> dict[str, Matrix]:
    """The state at an episode's start: zeros by name [L][D]."""
    names = {"egg": ["cell"], "rwkv": ["cell", "time_shift", "channel_shift"]}
    zeros = [[0] * config.model.width for _ in range(config.model.layers)]
    return {name: zeros for name in names[config.model.architecture]}


def policy_step(
    config: Config, tree: dict[str, Any], state: dict[str, Matrix], inputs: Vector
) -> tuple[dict[str, Matrix], Vector]:
    """(next state, outputs) for inputs of int8."""
    x = linear(tree["embedding"], inputs)
    following: dict[str, Matrix] = {name: [] for name in state}
    for number in range(config.model.layers):
        layer = egg.layer_of(tree, number)
        before = {name: rows[number] for name, rows in state.items()}
        if config.model.architecture == "egg":
            x, cell = egg.block(layer, x, before["cell"])
            after = {"cell": cell}
        else:
            x, after, _ = rwkv.block(layer, x, before)
        for name in following:
            following[name].append(after[name])
    if config.model.architecture == "egg":
        return following, linear(tree["head"], norm(tree["final_norm"], x))
    return following, readout(tree["head"], rwkv.normed(x))


def words(config: Config, step: int, stream: int, episodes: int) -> list[tuple[int, int]]:
    """The two random words of every episode of a stream."""
    key = threefry2x32((config.run.seed, NOISE_VERSION), (step, TRAINING))
    both = (threefry2x32(key, (stream, episode)) for episode in range(episodes))
    return [(a & MASK, b & MASK) for a, b in both]


def votes(config: Config, sizes: tuple[int, int], fitnesses: Vector, step: int) -> dict[str, Any]:
    """Plain votes by path; layers are stacked in front."""
    es, seed, found = config.es, config.run.seed, {}
    pairs = range(es.population // 2)
    for path, layer, number, kind, shape in numbered(config, *sizes):
        if kind == "vector":
            noises = [vector_noise(es, shape[0], seed, step, number, i) for i in pairs]
            own: Any = vector_votes(noises, fitnesses)
        else:
            size = shape[0], shape[1]
            own = matrix_votes(
                [matrix_noise(es, size, seed, step, number, i) for i in pairs], fitnesses
            )
        if layer < 0:
            found[path] = own
        else:
            found.setdefault(path, []).append(own)
    return found
