"""Pulls: weights are drawn back, towards 0 or towards those that a run started from.

Decoupled weight decay (Loshchilov and Hutter, ICLR 2019) in integers, towards one of two places:

    es.decay     0. Weights whose votes are mostly noise wander; without a pull they become so
                 large that gates and the residual stream saturate.
    es.anchor    the weights w0 that the run started from, against forgetting

In each step a weight w moves towards its place p, by a share of their distance, times the decay of
`es.schedule`. The move is rounded up or down at random, so that its mean is exact:

    w -= sign(w - p) floor((rate |w - p| + random) / 2^16)        random uniform in [0, 2^16)

A pull follows the moves of an update and becomes a part of that update. It works with every update.
"""

from collections.abc import Callable, Iterable

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed, noise
from int_lm.errors import require
from int_lm.method import schedules
from int_lm.method.update import Memory, Scalars, Tensor, Update, Values, Votes
from int_lm.model.params import Role, Spec
from int_lm.settings import Settings, StrategySettings

ANCHOR = "anchor"  # name of w0 in the memory, and of its rate among the schedule values
DECAY = "decay"  # name of the other rate there
RATE_BITS = 16
_OTHER = {ANCHOR: 0xA5A5A5A5, DECAY: 0x5A5A5A5A}  # keep these random numbers apart from others


def rate(settings: Settings, step: int, share: float) -> int:
    """The rate of `step` in units of 2^-16, for a share of the distance: 0 to 2^16."""
    es = settings.es
    decay = schedules.decay(es.schedule, step, es.learning_rate_halflife, settings.run.steps)
    return round(share * decay * (1 << RATE_BITS))


def _with_rate(name: str, update: Update, pull: str) -> Callable[[Settings, int], Values]:
    """The update's schedule values and the rate of the pull, whose share is the field es.`pull`."""

    def values(settings: Settings, step: int) -> Values:
        own = update.values(settings, step)
        _refuse(name, pull, own)
        return {**own, pull: rate(settings, step, getattr(settings.es, pull))}

    return values


def pulled(name: str, tensor: Tensor, weight: Array, place: Array | int, rate: Array) -> Array:
    """The weights of one tensor after a pull: int8.

    Args:
      name: `ANCHOR` or `DECAY`.
      tensor: its number, and the run's clock.
      weight: int8.
      place: int8 of the same shape, or 0.
      rate: int32 scalar, of `rate`: a product is at most 254 * 2^16 + 2^16 < 2^24.
    """
    clock = tensor.clock
    seed = clock.seed ^ jnp.uint32(_OTHER[name])
    key = noise.tensor_key(seed, clock.step, jnp.uint32(tensor.number))
    random = noise.rounding(key, weight.size, RATE_BITS).reshape(weight.shape)
    distance = weight.astype(jnp.int32) - jnp.asarray(place, jnp.int32)
    back = fixed.shift_floor(rate * jnp.abs(distance) + random, RATE_BITS)
    return fixed.saturate(weight.astype(jnp.int32) - jnp.sign(distance) * back)


def decayed(name: str, update: Update) -> Update:
    """The update of this name, followed by the pull towards 0; not of norm weights and biases.

    Raises:
      UserError: by `values`, if the update itself has the name `decay` there.
    """

    def move(
        es: StrategySettings,
        tensor: Tensor,
        weight: Array,
        memory: Memory,
        votes: Votes,
        values: Scalars,
    ) -> tuple[Array, Memory]:
        weight, memory = update.move(es, tensor, weight, memory, votes, values)
        if tensor.spec.role is Role.VECTOR:
            return weight, memory
        return pulled(DECAY, tensor, weight, 0, values[DECAY]), memory

    return update._replace(
        values=_with_rate(name, update, DECAY),
        move=move,
        settings_used=lambda es: (
            update.settings_used(es) | {"weight decay": f"{es.decay:g} of a weight a step"}
        ),
    )


def anchored(name: str, update: Update) -> Update:
    """The update of this name, followed by the pull towards the start.

    Its memory also has w0, which `evolve.initial` fills in.

    Raises:
      UserError: by `memory` and `values`, if the update itself has the name `anchor` there.
    """

    def memory(spec: Spec) -> Memory:
        own = update.memory(spec)
        _refuse(name, ANCHOR, own)
        return own | {ANCHOR: jnp.zeros(spec.full_shape, jnp.int8)}

    def move(
        es: StrategySettings,
        tensor: Tensor,
        weight: Array,
        memory: Memory,
        votes: Votes,
        values: Scalars,
    ) -> tuple[Array, Memory]:
        own = {name: array for name, array in memory.items() if name != ANCHOR}
        weight, own = update.move(es, tensor, weight, own, votes, values)
        start = memory[ANCHOR]
        return pulled(ANCHOR, tensor, weight, start, values[ANCHOR]), own | {ANCHOR: start}

    return update._replace(
        memory=memory,
        values=_with_rate(name, update, ANCHOR),
        move=move,
        settings_used=lambda es: (
            update.settings_used(es)
            | {"pull towards the start": f"{es.anchor:g} of the distance a step"}
        ),
    )


def _refuse(update: str, taken: str, names: Iterable[str]) -> None:
    require(
        taken not in names,
        f"the update {update} has a {taken!r} of its own, which es.{taken} adds; give it another "
        f"name, or leave out es.{taken}",
    )
