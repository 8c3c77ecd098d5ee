"""What goes on learning while a text is compressed, and equally when it is read.

Every row of a table gets V values delta, in units of 2^-8 of a logit's unit, and a count n of its
reads. All begin with 0. All numbers are integers. A lane reads K rows, one in each table:

    logit_v = saturate(logit_v + ((sum over K of delta_v + 128) >> 8))
    e_v     = 4096 [v is the token] - (f_v >> 12)             once the token is known; f: `coder`
    delta_v = saturate(delta_v + sum over lanes that read the row of ((e_v rate[n]) >> 12))
    n       = n + lanes that read the row
    rate[n] = floor(sqrt(floor(4096^2 / (min(n, 255) + 1))))

So a row moves along the gradient of the token's log-likelihood, by smaller steps the more often it
was read. `saturate` clips to [-32767, 32767]. The sum uses the counts n before the step: all lanes
of a step read before any of them learns.

Matches find long repetitions. For each of M lengths, a hash of the last so many tokens of the lane
finds an entry: the token a that followed them before, and how often it did, c = 1 to 63, or 0. What
a match is worth is learnt, for each length and each c. From the longest to the shortest:

    logit_a     = saturate(logit_a + (worth[m, c] >> 8))             after the context tables
    worth[m, c] = saturate(worth[m, c] + (e_a >> 3))                one lane after the other
    entry       = (a, min(c + 1, 63)) if a is the token, else (a, max(c >> 2, 1)) if c > 1, else
                  (token, 1)

Axes: P lanes, K tables, M lengths of matches, R rows, V vocabulary.
"""

import math

import numpy as np

from int_lm import contexts
from int_lm.errors import UserError
from int_lm.runtime import LOGIT_MAX, Model, Tensors

RATE, COUNTS = 1 << 12, 256
MATCHES = (7, 12, 20, 32)  # tokens
MATCH_BITS, COUNT_MAX = 5, 63  # there are 2^5 times as many entries as a context table has rows
RATES = np.array([math.isqrt(RATE**2 // (n + 1)) for n in range(COUNTS)], np.int64)


class Learner:
    """The changes of the context tables that were learnt from the archive so far."""

    def __init__(self, model: Model):
        """Begin with no changes.

        Raises:
          UserError: the model has no context tables.
        """
        if not model.tables:
            raise UserError(
                "--learn needs context tables, of which this model has none; leave it out"
            )
        self._model, self._bits = model, model.config["model"]["direct_bits"]
        self._V = model.config["vocab_size"]
        self.reset()

    def reset(self) -> None:
        """Set all changes and counts to 0.

        Raises:
          UserError: this machine does not give the memory for all rows.
        """
        shape = len(self._model.tables), 1 << self._bits
        entries = len(MATCHES), 1 << (self._bits + MATCH_BITS)
        self._worths = np.zeros((len(MATCHES), COUNT_MAX + 1), np.int64)
        try:
            self._entries = np.zeros(entries, np.uint32)  # a + 2^16 c
            self._deltas_KRV = np.zeros((*shape, self._V), np.int16)  # takes memory where written
            self._counts_KR = np.zeros(shape, np.int64)
        except MemoryError as error:
            size = 2 * math.prod((*shape, self._V)) + 4 * math.prod(entries)
            raise UserError(
                f"learning needs {size:,} bytes for this model, which this "
                "machine does not give; use a machine with more memory, or compress without --learn"
            ) from error

    def begin(self, lanes: int) -> None:
        """Begin a block: nothing was read before its lanes."""
        self._recent_TP = np.zeros((MATCHES[-1], lanes), np.uint32)  # newest first

    def logits(self, state: Tensors, tokens_P: np.ndarray, logits_PV: np.ndarray) -> np.ndarray:
        """The model's logits plus the learnt changes: int64 [P, V].

        Args:
          state: the model's state after the step that computed the logits.
          tokens_P: what that step read, 0 at the beginning; of the first lanes, or of all.
          logits_PV: of the model.
        """
        self._rows_KP = self._model.rows(state)
        tables = np.arange(len(self._model.tables))[:, None]
        learnt_PV = self._deltas_KRV[tables, self._rows_KP].sum(axis=0, dtype=np.int64)
        logits_PV = _saturated(logits_PV + ((learnt_PV + 128) >> 8))
        recent_TP = self._recent_TP[:, : len(tokens_P)]
        self._recent_TP = np.concatenate([tokens_P[None].astype(np.uint32), recent_TP[:-1]])
        self._places_MP = _places(self._recent_TP, self._bits + MATCH_BITS)
        lanes = np.arange(len(tokens_P))
        for m in reversed(range(len(MATCHES))):
            entries_P = self._entries[m, self._places_MP[m]]
            expected_P, worth_P = entries_P & 0xFFFF, self._worths[m, entries_P >> 16]
            raised_P = logits_PV[lanes, expected_P] + (worth_P >> 8)
            logits_PV[lanes, expected_P] = _saturated(raised_P)
        return logits_PV

    def learn(self, frequencies_PV: np.ndarray, tokens_P: np.ndarray) -> None:
        """Learn from the tokens that follow.

        Args:
          frequencies_PV: made from the result of the last call of `logits`.
          tokens_P: the token that follows in every lane.
        """
        errors_PV = -(frequencies_PV >> 12)
        errors_PV[np.arange(len(tokens_P)), tokens_P] += 4096
        for deltas_RV, counts_R, rows_P in zip(
            self._deltas_KRV, self._counts_KR, self._rows_KP, strict=True
        ):
            rates_P1 = RATES[np.minimum(counts_R[rows_P], COUNTS - 1)][:, None]
            rows, places_P = np.unique(rows_P, return_inverse=True)
            moves_RV = np.zeros((len(rows), self._V), np.int64)
            np.add.at(moves_RV, places_P, (errors_PV * rates_P1) >> 12)
            deltas_RV[rows] = _saturated(deltas_RV[rows] + moves_RV)
            np.add.at(counts_R, rows_P, 1)
        for lane, token in enumerate(tokens_P.tolist()):
            for m in reversed(range(len(MATCHES))):
                place = self._places_MP[m, lane]
                count, expected = divmod(int(self._entries[m, place]), 1 << 16)
                if count:
                    error = 4096 * (expected == token) - (int(frequencies_PV[lane, expected]) >> 12)
                    worth = int(self._worths[m, count]) + (error >> 3)
                    self._worths[m, count] = min(max(worth, -LOGIT_MAX), LOGIT_MAX)
                self._entries[m, place] = _followed(expected, count, token)


def _saturated(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -LOGIT_MAX, LOGIT_MAX)


def _places(recent_TP: np.ndarray, bits: int) -> np.ndarray:
    """The entries of the last tokens, int64 [M, P]: hashes of them, newest first, modulo 2^32."""
    word_P, found = np.zeros(recent_TP.shape[1], np.uint32), []
    for number, token_P in enumerate(recent_TP, start=1):
        word_P = contexts.longer(word_P, token_P)
        if number in MATCHES:
            found.append(contexts.of_bits(word_P ^ np.uint32(len(found)), bits))
    return np.array(found)


def _followed(expected: int, count: int, token: int) -> int:
    """An entry once the token is known."""
    if count and expected == token:
        return expected | min(count + 1, COUNT_MAX) << 16
    return expected | max(count >> 2, 1) << 16 if count > 1 else token | 1 << 16
