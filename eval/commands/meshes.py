"""``--mesh``: the devices that a model is spread over, by axis, as in ``model=2,fsdp=4``."""

import math
from typing import Any


class MeshOptionError(ValueError):
    """A mesh that cannot be: it does not parse, nothing is split over an axis, or there are fewer devices here."""


def sizes(text: str) -> dict[str, int]:
    """The axes of a mesh and their sizes, in order; nothing here imports JAX.

    Raises:
        MeshOptionError: it is not axes and sizes, or an axis comes twice.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (each.strip() for each in part.partition("="))
        if not (equals and name.isidentifier() and size.isascii() and size.isdigit() and int(size)):
            raise MeshOptionError(f"expected axes and their sizes, as in model=2,fsdp=4; got {text!r}")
        if name in found:
            raise MeshOptionError(f"expected each axis once; got {text!r}, with {name} twice")
        found[name] = int(size)
    return found


def checked(text: str) -> str:
    """The same text, if it is a mesh's; see `sizes`."""
    return ",".join(f"{name}={size}" for name, size in sizes(text).items())


def mesh_of(text: str | None) -> Any:
    """The ``jax.sharding.Mesh`` over the first devices of this machine; None for None.

    Raises:
        MeshOptionError: it does not parse, no parameter is split over one of its axes, or there are fewer devices.
    """
    if text is None:
        return None
    import jax

    from models.blocks.sharding import RULES

    given = sizes(text)
    axes = sorted({axis for axis in RULES.values() if isinstance(axis, str)})
    if unknown := [name for name in given if name not in axes]:
        raise MeshOptionError(
            f"--mesh {text}: nothing is split over {', '.join(unknown)}; parameters are split over {', '.join(axes)}, "
            "as in --mesh model=2"
        )
    count = math.prod(given.values())
    devices = jax.devices()
    if count > len(devices):
        raise MeshOptionError(
            f"--mesh {text} takes {count} devices; there are {len(devices)} here ({devices[0].platform}). On a CPU "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} simulates them"
        )
    return jax.make_mesh(tuple(given.values()), tuple(given), devices=devices[:count])
