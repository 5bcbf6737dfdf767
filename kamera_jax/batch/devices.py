"""Episodes spread over the devices of one machine: each runs its share of a batch, and none waits for another."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EPISODES = "episodes"


def mesh_of(devices: int | None = None) -> Mesh | None:
    """A mesh over so many devices, all by default; None for a single one, which needs no mesh.

    Raises:
        ValueError: there are fewer, or none are asked for.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise ValueError(f"there are {len(available)} devices here; got {count}")
    return Mesh(available[:count], (EPISODES,)) if count > 1 else None


def spread(run: Callable[..., Any], mesh: Mesh | None, batched: tuple[bool, ...]) -> Callable[..., Any]:
    """The same function, each device given its share of the ``batched`` arguments' leading axis, and of the result's.

    The axis must be a multiple of the devices.
    """
    if mesh is None:
        return run
    specs = tuple(PartitionSpec(EPISODES) if each else PartitionSpec() for each in batched)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(EPISODES), check_vma=False)


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """The same arrays, a copy on every device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
