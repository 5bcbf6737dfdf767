"""What `jax.export` needs to write functions of handles down: how the static part of each is written, as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from jax import export

from kamera_jax.backbone import Output
from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.compress.pooled import PackedPool
from kamera_jax.errors import PlacementError
from kamera_jax.kv import KV, ChunkPool, Factors, Segment, Sketch, SketchSpec, WindowState
from kamera_jax.placement import Placement
from kamera_jax.record import spec_of
from kamera_jax.source import Source
from kamera_jax.window.window import Window
from pallas_kernels.chunk_attention.call import ScaledInt8

_HANDLES = (Chunk, Entry, Patch, Window)
_ARRAYS = (KV, Factors, ChunkPool, WindowState, Segment, Sketch, Source, Output)


def _written(static: Any) -> bytes:
    return json.dumps(static, default=_plain).encode()


def _plain(value: Any) -> Any:
    """A dataclass by its name and its fields.

    Raises:
        PlacementError: it is where a window lies on a mesh.
    """
    if isinstance(value, Placement):
        raise PlacementError(
            f"the window lies on a mesh ({value}), and what jax.export writes has no devices; export a function of "
            "the window's state, or of a window on one device"
        )
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{value!r} is no static part of a handle")
    return {type(value).__name__: asdict(value)}


def _read(data: bytearray | bytes) -> Any:
    return _tupled(json.loads(bytes(data)))


def _tupled(value: Any) -> Any:
    """What JSON has made lists of, and of dataclasses mappings."""
    if isinstance(value, list):
        return tuple(map(_tupled, value))
    if isinstance(value, dict):
        ((name, plain),) = value.items()
        return _DATACLASSES[name](plain)
    return value


def _sketch_spec(plain: dict[str, Any]) -> SketchSpec:
    return SketchSpec(**{field.name: _tupled(plain[field.name]) for field in fields(SketchSpec)})


_DATACLASSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "KVSpec": spec_of,
    "SketchSpec": _sketch_spec,
    "PackedPool": lambda plain: PackedPool(**plain),
    "ScaledInt8": lambda plain: ScaledInt8(),
}

for kind in (*_HANDLES, *_ARRAYS):
    export.register_pytree_node_serialization(
        kind,
        serialized_name=f"kamera_jax.{kind.__name__}",
        serialize_auxdata=_written,
        deserialize_auxdata=_read,
    )
