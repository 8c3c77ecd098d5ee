"""An entropy coder that uses the integer probabilities of a model, in lanes side by side.

The frequencies f_v of the V possible tokens are made from logits in units of 1/16 bit:

    d_v = min(max logit - logit_v, 254);  w_v = exp2[d_v];  S = sum of w;  exp2[0] = 2^k
    f_v = 1 + ((w_v q) >> (k + 8)),  q = floor(((2^24 - V) 2^(k + 8)) / S)

The difference between 2^24 and their sum is added to the likeliest token (of equals, the one with
the lowest id). So they sum to 2^24 exactly, and every token is possible. q is below 2^33, and w q
is below 2^62 for every vocabulary.

The coder is rANS (Duda, arXiv 1311.2540). Each lane has a state x of 64 bits in [2^32, 2^64). The
lanes share one stream of 32-bit words (Giesen, arXiv 1402.3392). For every token, and for lanes
0, 1, ..., a decoder computes:

    slot = x mod 2^24;  the token is that v for which start_v <= slot < start_v + f_v
    x = f_v floor(x / 2^24) + slot - start_v
    if x < 2^32:  x = 2^32 x + the next word

An encoder computes the inverse, from the last token and lane to the first. All states of an encoder
begin with x = 2^32, and all states of a decoder end with it.

Axes: P lanes, T tokens of a lane, V vocabulary.
"""

import numpy as np

from int_lm.runtime import FLOOR

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS
LOWEST = np.uint64(1 << 32)  # state of an encoder at its beginning
WORD_BITS = np.uint64(32)
_SLOT = np.uint64(TOTAL - 1)


def frequencies(exp2_table: np.ndarray, logits_PV: np.ndarray) -> np.ndarray:
    """Frequencies of every token: int64 [P, V], each at least 1, each row of sum 2^24.

    Args:
      exp2_table: the model's table exp2[0], ..., exp2[254].
      logits_PV: in units of 1/16 bit.
    """
    V, bits = logits_PV.shape[1], int(exp2_table[0]).bit_length() - 1 + 8
    likeliest_P = logits_PV.argmax(axis=1)
    lanes = np.arange(len(logits_PV))
    most_P1 = logits_PV[lanes, likeliest_P][:, None].astype(np.int64)
    weights_PV = exp2_table.astype(np.int64)[np.minimum(most_P1 - logits_PV, FLOOR)]
    factor_P1 = ((TOTAL - V) << bits) // weights_PV.sum(axis=1, keepdims=True)
    frequencies_PV = ((weights_PV * factor_P1) >> bits) + 1
    frequencies_PV[lanes, likeliest_P] += TOTAL - frequencies_PV.sum(axis=1)
    return frequencies_PV


def intervals(frequencies_PV: np.ndarray, tokens_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The start and the frequency of the token of each lane: two uint64 [P]."""
    lanes = np.arange(len(tokens_P))
    starts_PV = frequencies_PV.cumsum(axis=1) - frequencies_PV
    both = starts_PV[lanes, tokens_P], frequencies_PV[lanes, tokens_P]
    return both[0].astype(np.uint64), both[1].astype(np.uint64)


class Encoder:
    """Encodes tokens from the last to the first, all lanes of a token at once.

    Attributes:
      states_P: uint64 [P], the state of every lane.
    """

    def __init__(self, lanes: int):
        self.states_P = np.full(lanes, LOWEST, np.uint64)
        self._words: list[np.ndarray] = []

    def put(self, starts_P: np.ndarray, frequencies_P: np.ndarray) -> None:
        """Encode one token of each of the first lanes, or of all lanes.

        Args:
          starts_P: uint64, as `intervals` returns them.
          frequencies_P: uint64, likewise.
        """
        states_P = self.states_P[: len(starts_P)]
        full_P = (states_P >> np.uint64(64 - TOTAL_BITS)) >= frequencies_P
        self._words.append(states_P[full_P][::-1].astype(np.uint32))
        states_P[full_P] >>= WORD_BITS
        quotient_P, rest_P = np.divmod(states_P, frequencies_P)
        states_P[:] = (quotient_P << np.uint64(TOTAL_BITS)) + rest_P + starts_P

    def words(self) -> np.ndarray:
        """The words in the order in which a decoder reads them: uint32."""
        return np.concatenate([np.zeros(0, np.uint32), *self._words])[::-1]


class DamagedStreamError(ValueError):
    """There are too few or too many words, or a state is wrong."""


class Decoder:
    """Decodes tokens from the first to the last, all lanes of a token at once."""

    def __init__(self, states_P: np.ndarray, words: np.ndarray):
        """Begin with the states and words of an `Encoder` at its end.

        Args:
          states_P: uint64, at least 2^32.
          words: uint32.

        Raises:
          DamagedStreamError: a state is below 2^32.
        """
        if len(states_P) and states_P.min() < LOWEST:
            raise DamagedStreamError
        self.states_P, self._words, self._read = states_P.copy(), words.astype(np.uint64), 0

    def take(self, frequencies_PV: np.ndarray) -> np.ndarray:
        """Decode one token of each of the first lanes: int64 [P].

        Args:
          frequencies_PV: as `frequencies` returns them.

        Raises:
          DamagedStreamError: there are too few words.
        """
        states_P = self.states_P[: len(frequencies_PV)]
        slots_P = (states_P & _SLOT).astype(np.int64)
        ends_PV = frequencies_PV.cumsum(axis=1)
        tokens_P = (ends_PV <= slots_P[:, None]).sum(axis=1)
        lanes = np.arange(len(tokens_P))
        of_token_P = frequencies_PV[lanes, tokens_P]
        offsets_P = slots_P - ends_PV[lanes, tokens_P] + of_token_P
        states_P[:] = of_token_P.astype(np.uint64) * (states_P >> np.uint64(TOTAL_BITS))
        states_P += offsets_P.astype(np.uint64)
        empty_P = states_P < LOWEST
        words = self._words[self._read : self._read + int(empty_P.sum())]
        if len(words) < empty_P.sum():
            raise DamagedStreamError
        self._read += len(words)
        states_P[empty_P] = (states_P[empty_P] << WORD_BITS) | words
        return tokens_P

    def finish(self) -> None:
        """Check the end of the stream.

        Raises:
          DamagedStreamError: words are left, or a state is not 2^32.
        """
        if self._read != len(self._words) or (self.states_P != LOWEST).any():
            raise DamagedStreamError
