"""A mesh over the local devices and the placements on it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functrain import _compat
from functrain.config import ConfigError


def device_mesh(count: int, batch_size: int) -> Mesh:
    """A mesh with one axis, `data`, over `count` local devices (0: all).

    Raises:
      ConfigError: there are fewer devices, or the batch cannot be cut evenly.
    """
    local = jax.local_devices()
    if count > len(local):
        raise ConfigError(f"train.devices: found {count}; this machine has {len(local)} {local[0].platform}")
    devices = local[: count or len(local)]
    if batch_size % len(devices):
        raise ConfigError(f"data.batch_size: {batch_size} examples cannot be cut evenly over {len(devices)} devices")
    return _compat.data_mesh(devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with a copy on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def batch_placer(mesh: Mesh) -> Callable[[Any], Any]:
    """`place(batch)`, traced: the batch cut over the devices along its first axis; itself on a single device."""
    if mesh.size == 1:
        return lambda batch: batch
    cut = NamedSharding(mesh, PartitionSpec("data"))

    def place(batch):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, cut) if x.ndim else x, batch)

    return place
