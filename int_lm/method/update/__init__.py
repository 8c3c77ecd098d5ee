"""Updates: how votes move weights. An update is one `Update` value, in one file."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.method.clock import Clock
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

Values = Mapping[str, int]  # schedule values of one step, by name
Scalars = Mapping[str, Array]  # the same as int32 scalars: arguments of the compiled step
Memory = dict[str, Array]  # arrays that an update keeps of one tensor, by name


class Votes(NamedTuple):
    """The votes on one tensor.

    Attributes:
      sums: int32, of the tensor's shape, |sums| < 2^31.
      fitness_I: fitness of every pair, int8, of plain votes (`Estimator.plain`): their variance
        under pure noise follows from it. None for all other votes.
    """

    sums: Array
    fitness_I: Array | None


class Tensor(NamedTuple):
    """The tensor whose weights are moved.

    Attributes:
      spec: its shape, role and layers.
      number: its number, on which its noise depends (`params.tensor_ids`).
      clock: seed and step of the run, for updates that draw random numbers.
    """

    spec: Spec
    number: int
    clock: Clock


class Update(NamedTuple):
    """How votes move weights: pure functions of integers.

    Attributes:
      memory: (spec) -> initial arrays that the update keeps of one tensor, by name; each has the
        tensor's shape. A checkpoint stores them under these names. Different tensors may have
        different arrays.
      values: (settings, step) -> schedule values of this step, by name. `move` gets them as
        `Scalars`, so that no step recompiles.
      move: (es, tensor, weight, memory, votes, values) -> (weight int8 in [-127, 127], memory).
        Elementwise, except for sums over a whole tensor, so that the result is the same on one
        device and on many.
      settings_used: (es) -> the settings that the update uses, by name, for the model card.
      least_rate: the smallest `es.learning_rate` that can move a weight; 0 if the update does not
        use it.
    """

    memory: Callable[[Spec], Memory]
    values: Callable[[Settings, int], Values]
    move: Callable[
        [StrategySettings, Tensor, Array, Memory, Votes, Scalars],
        tuple[Array, Memory],
    ]
    settings_used: Callable[[StrategySettings], dict[str, str]]
    least_rate: float = 0.0


def get(name: str) -> Update:
    """The update that a configuration names.

    Raises:
      UserError: as `plugins.resolve`.
    """
    return plugins.resolve("update", name, Update)
