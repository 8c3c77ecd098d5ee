"""Texts read side by side, in lanes: by the NumPy runtime for an export, by JAX for a run.

Both read the same tokens and give the same integers. What differs is how many lanes and tokens they
read at once: NumPy any number, JAX a few fixed numbers, because each of them compiles once.

Axes: P lanes, T tokens, V vocabulary. Leaves of a state have P as their second axis.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from int_lm import runtime

if TYPE_CHECKING:
    from int_lm.run import Run

MOST = 256  # lanes
State = Any  # a tree of arrays [., P, ...]


class Lanes(Protocol):
    """A model that reads lanes. `Numpy` and `Jax` are two."""

    def rows(self, count: int) -> int:
        """The number of lanes to read if `count` are needed; at least `count`."""
        ...

    def length(self, left: int) -> int:
        """The number of tokens to read at once if `left` are left; it may be more than `left`."""
        ...

    def begin(self, count: int) -> State:
        """The state of `count` lanes that have read nothing."""
        ...

    def combined(self, function: Callable[..., Any], *states: State) -> State:
        """The tree of `function(leaf, ...)`, called with NumPy arrays."""
        ...

    def read(self, state: State, tokens_PT: np.ndarray) -> tuple[State, np.ndarray, np.ndarray]:
        """Read tokens [P, T + 1], of which token t + 1 is the target of token t.

        Returns:
          The state after token T - 1; the log2-likelihood of every target, int64 [P, T] in units of
          2^-16 bit; and whether it is the likeliest token (of equals, the lowest id), bool [P, T].
        """
        ...

    def step(self, state: State, tokens_P: np.ndarray) -> tuple[State, np.ndarray]:
        """Read one token of each lane: (next state, logits [P, V] in units of 1/16 bit)."""
        ...


class Numpy:
    """The lanes of an export; see `Lanes`."""

    SEGMENT = 16  # tokens between two looks at which lanes have ended

    def __init__(self, model: runtime.Model) -> None:
        self._model = model

    def rows(self, count: int) -> int:
        """Exactly `count`."""
        return count

    def length(self, left: int) -> int:
        """At most `SEGMENT`."""
        return min(left, self.SEGMENT)

    def begin(self, count: int) -> State:
        """See `Lanes.begin`."""
        return self._model.initial_state(count)

    def combined(self, function: Callable[..., Any], *states: State) -> State:
        """See `Lanes.combined`."""
        return {name: function(*(state[name] for state in states)) for name in states[0]}

    def step(self, state: State, tokens_P: np.ndarray) -> tuple[State, np.ndarray]:
        """See `Lanes.step`."""
        return self._model.step(state, tokens_P)

    def read(self, state: State, tokens_PT: np.ndarray) -> tuple[State, np.ndarray, np.ndarray]:
        """See `Lanes.read`."""
        units_TP, hits_TP = [], []
        for inputs_P, targets_P in zip(tokens_PT.T[:-1], tokens_PT.T[1:], strict=True):
            state, logits_PV = self._model.step(state, inputs_P)
            units_TP.append(runtime.log2_likelihood(self._model, logits_PV, targets_P))
            hits_TP.append(runtime.greedy_hit(self._model, logits_PV, targets_P))
        return state, np.stack(units_TP, axis=1), np.stack(hits_TP, axis=1).astype(bool)


class Jax:
    """The lanes of a run; see `Lanes`."""

    ROWS = (16, MOST)
    LENGTHS = (16, 64, 256)

    def __init__(self, run: "Run") -> None:
        import jax
        import jax.numpy as jnp

        from int_lm.measure import evaluate
        from int_lm.model import likelihood, perturb, reading

        model = self._model = run.recipe.model
        bare = jax.tree.map(jnp.asarray, perturb.unperturbed(run.weights))

        def keep(activity: Any, logits_PV: Any, token_P: Any, target_P: Any) -> tuple[Any, Any]:
            units_P = likelihood.log2_likelihood(logits_PV, target_P)
            return units_P, evaluate.greedy_hit(logits_PV, target_P)

        def read(weights: Any, state: State, tokens_PT: Any) -> tuple[State, Any]:
            return reading.read(model, weights, state, tokens_PT, keep)

        compiled_read, compiled_step = jax.jit(read), jax.jit(model.step)
        self._read = lambda state, tokens_PT: compiled_read(bare, state, jnp.asarray(tokens_PT))
        self._step = lambda state, tokens_P: compiled_step(bare, state, jnp.asarray(tokens_P))[:2]
        self._map = jax.tree.map

    def rows(self, count: int) -> int:
        """The smallest of `ROWS` that is enough."""
        return next(rows for rows in self.ROWS if rows >= count)

    def length(self, left: int) -> int:
        """The smallest of `LENGTHS` that is enough, or the largest."""
        return next((length for length in self.LENGTHS if length >= left), self.LENGTHS[-1])

    def begin(self, count: int) -> State:
        """See `Lanes.begin`."""
        return self._model.initial_state(count)

    def combined(self, function: Callable[..., Any], *states: State) -> State:
        """See `Lanes.combined`."""
        return self._map(lambda *leaves: function(*map(np.asarray, leaves)), *states)

    def step(self, state: State, tokens_P: np.ndarray) -> tuple[State, np.ndarray]:
        """See `Lanes.step`."""
        state, logits_PV = self._step(state, tokens_P.astype(np.int32))
        return state, np.asarray(logits_PV)

    def read(self, state: State, tokens_PT: np.ndarray) -> tuple[State, np.ndarray, np.ndarray]:
        """See `Lanes.read`."""
        state, (units_TP, hits_TP) = self._read(state, tokens_PT.astype(np.int32))
        return state, np.asarray(units_TP).T.astype(np.int64), np.asarray(hits_TP).T.astype(bool)
