"""Votes `deep`: credit from the last block back to the first, and from the token after.

A credit is int64 [T, I, N] and a power of two that says its unit. Whatever is added to another
credit is first brought to sixteenths of that one's unit, rounded half up.
"""

from typing import Any, NamedTuple

import numpy as np

from oracle import votes
from oracle.arithmetic import norm_credit, rounded_log2_root as root_bits, shift_down
from oracle.votes import Place, Records

GAIN = 16


class Credit(NamedTuple):
    """Values, in units of 2^bits of that of the stream's credit."""

    value: np.ndarray
    bits: int = 0


def sixteenths(x: np.ndarray, bits: int) -> np.ndarray:
    """16 x 2^bits, where 2^8 stands for whatever is more; 20 bits and a sign are kept."""
    return np.clip(votes.shifted(x, -(min(bits, 8) + 4)), 1 - 2**20, 2**20 - 1)


def apart(place: Place, number: int) -> Place:
    """Where the dithers of the operation of this number come from."""
    return place._replace(step=(place.step + number * 0x9E3779B1) % 2**32)


def through(place: Place, value: np.ndarray, credit: Credit, finer: int = 0) -> Credit:
    """Of a linear's inputs: what the forward pass divides by less than this does, is the unit."""
    outputs, inputs = value.shape
    divided = votes.level(value) + root_bits(outputs) - 2 + 4 - finer
    forward = 4 + root_bits(inputs)
    taken = votes.through(place, value, credit.value, 4 - finer)
    return Credit(taken, credit.bits + divided - forward)


def moved(place: Place, *parts: tuple[Credit, np.ndarray], finer: int = 0) -> Credit:
    """Of outputs: credit of effect m mod E times its answer to a move of 32, summed over parts."""
    (first, answers), unit = parts[0], parts[0][0].bits
    total = np.zeros(answers.shape, np.int64)
    for credit, answers in parts:
        for m in range(answers.shape[-1]):
            product = credit.value[..., m % credit.value.shape[-1]] * answers[..., m]
            total[..., m] += sixteenths(product, credit.bits - unit)
    return Credit(votes.narrowed(place, total, 4 + 5 - finer), first.bits - finer)


def inward(credit: Credit, outputs: np.ndarray) -> Credit:
    """Of outputs, without what would push those at +-127 further."""
    value = credit.value.copy()
    for place in np.ndindex(*value.shape):
        if abs(outputs[place]) == 127 and value[place] * outputs[place] > 0:
            value[place] = 0
    return Credit(value, credit.bits)


def at_next(value: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The next token's, of the same document; there is none after the segment's last."""
    result = np.zeros_like(value)
    for t in range(len(value) - 1):
        for i in range(value.shape[1]):
            if tokens[t + 1, i] != 0:
                result[t, i] = value[t + 1, i]
    return result


def norm(
    place: Place,
    tokens: np.ndarray,
    stream: np.ndarray,
    credit: Credit,
    normed: Credit,
    mu: list[int],
) -> Credit:
    """Of a stream of which a norm is made: of the shifted norm, a share is this token's own, and a
    share of the next token's is due to this one."""
    here, following = normed.value, at_next(normed.value, tokens)
    total = 16 * credit.value
    for t, i in np.ndindex(*here.shape[:2]):
        eighths = [
            shift_down((128 - share) * int(here[t, i, d]) + share * int(following[t, i, d]), 3)
            for d, share in enumerate(mu)
        ]
        taken = norm_credit([GAIN] * len(mu), stream[t, i].tolist(), eighths)
        # sixteenths of a credit went in; gain 16 over the mean, where quarters of 1 / mean came out
        total[t, i] += sixteenths(np.array(taken), normed.bits - credit.bits - 4 + 4 - 2)
    return Credit(votes.narrowed(place, total, 4), credit.bits)


def of_block(
    place: Place,
    layer: int,
    tokens: np.ndarray,
    weights: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    of_state: np.ndarray,
    outputs: np.ndarray,
    streams: dict[str, np.ndarray],
    credit: Credit,
) -> tuple[Credit, dict[str, Credit]]:
    """The credit of the stream before a block of `rwkv` and of its tensors' outputs, by name.

    Args:
      answers: of effects, to outputs of "channel_key" and "time_mixing".
      of_state: answers of the next state to forget and candidate.
      outputs: of "time_mixing".
      streams: in front of the norm before each of the two.
      credit: of the stream after the block.
    """
    width = credit.value.shape[-1]
    mu = [127 * d // max(1, width - 1) for d in range(width)]
    places = (apart(place, 64 * layer + number) for number in range(1, 9))
    squared = through(next(places), weights["channel_value"], credit)
    of_key = moved(next(places), (squared, answers["channel_key"]))
    into_key = through(next(places), weights["channel_key"], of_key, finer=2)
    middle = norm(next(places), tokens, streams["channel_key"], credit, into_key, mu)
    now = middle, answers["time_mixing"]
    present = moved(next(places), now, finer=1)
    both = through(next(places), weights["time_mixing"], present, finer=2)
    h, state = (Credit(half, both.bits) for half in np.split(both.value, 2, axis=-1))
    later = Credit(at_next(state.value, tokens), state.bits), of_state
    of_mixing = inward(moved(next(places), now, later, finer=1), outputs)
    before = norm(next(places), tokens, streams["time_mixing"], middle, h, mu)
    return before, {
        "channel_value": credit,
        "channel_key": of_key,
        "time_mixing": of_mixing,
    }


def token_votes(
    place: Place, records: Records, members: dict[str, Any], errors: np.ndarray
) -> dict[str, np.ndarray]:
    """Votes by path on the embedding and in all layers; their weights are of `members`."""
    names, acting = ("channel_key", "channel_value", "time_mixing"), ("channel_key", "time_mixing")
    weights = {name: members[f"layers/{name}"][0] for name in names}
    credit = Credit(votes.stream_credit(place, records, members["head"][0], errors))
    tokens, found = records.inputs["embedding"], {name: [] for name in names}
    for n in reversed(range(len(weights["time_mixing"]))):
        before, outputs = of_block(
            place,
            n,
            tokens,
            {name: value[n] for name, value in weights.items()},
            {name: records.answers[f"layers/{name}"][:, n] for name in acting},
            records.of_state["layers/time_mixing"][:, n],
            records.outputs["layers/time_mixing"][:, n],
            {name: records.streams[f"layers/{name}"][:, n] for name in acting},
            credit,
        )
        for name in names:
            left = votes.operand(place, outputs[name].value, 0)
            found[name].insert(0, votes.outer(left, records.inputs[f"layers/{name}"][:, n]))
        credit = before
    rows, vocab_size = votes.operand(place, credit.value, 0), len(members["embedding"][0])
    stacked = {f"layers/{name}": np.stack(sums) for name, sums in found.items()}
    return stacked | {"embedding": votes.scattered(tokens, rows, vocab_size)}
