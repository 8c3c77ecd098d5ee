"""`carry`: weights move by the learning rate, and a remainder keeps fractions of a weight's unit.

The unit of a weight is 1/16 (q4). In each step, `es.learning_rate` times the sign of the vote is
added to an int16 remainder, in units of 2^-12 of the weight's unit. Whole units are then moved from
the remainder to the weight. So moves far smaller than a unit add up, and opposite moves cancel.
This is error feedback (Seide et al., "1-bit stochastic gradient descent", Interspeech 2014). The
rate decays by `es.schedule` with the half-life `es.learning_rate_halflife`.
"""

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import LEARNING_RATE_MIN
from int_lm.method import schedules
from int_lm.method.update import Memory, Scalars, Tensor, Update, Values, Votes
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

FRACTION_BITS = 12  # fractional bits of a learning rate and of a remainder


def learning_rate(settings: Settings, step: int) -> int:
    """Learning rate of `step` in units of 2^-12 of a weight's unit: 0 to 2^14."""
    es = settings.es
    factor = schedules.decay(es.schedule, step, es.learning_rate_halflife, settings.run.steps)
    warm = schedules.warm(step, es.warmup)
    return round(es.learning_rate * warm * factor * (1 << FRACTION_BITS))


def rate_used(es: StrategySettings) -> str:
    """The learning rate and its schedule, for the model card."""
    warm = f"after {es.warmup} steps of warm-up, " if es.warmup else ""
    return f"{es.learning_rate:g}, {warm}half-life {es.learning_rate_halflife:g} steps"


def _values(settings: Settings, step: int) -> Values:
    return {"rate": learning_rate(settings, step)}


def carry(weight: Array, remainder: Array, votes: Array, rate: Array) -> tuple[Array, Array]:
    """The moved weights of one tensor, and their remainders.

    Args:
      weight: int8.
      remainder: int16 in [-2^11, 2^11), in units of 2^-12 of the weight's unit.
      votes: int32.
      rate: int32 scalar, of `learning_rate`.

    Returns:
      The weights, int8, saturated to +-127, and the remainders, int16. Whole units leave the
      remainder even if the weight is saturated and cannot move.
    """
    return moved(weight, remainder, jnp.sign(votes) * rate)


def moved(weight: Array, remainder: Array, move: Array) -> tuple[Array, Array]:
    """`carry` for any `move`: int32 below 2^30 in magnitude, in the remainder's units."""
    total = remainder.astype(jnp.int32) + move
    whole = fixed.shift_down(total, FRACTION_BITS)
    rest = total - (whole << FRACTION_BITS)
    return fixed.saturate(weight.astype(jnp.int32) + whole), rest.astype(jnp.int16)


def _memory(spec: Spec) -> Memory:
    return {"remainders": jnp.zeros(spec.full_shape, jnp.int16)}


def _move(
    es: StrategySettings,
    tensor: Tensor,
    weight: Array,
    memory: Memory,
    votes: Votes,
    values: Scalars,
) -> tuple[Array, Memory]:
    weight, remainder = carry(weight, memory["remainders"], votes.sums, values["rate"])
    return weight, {"remainders": remainder}


CARRY = Update(
    memory=_memory,
    values=_values,
    move=_move,
    settings_used=lambda es: {"learning rate": rate_used(es)},
    least_rate=LEARNING_RATE_MIN,
)
