"""Where KV lies on a mesh: the features of a KV head on one device, everything else on every device.

The one place that says it. A model on a mesh has a `Placement` (`kamera_jax.backbone.BackboneBase.placement`), and so
have its windows; what a chunk, a patch or a window is made of finds its sharding by its name: ``rot`` and ``free``, and
what packs these (`SPLIT`), are split, and all else (positions, patches, masks, token ids) is replicated. Relocating,
patching and writing KV then needs nothing of another device.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kamera_jax.errors import PlacementError
from kamera_jax.handle import traced
from kamera_jax.kv import KVSpec

Tree = TypeVar("Tree")

SPLIT = ("rot", "free", "rot_scale", *(f"{part}_{kind}" for part in ("rot", "free") for kind in ("step", "least")))
"""Names of the arrays whose last axis is that of the KV heads' features, or of the heads: KV or the codes that it is
packed in, and scales that belong to features or heads (`kamera_jax.compress.pooled`)."""


@dataclass(frozen=True)
class Placement:
    """How the KV of a model lies on the devices of a mesh.

    A pickle holds no devices: what is read back lies on the default one, and has None in this place.

    Attributes:
        mesh: the devices, with axes of `jax.sharding.AxisType.Auto`.
        tensor: the mesh axes that heads are split over, together; empty for none.
        heads: KV heads of the model; 1 where all heads read the same latents (MLA).
        split: whether the features of ``rot`` and ``free`` are split over ``tensor``: where the axes divide the KV
            heads. Else they lie whole on every device.
    """

    mesh: Mesh
    tensor: tuple[str, ...]
    heads: int
    split: bool

    @staticmethod
    def of(spec: KVSpec, mesh: Mesh, tensor: Iterable[str] = ("model",)) -> "Placement":
        """The placement of a model's KV on a mesh.

        Args:
            spec: what the KV is.
            mesh: the devices.
            tensor: the mesh axes that heads are split over.

        Raises:
            PlacementError: the mesh is none, or does not have the axes.
        """
        if not isinstance(mesh, Mesh):
            raise PlacementError(
                f'mesh is {mesh!r}; expected a jax.sharding.Mesh, such as jax.make_mesh((8,), ("model",))'
            )
        axes = (tensor,) if isinstance(tensor, str) else tuple(tensor)
        if missing := [axis for axis in axes if axis not in mesh.axis_names]:
            raise PlacementError(f"heads are split over the mesh axes {missing}; the mesh has {list(mesh.axis_names)}")
        automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        parts = math.prod(mesh.shape[axis] for axis in axes)
        return Placement(automatic, axes, spec.heads, parts > 1 and spec.heads % parts == 0)

    @property
    def parts(self) -> int:
        """How many devices share the heads of one sequence."""
        return math.prod(self.mesh.shape[axis] for axis in self.tensor)

    def __str__(self) -> str:
        """One line for people, which says where KV is not split, and why."""
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        over = " and ".join(self.tensor)
        if self.split:
            return f"mesh {mesh}; {self.heads} KV heads split in {self.parts} over {over}"
        if self.parts == 1:
            return f"mesh {mesh}; KV whole on every device, as no axis of the mesh splits heads"
        if self.heads == 1:
            return f"mesh {mesh}; KV whole on every device, as all heads read one KV head"
        return f"mesh {mesh}; KV whole on every device, as its {self.heads} KV heads do not divide by {self.parts}"

    def __deepcopy__(self, memo: Any) -> "Placement":
        return self

    def __reduce__(self) -> Any:
        return _nowhere, ()

    def specs(self, tree: Any) -> Any:
        """The `jax.sharding.PartitionSpec` of every array in a tree; see the module."""
        return jax.tree_util.tree_map_with_path(self._spec, tree)

    def shardings(self, tree: Any) -> Any:
        """The sharding of every array in a tree.

        Args:
            tree: of arrays, or of their shapes: a `WindowState`, `KV`, `Factors`, `ChunkPool`, `Segment`, a handle, or
                containers of them; with leading axes of a batch too, which are not split.

        Returns:
            A tree of `jax.sharding.NamedSharding`, structured as the given one.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf)), tree
        )

    def _spec(self, path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        last = path[-1] if path else None
        name = getattr(last, "name", getattr(last, "key", None))
        return self.of_features(jnp.ndim(leaf)).spec if name in SPLIT else PartitionSpec()

    def of_features(self, ndim: int) -> NamedSharding:
        """The sharding of an array of so many axes of which the last one is that of KV heads' features."""
        if not self.split:
            return NamedSharding(self.mesh, PartitionSpec())
        axes = self.tensor[0] if len(self.tensor) == 1 else self.tensor
        return NamedSharding(self.mesh, PartitionSpec(*[None] * (ndim - 1), axes))

    def is_elsewhere(self, array: Any) -> bool:
        """Whether an array is committed to other devices than the mesh's, so that no program can take it as it is."""
        if not isinstance(array, jax.Array) or traced(array) or not array.committed:
            return False
        return array.sharding.device_set != set(self.mesh.devices.flat)

    def of_queries(self, heads: int) -> tuple[str, ...]:
        """The mesh axes that so many query heads are split over, each beside the KV head it reads; empty for none."""
        beside = self.split or self.heads == 1
        return self.tensor if beside and self.parts > 1 and heads % self.parts == 0 else ()

    def own_columns(self, v: jax.Array, rot_dim: int) -> jax.Array:
        """Within `on_each_device`: of feature factors [..., Fr + Ff] the columns of this device's features.

        Args:
            v: whole, as every device has it.
            rot_dim: Fr, of all devices together.
        """
        if not self.split:
            return v
        index = jax.lax.axis_index(self.tensor)
        halves = []
        for start, width in ((0, rot_dim), (rot_dim, v.shape[-1] - rot_dim)):
            own = width // self.parts
            halves.append(jax.lax.dynamic_slice_in_dim(v, start + index * own, own, axis=-1))
        return jnp.concatenate(halves, axis=-1)

    def on_each_device(self, function: Callable[..., Any], arguments: Any, ins: Any, outs: Any) -> Any:
        """A function run by every device on its part of the arrays, by `jax.shard_map`.

        Kernels are not divided by XLA; and what is written by hand has no communication that is not seen.

        Args:
            function: of the arguments.
            arguments: a tuple.
            ins: a tree of their partition specs; see `specs`.
            outs: that of the results'.
        """
        arguments = jax.tree.map(jnp.asarray, arguments)
        return jax.shard_map(function, mesh=self.mesh, in_specs=ins, out_specs=outs)(*arguments)


def _nowhere() -> None:
    """What a pickled `Placement` is read back as."""
    return None


def constrained(tree: Tree, placement: Placement | None) -> Tree:
    """The same arrays, laid out by the placement: for compiled functions, whose outputs XLA may lay out otherwise."""
    if placement is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, placement.shardings(tree))


def placed(tree: Tree, placement: Placement | None) -> Tree:
    """The same arrays where the placement has them; what lies there is not moved.

    Arrays of the host and numbers are left as they are, and so is everything inside a transformation: what is compiled
    lays out its results itself.
    """
    if placement is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    wanted = jax.tree.leaves(placement.shardings(tree))
    away = [
        number
        for number, (leaf, where) in enumerate(zip(leaves, wanted, strict=True))
        if isinstance(leaf, jax.Array) and not traced(leaf) and leaf.ndim and not _lies(leaf, where)
    ]
    moved = jax.device_put([leaves[number] for number in away], [wanted[number] for number in away])
    for number, leaf in zip(away, moved, strict=True):
        leaves[number] = leaf
    return jax.tree.unflatten(structure, leaves)


def _lies(leaf: jax.Array, where: NamedSharding) -> bool:
    return leaf.sharding == where or leaf.sharding.is_equivalent_to(where, leaf.ndim)
