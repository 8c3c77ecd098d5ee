"""Context tables that go on learning while a text is compressed, and equally when it is read.

Every row of a table gets V values delta, in units of 2^-8 of a logit's unit, and a count n of its
reads. All begin with 0. All numbers are integers. A lane reads K rows, one in each table:

    logit_v = saturate(logit_v + ((sum over K of delta_v + 128) >> 8))
    e_v     = 4096 [v is the token] - (f_v >> 12)             once the token is known; f: `coder`
    delta_v = saturate(delta_v + sum over lanes that read the row of ((e_v rate[n]) >> 12))
    n       = n + lanes that read the row
    rate[n] = floor(sqrt(floor(3072^2 / (min(n, 255) + 1))))

So a row moves along the gradient of the token's log-likelihood, by smaller steps the more often it
was read. `saturate` clips to [-32767, 32767]. The sum uses the counts n before the step: all lanes
of a step read before any of them learns.

Axes: P lanes, K tables, R rows, V vocabulary.
"""

import math

import numpy as np

from int_lm.errors import UserError
from int_lm.runtime import LOGIT_MAX, Model, Tensors, context_rows

RATE, COUNTS = 12 << 8, 256
RATES = np.array([math.isqrt(RATE**2 // (n + 1)) for n in range(COUNTS)], np.int64)


class Learner:
    """The changes of the context tables that were learnt from the archive so far."""

    def __init__(self, model: Model):
        """Begin with no changes.

        Raises:
          UserError: the model has no context tables.
        """
        if not model.direct:
            raise UserError(
                "--learn needs context tables, of which this model has none; leave it out"
            )
        self._lengths, self._bits = model.direct, model.config["model"]["direct_bits"]
        self._V = model.config["vocab_size"]
        self.reset()

    def reset(self) -> None:
        """Set all changes and counts to 0.

        Raises:
          UserError: this machine does not give the memory for all rows.
        """
        shape = len(self._lengths), 1 << self._bits
        try:
            self._deltas_KRV = np.zeros((*shape, self._V), np.int16)  # takes memory where written
            self._counts_KR = np.zeros(shape, np.int64)
        except MemoryError as error:
            size = 2 * math.prod((*shape, self._V))
            raise UserError(
                f"learning needs {size:,} bytes for the context tables of this model, which this "
                "machine does not give; use a machine with more memory, or compress without --learn"
            ) from error

    def logits(self, state: Tensors, logits_PV: np.ndarray) -> np.ndarray:
        """The model's logits plus the learnt changes: int64 [P, V].

        Args:
          state: the model's state after the step that computed the logits.
          logits_PV: of the model.
        """
        self._rows_KP = context_rows(state["context"], self._lengths, self._bits)
        tables = np.arange(len(self._lengths))[:, None]
        learnt_PV = self._deltas_KRV[tables, self._rows_KP].sum(axis=0, dtype=np.int64)
        return np.clip(logits_PV + ((learnt_PV + 128) >> 8), -LOGIT_MAX, LOGIT_MAX)

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
            deltas_RV[rows] = np.clip(deltas_RV[rows] + moves_RV, -LOGIT_MAX, LOGIT_MAX)
            np.add.at(counts_R, rows_P, 1)
