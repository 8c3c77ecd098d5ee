"""`carry`: votes move weights by the learning rate, and what is less than a unit is kept.

A weight moves by `es.learning_rate` times the sign of its vote, in units of 2^-12 of a weight's
unit (1/16); whole units move the weight and the rest is kept in an int16 remainder (error feedback:
Seide et al., "1-bit stochastic gradient descent", Interspeech 2014), so that steps far below a unit
add up and opposite ones cancel. The rate decays by `es.schedule` with the half-life
`es.learning_rate_halflife`.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.limits import LEARNING_RATE_MIN
from int_lm.method import schedules
from int_lm.method.update import Memory, Tensor, Update, Values, Votes
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

FRACTION_BITS = 12  # of a learning rate and of a remainder


def learning_rate(settings: Settings, step: int) -> int:
    """Learning rate of `step` in units of 2^-12 of a weight's unit: 0 to 2^14."""
    es = settings.es
    factor = schedules.decay(es.schedule, step, es.learning_rate_halflife, settings.run.steps)
    return round(es.learning_rate * factor * (1 << FRACTION_BITS))


def _values(settings: Settings, step: int) -> Values:
    return {"rate": learning_rate(settings, step)}


def carry(weight: Array, remainder: Array, votes: Array, rate: Array) -> tuple[Array, Array]:
    """The moved weights of one tensor and what remains.

    Args:
      weight: int8. remainder: int16 in [-2^11, 2^11), units of 2^-12. votes: int32.
      rate: int32 scalar, of `learning_rate`.

    Returns:
      int8, saturated, and int16. A weight that is held at +-127 still hands over its whole units.
    """
    total = remainder.astype(jnp.int32) + jnp.sign(votes) * rate
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
    values: Mapping[str, Array],
) -> tuple[Array, Memory]:
    weight, remainder = carry(weight, memory["remainders"], votes.sums, values["rate"])
    return weight, {"remainders": remainder}


CARRY = Update(
    name="carry",
    memory=_memory,
    values=_values,
    move=_move,
    bytes_per_weight=2,
    settings_used=lambda es: {
        "learning rate": f"{es.learning_rate:g}, half-life {es.learning_rate_halflife:g} steps"
    },
    least_rate=LEARNING_RATE_MIN,
)
