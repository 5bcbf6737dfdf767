"""Chunks with their patches off the device: plain fields, and numpy arrays by name."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.kv import KV, Factors, Sketch, SketchSpec


@dataclass(frozen=True)
class Record:
    """A chunk, with its patch if it has one, in host memory.

    Attributes:
        chunk: its fields that are no arrays, as JSON has them.
        patch: those of the patch, or None.
        arrays: of both, by dotted name.
    """

    chunk: dict[str, Any]
    patch: dict[str, Any] | None
    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @staticmethod
    def of(chunk: Chunk, patch: Patch | None) -> "Record":
        """A copy that shares nothing with the device."""
        named: dict[str, Any] = {"kv.rot": chunk.kv.rot, "kv.free": chunk.kv.free, "positions": chunk.positions}
        if chunk.inputs is not None:
            named |= {f"inputs.{name}": array for name, array in chunk.inputs.items()}
        if patch is not None:
            named |= {f"patch.{field.name}": getattr(patch.factors, field.name) for field in fields(Factors)}
            named |= {"patch.mass": patch.mass, "patch.residual": patch.residual}
            if patch.sketch is not None:
                named |= {f"sketch.{name}": getattr(patch.sketch, name) for name in _SKETCH}
        plain = {name: getattr(chunk, name) for name in _CHUNK} | {"inputs": chunk.inputs is not None}
        about = None if patch is None else {name: getattr(patch, name) for name in _PATCH} | _about(patch.sketch)
        return Record(plain, about, {name: np.array(array) for name, array in named.items()})

    def unpacked(self) -> tuple[Chunk, Patch | None]:
        """The chunk and its patch, on the device."""
        arrays = {name: jnp.asarray(array) for name, array in self.arrays.items()}
        about = {**self.chunk, "antecedents": tuple(self.chunk["antecedents"])}
        inputs = {name.removeprefix("inputs."): array for name, array in arrays.items() if name.startswith("inputs.")}
        about["inputs"] = inputs if about["inputs"] else None
        chunk = Chunk(kv=KV(arrays["kv.rot"], arrays["kv.free"]), positions=arrays["positions"], **about)
        if self.patch is None:
            return chunk, None
        factors = Factors(**{field.name: arrays[f"patch.{field.name}"] for field in fields(Factors)})
        about = {**self.patch, "antecedents": tuple(self.patch["antecedents"])}
        if (kept := about.pop("sketch")) is not None:
            spec = SketchSpec(tuple(kept["layers"]), tuple(kept["weights"]), kept["tokens"])
            about["sketch"] = Sketch(**{name: arrays[f"sketch.{name}"] for name in _SKETCH}, spec=spec)
        return chunk, Patch(factors=factors, mass=arrays["patch.mass"], residual=arrays["patch.residual"], **about)


def _about(sketch: Sketch | None) -> dict[str, Any]:
    return {"sketch": None if sketch is None else asdict(sketch.spec)}


_CHUNK = ("length", "advance", "key", "model", "preamble", "antecedents", "turn")
_PATCH = ("chunk", "model", "antecedents", "length")
_SKETCH = ("queries", "outputs", "tokens")
