"""Updates: how votes move weights. An update is one value, in one file."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax import Array

from int_lm import plugins
from int_lm.method.clock import Clock
from int_lm.model.params import Spec
from int_lm.settings import Settings, StrategySettings

Values = Mapping[str, int]  # what the schedules say of one step, by name
Memory = dict[str, Array]  # what an update remembers of one tensor, by name


class Votes(NamedTuple):
    """The votes on one tensor.

    Attributes:
      sums: int32, of the tensor's shape, |sums| < 2^31.
      fitness_I: int8, the fitness of every pair, where the votes are sums of perturbations weighted
        by it, so that their variance under pure noise is known; None for other votes.
    """

    sums: Array
    fitness_I: Array | None


class Tensor(NamedTuple):
    """The tensor that is moved.

    Attributes:
      number: as noise knows it (`params.tensor_ids`). clock: of the run, for updates that draw.
    """

    spec: Spec
    number: int
    clock: Clock


class Update(NamedTuple):
    """How votes move weights: pure functions of integers.

    Attributes:
      name: as in the configuration.
      memory: (spec) -> initial arrays that the update keeps of one tensor, by name; each has the
        tensor's shape. A checkpoint holds them under these names. Tensors may differ in what is
        kept of them.
      values: (settings, step) -> numbers of that step's schedules, by name: int32 scalars in
        `move`, so that no step recompiles.
      move: (es, tensor, weight, memory, votes, values) -> (weight int8 in [-127, 127], memory).
        Elementwise but for sums over a tensor, and the same on one device and on many.
      bytes_per_weight: of the memory, for plans.
      settings_used: (es) -> what a model card says of the settings that had a part in it.
      least_rate: the smallest `es.learning_rate` that moves anything; 0 where it is not used.
    """

    name: str
    memory: Callable[[Spec], Memory]
    values: Callable[[Settings, int], Values]
    move: Callable[
        [StrategySettings, Tensor, Array, Memory, Votes, Mapping[str, Array]],
        tuple[Array, Memory],
    ]
    bytes_per_weight: int
    settings_used: Callable[[StrategySettings], dict[str, str]]
    least_rate: float = 0.0


def get(name: str) -> Update:
    """The update that a configuration names; errors as of `plugins.resolve`."""
    return plugins.resolve("update", name, Update)
