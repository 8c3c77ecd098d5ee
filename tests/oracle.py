"""The reference that the library is held to: one member, Python integers, one loop per sum.

Written from the equations in the modules' docstrings and in no way from their code: nothing here is
vectorised or uses jax, and tables are built by other means (error functions, float64) than the
library's. Tensors are nested lists of ints: a matrix [M][N], A [M][R], B [N][R]; a tree of them is
a flat dict of paths, a stacked tensor a list of its layers.
"""

import bisect
import fractions
import functools
import math
from collections.abc import Iterator
from typing import Any

from int_lm.config import Config, EsConfig, ModelConfig

Vector = list[int]
Matrix = list[Vector]


def plain(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict of arrays as a flat dict of nested lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= plain(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value.tolist()
    return flat


# -- Fixed point -----------------------------------------------------------------------------------


def saturate(x: int) -> int:
    """Clip to [-127, 127]."""
    return max(-127, min(127, x))


def shift_floor(x: int, bits: int) -> int:
    """floor(x / 2^bits)."""
    return x // 2**bits


def shift_down(x: int, bits: int) -> int:
    """floor(x / 2^bits + 1/2)."""
    return (2 * x + 2**bits) // 2 ** (bits + 1)


def rounded_log2_root(n: int) -> int:
    """round(log2(n) / 2)."""
    return round(math.log2(n) / 2)


def dither(row: int, column: int, position: int, bits: int) -> int:
    """The top bits of a sum of multiples of three odd constants modulo 2^32."""
    word = row * 0x9E3779B1 + column * 0x85EBCA77 + position * 0xC2B2AE3D
    return word % 2**32 // 2 ** (32 - bits)


# -- Noise -----------------------------------------------------------------------------------------

NOISE_VERSION = 1
MASK = 2**32 - 1


def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 with 20 rounds, as in Salmon et al. (SC 2011)."""
    schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    x0, x1 = (counter[0] + schedule[0]) & MASK, (counter[1] + schedule[1]) & MASK
    for number in range(20):
        rotation = rotations[number % 8]
        x0 = (x0 + x1) & MASK
        x1 = ((x1 << rotation) & MASK | x1 >> (32 - rotation)) ^ x0
        if number % 4 == 3:
            injection = number // 4 + 1
            x0 = (x0 + schedule[injection % 3]) & MASK
            x1 = (x1 + schedule[(injection + 1) % 3] + injection) & MASK
    return x0, x1


@functools.cache
def gaussian_quantiles() -> list[int]:
    """round(16 z) at the (i + 1/2) / 65536 quantile z: how many cells' edges lie below it."""
    edges = [65536 * 0.5 * math.erfc(-(k + 0.5) / 16 / math.sqrt(2)) - 0.5 for k in range(-80, 80)]
    return [bisect.bisect(edges, i) - 80 for i in range(65536)]


def draw(kind: str, seed: int, step: int, tensor: int, pair: int, size: int) -> Vector:
    """Noise of one pair for one tensor."""
    key = threefry2x32((seed, NOISE_VERSION), (step, tensor))
    entries: Vector = []
    lane = 0
    while len(entries) < size:
        for word in threefry2x32(key, (pair, lane)):
            if kind == "rademacher":
                entries += [16 if word >> bit & 1 else -16 for bit in range(32)]
            else:
                entries += [gaussian_quantiles()[word & 0xFFFF], gaussian_quantiles()[word >> 16]]
        lane += 1
    return entries[:size]


def rounding(seed: int, step: int, tensor: int, size: int, bits: int) -> Vector:
    """Random numbers in [0, 2^bits): top bits of the words of a pair that does not exist."""
    key = threefry2x32((seed, NOISE_VERSION), (step, tensor))
    words: Vector = []
    for lane in range((size + 1) // 2):
        words += threefry2x32(key, (2**32 - 1, lane))
    return [word // 2 ** (32 - bits) for word in words[:size]]


def rows(entries: Vector, width: int) -> Matrix:
    """A row-major list as rows of `width` entries."""
    return [entries[start : start + width] for start in range(0, len(entries), width)]


def matrix_noise(
    es: EsConfig, shape: tuple[int, int], seed: int, step: int, tensor: int, pair: int
) -> tuple[Matrix, Matrix]:
    """A [M][R] and B [N][R] of one pair."""
    outputs, inputs = shape
    size = (outputs + inputs) * es.rank
    entries = draw(es.noise, seed, step // es.noise_reuse, tensor, pair, size)
    return rows(entries[: outputs * es.rank], es.rank), rows(entries[outputs * es.rank :], es.rank)


def vector_noise(es: EsConfig, width: int, seed: int, step: int, tensor: int, pair: int) -> Vector:
    """n [N] of one pair."""
    return draw(es.noise, seed, step // es.noise_reuse, tensor, pair, width)


# -- A member's tensors: (value, A, B, sign, shift), or (value, None, None, 0, 0) when bare --------

Member = tuple[Any, Any, Any, int, int]


def bare(value: Any) -> Member:
    """A matrix without perturbation."""
    return value, None, None, 0, 0


def perturbed_matrix(
    es: EsConfig, value: Matrix, noise: tuple[Matrix, Matrix], sign: int
) -> Member:
    """A matrix as member 2i (sign 1) or 2i + 1 (sign -1) sees it."""
    return value, *noise, sign, 4 + es.sigma_shift + rounded_log2_root(es.rank)


def perturbed_vector(es: EsConfig, value: Vector, noise: Vector, sign: int) -> Vector:
    """v +- n sigma, n sigma rounded half up."""
    moved = []
    for v, n in zip(value, noise, strict=True):
        moved.append(saturate(v + sign * shift_down(n, es.sigma_shift)))
    return moved


def linear(weight: Member, x: Vector) -> Vector:
    """saturate((x W^T + ((+-(x B) A^T) >> shift)) >> (4 + round(log2(N) / 2)))."""
    return [saturate(y) for y in scaled(weight, x)]


def readout(weight: Member, x: Vector) -> Vector:
    """`linear` in 16 bits."""
    return [max(-32767, min(32767, y)) for y in scaled(weight, x)]


def scaled(weight: Member, x: Vector) -> Vector:
    """`linear` before it is narrowed."""
    value, left, right, sign, shift = weight
    y = []
    for m in range(len(value)):
        total = 0
        for n in range(len(x)):
            total += x[n] * value[m][n]
        if left is not None:
            delta = 0
            for r in range(len(left[m])):
                score = 0
                for n in range(len(x)):
                    score += x[n] * right[n][r]
                delta += score * left[m][r]
            total += shift_floor(sign * delta, shift)
        y.append(shift_floor(total, 4 + rounded_log2_root(len(x))))
    return y


def embed(weight: Member, token: int) -> Vector:
    """saturate(E[token] + ((+-A[token] B^T) >> shift))."""
    value, left, right, sign, shift = weight
    row = []
    for n in range(len(value[token])):
        entry = value[token][n]
        if left is not None:
            delta = 0
            for r in range(len(left[token])):
                delta += left[token][r] * right[n][r]
            entry += shift_floor(sign * delta, shift)
        row.append(saturate(entry))
    return row


# -- Norm ------------------------------------------------------------------------------------------


def mean_magnitude(x: Vector) -> int:
    """max(1, floor(mean|x|))."""
    return max(1, sum(abs(entry) for entry in x) // len(x))


def norm(weight: Vector, x: Vector) -> Vector:
    """saturate(floor(x w / max(1, mean|x|))), the mean rounded down."""
    mean = mean_magnitude(x)
    return [saturate(entry * w // mean) for entry, w in zip(x, weight, strict=True)]


def clipped_dividend(x: int) -> int:
    """Into the range that divisions take."""
    return max(1 - 2**14, min(2**14 - 1, x))


def rounded_quotient(dividend: int, divisor: int) -> int:
    """dividend / divisor rounded half up, the dividend clipped."""
    return clipped_dividend(dividend + divisor // 2) // divisor


def norm_credit(gain: Vector, x: Vector, credit: Vector) -> Vector:
    """4 (c_k - sign(x_k) (sum_n x_n c_n / D) / m) / m with c = g credit / 16, in integers.

    The sum is over c / 4, rounded half up, and what is divided fits 14 bits and a sign.
    """
    mean = mean_magnitude(x)
    c = [clipped_dividend(shift_down(g * d, 4)) for g, d in zip(gain, credit, strict=True)]
    along = sum(entry * shift_down(entry_c, 2) for entry, entry_c in zip(x, c, strict=True))
    radial = 4 * rounded_quotient(along // len(x), mean)
    signs = [(entry > 0) - (entry < 0) for entry in x]
    return [
        rounded_quotient(4 * (entry_c - sign * radial), mean)
        for entry_c, sign in zip(c, signs, strict=True)
    ]


# -- egg -------------------------------------------------------------------------------------------


def gates(layer: dict[str, Any], h: Vector, state: Vector) -> tuple[Vector, Vector]:
    """f, and the gated state g."""
    forget_h, forget_s = linear(layer["forget_input"], h), linear(layer["forget_state"], state)
    f = [saturate(forget_h[d] + forget_s[d] + layer["forget_bias"][d]) for d in range(len(h))]
    return f, [shift_floor((f[d] + 127) * state[d], 8) for d in range(len(h))]


def cell(layer: dict[str, Any], h: Vector, state: Vector) -> Vector:
    """The recurrent cell: the next state."""
    f, g = gates(layer, h, state)
    candidate_h, candidate_g = (
        linear(layer["candidate_input"], h),
        linear(layer["candidate_state"], g),
    )
    c = [
        saturate(candidate_h[d] + candidate_g[d] + layer["candidate_bias"][d])
        for d in range(len(h))
    ]
    return [state[d] + shift_floor((f[d] + 127) * (c[d] - state[d]), 8) for d in range(len(h))]


def block(layer: dict[str, Any], x: Vector, state: Vector) -> tuple[Vector, Vector]:
    """One residual block."""
    state = cell(layer, norm(layer["cell_norm"], x), state)
    x = [saturate(x[d] + state[d]) for d in range(len(x))]
    hidden = linear(layer["ffn_in"], norm(layer["ffn_norm"], x))
    out = linear(layer["ffn_out"], hidden)
    return [saturate(x[d] + out[d]) for d in range(len(x))], state


def model_step(member: dict[str, Any], state: Matrix, token: int) -> tuple[Matrix, Vector]:
    """Read one token: the next state [L][D] and the logits [V]."""
    if token == 0:
        state = [[0] * len(row) for row in state]
    x = embed(member["embedding"], token)
    following = []
    for number, row in enumerate(state):
        layer = {
            path.removeprefix("layers/"): leaf[number]
            for path, leaf in member.items()
            if path.startswith("layers/")
        }
        x, row = block(layer, x, row)
        following.append(row)
    return following, linear(member["head"], norm(member["final_norm"], x))


# -- Likelihood ------------------------------------------------------------------------------------


def real_log2_likelihood(logits: Vector, target: int) -> float:
    """log2 p(target) in float64, logits in 1/16 bit."""
    largest = max(logits)
    total = math.fsum(2.0 ** ((logit - largest) / 16) for logit in logits)
    return (logits[target] - largest) / 16 - math.log2(total)


@functools.cache
def exp2_table(bits: int) -> list[int]:
    """round(2^(bits - d/16)), d = 0..254."""
    return [round(2.0 ** (bits - d / 16)) for d in range(255)]


@functools.cache
def log2_table() -> list[int]:
    """round(2^22 log2(1 + i/1024)), i = 0..1024."""
    return [round(2**22 * math.log2(1 + i / 1024)) for i in range(1025)]


def distances(logits: Vector) -> Vector:
    """Largest logit minus logit, at most 254."""
    largest = max(logits)
    return [min(254, largest - logit) for logit in logits]


def term_bits(vocab_size: int) -> int:
    """Bits of the exp2 terms."""
    return 22 if vocab_size <= 256 else 28


def log2_sum_exp2(distance: Vector) -> int:
    """log2 of the sum of 2^(-distance/16) in units of 2^-16: exp2 terms of 22 bits (28 above 256
    tokens), summed; the position of the leading one; 10 bits of index and 12 to interpolate."""
    bits = term_bits(len(distance))
    total = sum(exp2_table(bits)[d] for d in distance)
    exponent = total.bit_length() - 1
    mantissa = total << 30 >> exponent  # in [2^30, 2^31)
    index, rest = mantissa - 2**30 >> 20, mantissa >> 8 & 0xFFF
    low, high = log2_table()[index], log2_table()[index + 1]
    fraction = shift_down(low + ((high - low) * rest >> 12), 6)
    return (exponent - bits) * 2**16 + fraction


def log2_likelihood(logits: Vector, target: int) -> int:
    """log2 p(target) in units of 2^-16 bit."""
    distance = distances(logits)
    return -distance[target] * 2**12 - log2_sum_exp2(distance)


@functools.cache
def exp2_fraction_table() -> list[int]:
    """round(2^15 2^(-(i + 1/2) / 1024)), i = 0..1023."""
    return [round(2.0 ** (15 - (i + 0.5) / 1024)) for i in range(1024)]


def scaled_probabilities(logits: Vector, scale: int) -> Vector:
    """p scale in units of 2^-16, of the terms in 16 bits and a factor of 8 fractional ones."""
    distance = distances(logits)
    log2_sum = log2_sum_exp2(distance)
    factor = scale * exp2_fraction_table()[log2_sum % 2**16 // 2**6] // 2**7
    bits = term_bits(len(logits))
    terms = [shift_down(exp2_table(bits)[d], bits - 16) for d in distance]
    return [term * factor // 2 ** (8 + log2_sum // 2**16) for term in terms]


def errors(logits: Vector, target: int, scale: int, dithers: Vector, lowest: int = -127) -> Vector:
    """onehot(target) - p in units of 1 / scale, p rounded by a dither; 0 for p at the floor."""
    largest, result = max(logits), []
    for v, p in enumerate(scaled_probabilities(logits, scale)):
        units = (p + dithers[v]) // 2**16
        if logits[v] == lowest or largest - logits[v] >= 254:
            units = 0
        result.append((scale if v == target else 0) - units)
    return result


# -- The population --------------------------------------------------------------------------------


def tensors(model: ModelConfig, vocab_size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """(kind, shape, layers) of every tensor of `egg`, in the order that numbers them."""
    D, L, V = model.width, model.layers, vocab_size
    F = D * model.ffn_multiple
    return {
        "embedding": ("matrix", (V, D), 0),
        "final_norm": ("vector", (D,), 0),
        "head": ("matrix", (V, D), 0),
        "layers/candidate_bias": ("vector", (D,), L),
        "layers/candidate_input": ("matrix", (D, D), L),
        "layers/candidate_state": ("matrix", (D, D), L),
        "layers/cell_norm": ("vector", (D,), L),
        "layers/ffn_in": ("matrix", (F, D), L),
        "layers/ffn_norm": ("vector", (D,), L),
        "layers/ffn_out": ("matrix", (D, F), L),
        "layers/forget_bias": ("vector", (D,), L),
        "layers/forget_input": ("matrix", (D, D), L),
        "layers/forget_state": ("matrix", (D, D), L),
    }


def numbered(
    model: ModelConfig, vocab_size: int
) -> list[tuple[str, int, int, str, tuple[int, ...]]]:
    """(path, layer or -1, number, kind, shape) of every matrix and vector there is."""
    listed = []
    for path, (kind, shape, layers) in tensors(model, vocab_size).items():
        for layer in range(layers) if layers else [-1]:
            listed.append((path, layer, len(listed), kind, shape))
    return listed


def at(tree: dict[str, Any], path: str, layer: int) -> Any:
    """One matrix or vector of a tree."""
    return tree[path] if layer < 0 else tree[path][layer]


def member_weights(
    config: Config, vocab_size: int, weights: dict[str, Any], seed: int, step: int, p: int
) -> dict[str, Any]:
    """The tree that member p uses at a step."""
    es, pair, sign = config.es, p // 2, 1 - 2 * (p % 2)
    member: dict[str, Any] = {}
    for path, layer, number, kind, shape in numbered(config.model, vocab_size):
        value = at(weights, path, layer)
        if kind == "vector":
            noise = vector_noise(es, shape[0], seed, step, number, pair)
            leaf = perturbed_vector(es, value, noise, sign)
        else:
            factors = matrix_noise(es, (shape[0], shape[1]), seed, step, number, pair)
            leaf = perturbed_matrix(es, value, factors, sign)
        if layer < 0:
            member[path] = leaf
        else:
            member.setdefault(path, []).append(leaf)
    return member


def read(
    member: dict[str, Any], state: Matrix, tokens: Vector, padded: bool = False
) -> tuple[Matrix, Vector]:
    """The state after all but the last token, and the log2-likelihood of each but the first; with
    `padded`, a separator after a separator has none."""
    log_likelihoods = []
    for token, target in zip(tokens[:-1], tokens[1:], strict=True):
        state, logits = model_step(member, state, token)
        nothing = padded and token == target == 0
        log_likelihoods.append(0 if nothing else log2_likelihood(logits, target))
    return state, log_likelihoods


def fitness(es: EsConfig, scores: Vector) -> Vector:
    """Fitness of every pair: see `int_lm.fitness`."""
    differences = [plus - minus for plus, minus in zip(scores[::2], scores[1::2], strict=True)]
    signs = [(d > 0) - (d < 0) for d in differences]
    if es.fitness == "sign":
        return signs
    # differences are coarsened by as many bits as keep three times their sum within int32
    worst = es.segment_length * 32 * 2**16 * len(differences) * 3
    bits = 0
    while worst >> bits > 2**31 - 1:
        bits += 1
    magnitudes = [abs(d) >> bits for d in differences]
    mean = max(1, sum(magnitudes) // len(magnitudes))
    return [s * min(7, 3 * m // mean) for s, m in zip(signs, magnitudes, strict=True)]


def matrix_votes(noises: list[tuple[Matrix, Matrix]], fitnesses: Vector) -> Matrix:
    """sum_i f_i A_i B_i^T, one outer product after another."""
    outputs, inputs = len(noises[0][0]), len(noises[0][1])
    votes = [[0] * inputs for _ in range(outputs)]
    for (left, right), f in zip(noises, fitnesses, strict=True):
        for r in range(len(left[0])):
            for m in range(outputs):
                for n in range(inputs):
                    votes[m][n] += f * left[m][r] * right[n][r]
    return votes


def vector_votes(noises: list[Vector], fitnesses: Vector) -> Vector:
    """sum_i f_i n_i."""
    votes = [0] * len(noises[0])
    for noise, f in zip(noises, fitnesses, strict=True):
        for n, entry in enumerate(noise):
            votes[n] += f * entry
    return votes


def vote_limit(kind: str, es: EsConfig, fitnesses: Vector, z: int) -> int:
    """z standard deviations of a pure-noise vote, rounded down; the root has 4 fractional bits."""
    squares = sum(f * f for f in fitnesses)
    root = math.isqrt((squares if kind == "vector" else es.rank * squares) * 256)
    return z * root * (16 if kind == "vector" else 256) // (2**10 * 2**4)


def moved(weight: int, vote: int, limit: int) -> int:
    """A weight after its vote."""
    return saturate(weight + ((vote > 0) - (vote < 0) if abs(vote) > limit else 0))


def entries(nested: Any) -> Vector:
    """All numbers of nested lists."""
    return [n for item in nested for n in entries(item)] if isinstance(nested, list) else [nested]


def like(nested: Any, flat: Iterator[int]) -> Any:
    """Numbers in the shape of nested lists."""
    return [like(item, flat) for item in nested] if isinstance(nested, list) else next(flat)


def mean_of_means(nested: Any) -> int:
    """Mean magnitude, axis by axis from the last, rounded down each time."""
    if not isinstance(nested, list):
        return abs(nested)
    return sum(mean_of_means(item) for item in nested) // len(nested)


def longest_axis(nested: Any) -> int:
    """The largest number of items on any axis."""
    return max(len(nested), longest_axis(nested[0])) if isinstance(nested, list) else 1


def coarse(votes: Any, bits: int) -> Any:
    """Votes shifted down together, towards 0, to `bits` bits or so few that an axis's sum fits."""
    flat = entries(votes)
    bits = min(bits, 30 - math.ceil(math.log2(longest_axis(votes))))
    shift = max(0, max(abs(n) for n in flat).bit_length() - bits)
    return like(votes, iter([(abs(n) >> shift) * (1 if n > 0 else -1) for n in flat]))


def magnitude_limit(votes: Any, z: int) -> tuple[Any, int]:
    """Coarse votes of 17 bits, and z sqrt(pi / 2) times their mean magnitude: 1283 / 1024 of it."""
    rough = coarse(votes, 17)
    return rough, z * (mean_of_means(rough) * 1283 // 1024) // 1024


def strength(votes: Any, vote_clip: float) -> Vector:
    """128 times each vote's sign, or its share of vote_clip mean magnitudes: of all votes, flat."""
    signs = [(n > 0) - (n < 0) for n in entries(votes)]
    if vote_clip == 0:
        return [128 * sign for sign in signs]
    rough = coarse(votes, 18)
    most = max(1, mean_of_means(rough) * round(64 * vote_clip) // 64)
    shares = [min(abs(n), most) * (2**24 // most) // 2**17 for n in entries(rough)]
    return [sign * share for sign, share in zip(signs, shares, strict=True)]


def carried(weight: int, remainder: int, strength: int, rate: int) -> tuple[int, int]:
    """A weight and what remains after a move of strength / 128 of the rate, in 1 / 4096."""
    total = remainder + shift_down(strength * rate, 7)
    whole = shift_down(total, 12)
    return saturate(weight + whole), total - 4096 * whole


def randomly_moved(weight: int, strength: int, rate: int, random: int) -> int:
    """A weight after the same move, rounded up where the fraction and `random` / 4096 pass 1."""
    return saturate(weight + (shift_down(strength * rate, 7) + random) // 4096)


def decayed(config: Config, step: int, halflife: float) -> fractions.Fraction | float:
    """What is left of a scheduled value: 1 at first."""
    halflives = fractions.Fraction(step) / fractions.Fraction(halflife)
    done = min(fractions.Fraction(1), fractions.Fraction(step, max(1, config.run.steps)))
    return {
        "constant": 1,
        "linear": 1 - done,
        "cosine": math.sin(math.pi / 2 * (1 - done)) ** 2,
        "inverse": 1 / (1 + halflives),
        "inverse_sqrt": float(1 + halflives) ** -0.5,
        "inverse_sqrt_to_zero": float(1 - done) * float(1 + halflives) ** -0.5,
    }[config.es.schedule]


def learning_rate(config: Config, step: int) -> int:
    """In units of 2^-12."""
    return round(
        config.es.learning_rate * 4096 * decayed(config, step, config.es.learning_rate_halflife)
    )


def vote_threshold(config: Config, step: int) -> int:
    """z with erfc(z / sqrt 2) = alpha, found by bisection, in units of 2^-10."""
    alpha = min(1.0, config.es.alpha * float(decayed(config, step, config.es.alpha_halflife)))
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > alpha else (low, middle)
    return round(low * 1024)


def plain_votes(
    config: Config, vocab_size: int, fitnesses: Vector, number: int
) -> dict[str, tuple[str, int, Any]]:
    """(kind, number, plain votes) of every tensor; those of a stacked one are a list of layers."""
    es, seed, found = config.es, config.run.seed, {}
    pairs = range(es.population // 2)
    for path, layer, tensor, kind, shape in numbered(config.model, vocab_size):
        if kind == "vector":
            noises = [vector_noise(es, shape[0], seed, number, tensor, i) for i in pairs]
            ballot: Any = vector_votes(noises, fitnesses)
        else:
            size = shape[0], shape[1]
            ballot = matrix_votes(
                [matrix_noise(es, size, seed, number, tensor, i) for i in pairs], fitnesses
            )
        first = found.setdefault(path, (kind, tensor, ballot if layer < 0 else []))
        if layer >= 0:
            first[2].append(ballot)
    return found


def step(
    config: Config,
    vocab_size: int,
    weights: dict[str, Any],
    remainders: dict[str, Any],
    states: list[Matrix],
    tokens: list[Vector],
    number: int,
) -> tuple[dict[str, Any], dict[str, Any], list[Matrix], Vector]:
    """One training step with plain votes: (weights, remainders, states [P][L][D], tokens [S][T+1])
    -> the same, and scores. Remainders are those of update carry."""
    es, seed = config.es, config.run.seed
    scores, following = [], []
    for p in range(es.population):
        member = member_weights(config, vocab_size, weights, seed, number, p)
        state, log_likelihoods = read(member, states[p], tokens[p // es.members_per_stream], True)
        scores.append(sum(log_likelihoods))
        following.append(state)
    fitnesses = fitness(es, scores)
    z, rate = vote_threshold(config, number), learning_rate(config, number)
    updated: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for path, (kind, tensor, ballot) in plain_votes(config, vocab_size, fitnesses, number).items():
        old, votes = entries(weights[path]), entries(ballot)
        if es.update == "threshold":
            limit = vote_limit(kind, es, fitnesses, z)
            new = [moved(w, v, limit) for w, v in zip(old, votes, strict=True)]
        elif es.update == "carry":
            rest = entries(remainders[path]), strength(ballot, es.vote_clip)
            both = [carried(*three, rate) for three in zip(old, *rest, strict=True)]
            new = [weight for weight, _ in both]
            kept[path] = like(ballot, iter([remainder for _, remainder in both]))
        else:
            random = rounding(seed, number, tensor, len(old), 12)
            rest = strength(ballot, es.vote_clip), random
            new = [randomly_moved(w, s, rate, r) for w, s, r in zip(old, *rest, strict=True)]
        updated[path] = like(ballot, iter(new))
    return updated, kept, following, scores
