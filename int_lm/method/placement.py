"""Placement: members are spread over the devices of all processes, everything else lies on each.

A mesh has one axis, "population". Between devices cross, per step, and nothing else:

    scores     int32 [P]: gathered, for a fitness may depend on all of them
    votes      int32, one for each weight of the network: summed, and either on every device or,
               with `distributed.update: sharded`, each device's part of them, after whose update
               the int8 weights are gathered
    errors     for context tables, int8 [J, V], and their rows, int32: gathered, and every
               device moves all rows of its tables

All sums are sums of integers: how many devices there are changes no bit. Noise never crosses, for
every device computes what its members need.

Axes: P members, S streams, J tokens and pairs of a segment, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec as Spec

from int_lm.errors import UserError
from int_lm.settings import DistributedSettings, StrategySettings

AXIS = "population"
SHARDED_FROM = 1 << 24  # weights: the votes of fewer are summed as fast as they are split


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a run lie.

    Attributes:
      mesh: of all devices of the run, in one row.
      sharded: votes are split among the devices and each moves its part of the weights.
    """

    mesh: Mesh
    sharded: bool

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, Spec())

    @property
    def by_member(self) -> NamedSharding:
        """Of states, whose second axis is that of members."""
        return NamedSharding(self.mesh, Spec(None, AXIS))

    @property
    def by_stream(self) -> NamedSharding:
        return NamedSharding(self.mesh, Spec(AXIS))

    def of_votes(self, shape: Sequence[int]) -> NamedSharding:
        """Of votes of a shape, and of the weights while they are moved."""
        return NamedSharding(self.mesh, self.split(shape))

    def split(self, shape: Sequence[int]) -> Spec:
        """How votes of a shape are split: along the first axis that can be, or not at all."""
        for axis, size in enumerate(shape):
            if self.sharded and size % self.devices == 0:
                return Spec(*[None] * axis, AXIS)
        return Spec()


def choose(
    distributed: DistributedSettings, es: StrategySettings, weights: int
) -> Placement | None:
    """The placement of a run over the devices of all processes; None for a single device.

    Args:
      weights: number of weights of the network, without context tables.

    Raises:
      UserError: the streams cannot be shared evenly by the devices asked for.
    """
    processes = jax.process_count()
    here = jax.local_device_count()
    asked = distributed.devices or here
    if asked > here:
        raise UserError(f"distributed.devices is {asked}, but a process has {here} devices")
    fitting = [n for n in range(1, asked + 1) if es.streams % (n * processes) == 0]
    if not fitting or distributed.devices not in (0, fitting[-1]):
        raise UserError(
            f"{es.streams} streams (es.population / es.members_per_stream) cannot be shared evenly "
            f"by {processes} processes of {asked} devices; choose a population that is a multiple "
            f"of {processes * asked * es.members_per_stream}, or other --distributed.devices"
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
    """One line for the log."""
    kind = place.mesh.devices.flat[0].device_kind
    votes = "split among them" if place.sharded else "summed on each"
    return (
        f"devices: {place.devices} ({kind}) of {jax.process_count()} processes; votes are {votes}"
    )


def put(sharding: NamedSharding, leaf: Any) -> Array:
    """An array of which every process has all, laid out over the devices."""
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_host(tree: Any) -> Any:
    """Whole arrays, NumPy, on every process; all processes must ask for them."""
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def copies(tree: Any) -> list[Any]:
    """Of arrays that lie everywhere, the copies on this process's devices."""
    count = min(len(leaf.addressable_shards) for leaf in jax.tree.leaves(tree))
    return [
        jax.tree.map(lambda leaf, number=number: leaf.addressable_shards[number].data, tree)
        for number in range(count)
    ]


# -- Within a step ---------------------------------------------------------------------------------
# `axis` is AXIS where a step is divided among devices, None where it is computed in one piece.


def gathered(x: Array, axis: str | None) -> Array:
    """The parts of all devices, joined along the first axis."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def summed(x: Array, axis: str | None, spec: Spec | None = None) -> Array:
    """The sum over all devices, on each of them, or of each its part along the axis of `spec`."""
    if axis is None:
        return x
    if spec is None or axis not in spec:
        return jax.lax.psum(x, axis)
    return jax.lax.psum_scatter(x, axis, scatter_dimension=spec.index(axis), tiled=True)
