"""An update: `carry` without its memory. Moves of less than a unit are rounded at random."""

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed, noise
from int_lm.method.update import Memory, Scalars, Tensor, Votes
from int_lm.method.update.carry import CARRY, FRACTION_BITS
from int_lm.settings import StrategySettings


def stochastic(weight: Array, votes: Array, rate: Array, random: Array) -> Array:
    """The weights of one tensor after a move of whole units, with the right mean.

    Args:
      weight: int8.
      votes: int32.
      rate: int32 scalar, in units of 2^-12 of a weight's unit.
      random: int32 of the weights' shape, uniform in [0, 2^12).
    """
    whole = (jnp.sign(votes) * rate + random) >> FRACTION_BITS
    return fixed.saturate(weight.astype(jnp.int32) + whole)


def _move(
    es: StrategySettings,
    tensor: Tensor,
    weight: Array,
    memory: Memory,
    votes: Votes,
    values: Scalars,
) -> tuple[Array, Memory]:
    clock = tensor.clock
    key = noise.tensor_key(clock.seed, clock.step, jnp.uint32(tensor.number))
    random = noise.rounding(key, weight.size, FRACTION_BITS).reshape(weight.shape)
    return stochastic(weight, votes.sums, values["rate"], random), memory


STOCHASTIC = CARRY._replace(memory=lambda spec: {}, move=_move)
