"""The anchor: weights are pulled back towards those that a run started from, against forgetting.

Decoupled weight decay (Loshchilov and Hutter, ICLR 2019) towards other weights than 0, in integers.
In each step a weight w moves towards its start w0, by `es.anchor` times their distance, times the
decay of `es.schedule`. The move is rounded up or down at random, so that its mean is exact:

    w -= sign(w - w0) floor((rate |w - w0| + random) / 2^16)      random uniform in [0, 2^16)

The pull follows the moves of an update and becomes a part of that update. It works with every
update.
"""

from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed, noise
from int_lm.errors import require
from int_lm.method import schedules
from int_lm.method.update import Memory, Scalars, Tensor, Update, Values, Votes
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

ANCHOR = "anchor"  # name of w0 in the memory, and of the rate among the schedule values
RATE_BITS = 16
_OTHER = 0xA5A5A5A5  # keeps these random numbers apart from those of an update


def rate(settings: Settings, step: int) -> int:
    """The rate of `step` in units of 2^-16: 0 to 2^16."""
    es = settings.es
    decay = schedules.decay(es.schedule, step, es.learning_rate_halflife, settings.run.steps)
    return round(es.anchor * decay * (1 << RATE_BITS))


def pulled(tensor: Tensor, weight: Array, start: Array, rate: Array) -> Array:
    """The weights of one tensor after the pull: int8.

    Args:
      tensor: its number, and the run's clock.
      weight: int8.
      start: int8, w0, of the same shape.
      rate: int32 scalar, of `rate`: a product is at most 254 * 2^16 + 2^16 < 2^24.
    """
    clock = tensor.clock
    key = noise.tensor_key(clock.seed ^ jnp.uint32(_OTHER), clock.step, jnp.uint32(tensor.number))
    random = noise.rounding(key, weight.size, RATE_BITS).reshape(weight.shape)
    distance = weight.astype(jnp.int32) - start.astype(jnp.int32)
    back = fixed.shift_floor(rate * jnp.abs(distance) + random, RATE_BITS)
    return fixed.saturate(weight.astype(jnp.int32) - jnp.sign(distance) * back)


def anchored(name: str, update: Update) -> Update:
    """The update of this name, followed by the pull.

    Its memory also has w0, which `evolve.initial` fills in.

    Raises:
      UserError: by `memory` and `values`, if the update itself has the name `anchor` there.
    """

    def refuse(names: Iterable[str]) -> None:
        require(
            ANCHOR not in names,
            f"the update {name} has a {ANCHOR!r} of its own, which es.anchor adds; give it "
            "another name, or leave out es.anchor",
        )

    def memory(spec: Spec) -> Memory:
        own = update.memory(spec)
        refuse(own)
        return own | {ANCHOR: jnp.zeros(spec.full_shape, jnp.int8)}

    def values(settings: Settings, step: int) -> Values:
        own = update.values(settings, step)
        refuse(own)
        return {**own, ANCHOR: rate(settings, step)}

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
        return pulled(tensor, weight, start, values[ANCHOR]), own | {ANCHOR: start}

    return update._replace(
        memory=memory,
        values=values,
        move=move,
        settings_used=lambda es: (
            update.settings_used(es)
            | {"pull towards the start": f"{es.anchor:g} of the distance a step"}
        ),
    )
