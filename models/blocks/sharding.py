"""Where parameters lie on a mesh: a table from logical axes to mesh axes, and a sharding for each parameter."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from kamera_jax.kv import KVSpec
from kamera_jax.placement import Placement
from models.blocks.params import AXES, ParamInfo, Params, is_info

Rules = Mapping[str, str | tuple[str, ...] | None]
"""A name in `AXES` to the mesh axis, or the mesh axes together, that it is split over; other names are not split."""

RULES: Rules = {
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "experts": "expert",
    "embed": "fsdp",
}
"""What `models.load` takes by default: tensor parallel over the mesh axis ``model``, experts over ``expert``, and fully
sharded over ``fsdp``. Axes that the mesh does not have are left out, so that a mesh without any of them replicates."""


class MeshError(ValueError):
    """A mesh, or its rules, cannot place parameters."""


def param_shardings(declaration: Params, mesh: Mesh, rules: Rules | None = None) -> Params:
    """The sharding of every parameter of a declaration.

    An axis is not split where the mesh axes do not divide its size or its number of heads, nor where an earlier axis
    of the same parameter has taken one of them. What is split over no mesh axis is replicated. XLA divides the work
    accordingly, whatever axis types the mesh has: the shardings are those of the same mesh with
    `jax.sharding.AxisType.Auto`.

    Args:
        declaration: nested dict of `ParamInfo`.
        mesh: the devices.
        rules: what is split over which mesh axis; `RULES`, as far as the mesh has its axes, by default.

    Returns:
        A nested dict of `jax.sharding.NamedSharding`, structured as the declaration.

    Raises:
        MeshError: the mesh is none; the rules name a logical axis that there is not, or a mesh axis that the mesh does
            not have.
    """
    if not isinstance(mesh, Mesh):
        raise MeshError(
            f'mesh is {mesh!r}; expected a jax.sharding.Mesh, such as jax.make_mesh((jax.device_count(),), ("model",))'
        )
    table = _checked(mesh, rules)
    # A model runs as one program over the whole mesh; Explicit axes would ask every operation for its own sharding.
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return jax.tree.map(
        lambda info: NamedSharding(automatic, _spec(info, automatic, table)), declaration, is_leaf=is_info
    )


def on_device(declaration: Params, device: Any) -> Params:
    """The sharding of every parameter of a declaration where all of them lie on one device.

    Raises:
        MeshError: it is no device.
    """
    if not isinstance(device, jax.Device):
        raise MeshError(
            f"device is {device!r}; expected a jax.Device, such as jax.devices()[0], or for several of them a mesh"
        )
    return jax.tree.map(lambda _: SingleDeviceSharding(device), declaration, is_leaf=is_info)


def placement_of(spec: KVSpec, text: Params) -> Placement | None:
    """Where the KV of a language model lies whose parameters are on a mesh; None where they are on one device.

    KV heads are split over the mesh axes that the query heads are, where these divide them.

    Args:
        spec: what the KV is.
        text: the parameters of the language model.
    """
    layers = next(text[name] for name in ("layers", "moe_layers") if name in text)
    output = jax.tree.leaves(layers["attn"]["o"]["w"])[0]  # [L, heads, embed]
    where = getattr(output, "sharding", None)
    if not isinstance(where, NamedSharding) or not isinstance(where.mesh, Mesh) or where.mesh.size == 1:
        return None
    axes = where.spec[1] if len(where.spec) > 1 else None
    return Placement.of(spec, where.mesh, (axes,) if isinstance(axes, str) else tuple(axes or ()))


def _checked(mesh: Mesh, rules: Rules | None) -> dict[str, tuple[str, ...]]:
    """The mesh axes of every logical axis that the rules name."""
    given = RULES if rules is None else rules
    table = {name: (axes,) if isinstance(axes, str) else tuple(axes or ()) for name, axes in given.items()}
    if unknown := sorted(table.keys() - AXES.keys()):
        raise MeshError(f"the rules name the logical axes {unknown}; expected names among {', '.join(AXES)}")
    if rules is None:
        return {name: axes for name, axes in table.items() if {*axes} <= {*mesh.axis_names}}
    if missing := sorted({axis for axes in table.values() for axis in axes} - {*mesh.axis_names}):
        raise MeshError(f"the rules name the mesh axes {missing}; the mesh has {list(mesh.axis_names)}")
    return table


def _spec(info: ParamInfo, mesh: Mesh, table: Mapping[str, tuple[str, ...]]) -> PartitionSpec:
    used: set[str] = set()
    spec: list[Any] = []
    for size, name in zip(info.shape, info.axes, strict=True):
        axes: tuple[str, ...] = () if name is None else table.get(name, ())
        parts = math.prod(mesh.shape[axis] for axis in axes)
        whole = info.heads if name in ("heads", "kv_heads") and info.heads is not None else size
        if not axes or used & {*axes} or whole % parts:
            spec.append(None)
        else:
            spec.append(axes[0] if len(axes) == 1 else axes)
            used |= {*axes}
    return PartitionSpec(*spec)
