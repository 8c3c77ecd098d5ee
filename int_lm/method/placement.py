"""Placement: the members, and the streams that they read, are divided among all devices.

Every device has a copy of everything else, except with `distributed.update: sharded`, where the
update's memory is divided too. The mesh has one axis, "population": the devices of all processes.
In each step the devices exchange only this:

    scores       int32 [P]: gathered, because a fitness may depend on all of them
    votes        int32, one for each weight of the network: summed. Every device gets all sums.
                 With `distributed.update: sharded` it gets only its part of them. Then each device
                 updates its part of the weights, and the int8 weights are gathered
    row errors   for context tables, int8 [J, V], and row indices, int32 [J]: gathered; every device
                 updates its copy of the context tables

All sums are sums of integers, so the number of devices changes no bit. Noise is not exchanged:
every device computes the noise of its members.

Axes: P members, S streams, J tokens and pairs of a segment, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from int_lm.errors import UserError, counted
from int_lm.limits import together
from int_lm.settings import DistributedSettings, StrategySettings

AXIS = "population"
SHARDED_FROM = 1 << 24  # weights; with fewer, dividing the update is no faster


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run, and how its arrays are divided among them.

    Attributes:
      mesh: all devices of the run, along the one axis "population".
      sharded: whether votes are divided among the devices, so that each updates its part of the
        weights.
    """

    mesh: Mesh
    sharded: bool

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.mesh.size

    @property
    def everywhere(self) -> NamedSharding:
        """For arrays of which every device has a whole copy."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_member(self) -> NamedSharding:
        """For recurrent states [L, P, ...]: divided along the axis of members."""
        return NamedSharding(self.mesh, PartitionSpec(None, AXIS))

    @property
    def by_stream(self) -> NamedSharding:
        """For arrays whose first axis is that of streams: divided along it."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def of_votes(self, shape: Sequence[int]) -> NamedSharding:
        """For votes of this shape, the update's memory, and weights during the update."""
        return NamedSharding(self.mesh, self.split(shape))

    def split(self, shape: Sequence[int]) -> PartitionSpec:
        """How votes of this shape are divided: along the first axis that the devices divide.

        They are not divided if there is no such axis or `sharded` is False.
        """
        for axis, size in enumerate(shape):
            if self.sharded and size % self.devices == 0:
                return PartitionSpec(*[None] * axis, AXIS)
        return PartitionSpec()


def choose(
    distributed: DistributedSettings, es: StrategySettings, weights: int
) -> Placement | None:
    """The placement of a run over the devices of all processes; None for a single device.

    Args:
      distributed: number of devices of each process (0: as many as divide the streams), and whether
        the update is divided.
      es: its streams are divided evenly among the devices.
      weights: number of weights of the network, without context tables.

    Raises:
      UserError: a process has fewer devices than the configuration asks for, or the streams cannot
        be divided evenly among them.
    """
    processes = jax.process_count()
    here = jax.local_device_count()
    asked = distributed.devices or here
    if asked > here:
        raise UserError(
            f"distributed.devices is {asked}, but a process has {counted(here, 'device')}"
        )
    parts = es.population // together(es)
    fitting = [n for n in range(1, asked + 1) if parts % (n * processes) == 0]
    if not fitting or distributed.devices not in (0, fitting[-1]):
        raise UserError(
            f"{es.streams} streams (es.population / es.members_per_stream), and pairs of members, "
            "cannot be shared evenly by "
            f"{counted(processes, 'process', 'processes')} of "
            f"{counted(asked, 'device')}; choose a population that is a multiple of "
            f"{processes * asked * together(es)}, or other --distributed.devices"
        )
    chosen = [
        device
        for process in range(processes)
        for device in sorted(
            (d for d in jax.devices() if d.process_index == process), key=lambda d: d.id
        )[: fitting[-1]]
    ]
    split = {"auto": weights >= SHARDED_FROM, "replicated": False, "sharded": True}
    if len(chosen) == 1:
        return None
    mesh = Mesh(np.array(chosen), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return Placement(mesh, split[distributed.update])


def description(place: Placement) -> str:
    """The devices and how votes are summed, in one line for the log."""
    kind = place.mesh.devices.flat[0].device_kind
    votes = "split among them" if place.sharded else "summed on each"
    processes = counted(jax.process_count(), "process", "processes")
    return f"devices: {place.devices} ({kind}) of {processes}; votes are {votes}"


def put(sharding: NamedSharding, leaf: Any) -> Array:
    """Lay an array out over the devices; every process passes the whole array."""
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_host(tree: Any) -> Any:
    """The whole arrays of a tree, as NumPy arrays on every process; all processes must call it."""
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def copies(tree: Any) -> list[Any]:
    """The copies on this process's devices, of a tree of arrays that every device has whole."""
    count = min(len(leaf.addressable_shards) for leaf in jax.tree.leaves(tree))
    return [
        jax.tree.map(lambda leaf, number=number: leaf.addressable_shards[number].data, tree)
        for number in range(count)
    ]


# -- Within a step ---------------------------------------------------------------------------------
# `axis` is AXIS if the step is divided among devices, None if a single device computes it.


def gathered(x: Array, axis: str | None) -> Array:
    """The parts of all devices, joined along the first axis, on every device."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def summed(x: Array, axis: str | None, spec: PartitionSpec | None = None) -> Array:
    """The sum over all devices: whole on every device, or divided along the axis of `spec`."""
    if axis is None:
        return x
    if spec is None or axis not in spec:
        return jax.lax.psum(x, axis)
    return jax.lax.psum_scatter(x, axis, scatter_dimension=spec.index(axis), tiled=True)


class InOrder:
    """Gatherings and sums over all devices that wait for each other.

    Between processes only their order tells collectives of one shape apart. If several were under
    way together, the sum of one tensor could meet that of another.

    Args:
      axis: name of the mesh axis of the devices; None for a single device.
    """

    def __init__(self, axis: str | None):
        self._axis = axis
        self._after = jnp.int32(0)

    def gathered(self, x: Array) -> Array:
        """`gathered`; no entry is the least number of its dtype."""
        return self._next(x, lambda x: gathered(x, self._axis))

    def summed(self, x: Array, spec: PartitionSpec | None) -> Array:
        """`summed`; no sum is the least number of its dtype."""
        return self._next(x, lambda x: summed(x, self._axis, spec))

    def _next(self, x: Array, collective: Callable[[Array], Array]) -> Array:
        if self._axis is None:
            return x
        result = collective(x + self._after.astype(x.dtype))
        # it is 0, but XLA does not know that, and has to wait for the result
        least = np.iinfo(result.dtype).min
        self._after = (result.ravel()[0] == least).astype(jnp.int32)
        return result
