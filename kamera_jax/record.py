"""Chunks and patches off the device: plain fields, and numpy arrays by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import numpy as np

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.kv import KV, Factors, KVSpec, Sketch, SketchSpec
from kamera_jax.rope import RopeSpec

Plain = dict[str, Any]
"""Fields as JSON has them."""

Arrays = dict[str, np.ndarray]
"""Arrays by dotted name."""


@dataclass(frozen=True)
class Record:
    """A chunk, with its patch if it has one, in host memory.

    Attributes:
        chunk: its fields that are no arrays, as JSON has them.
        patch: those of the patch, or None.
        arrays: of both, by dotted name.
    """

    chunk: Plain
    patch: Plain | None
    arrays: Arrays

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @staticmethod
    def of(chunk: Chunk, patch: Patch | None) -> "Record":
        """A copy that shares nothing with the device."""
        about, arrays = split_chunk(chunk)
        record = Record(about, None, arrays)
        return record if patch is None else record.with_patch(patch)

    def with_patch(self, patch: Patch) -> "Record":
        """The same chunk with a copy of a patch of it, in place of the one it had."""
        about, arrays = split_patch(patch)
        own = {name: array for name, array in self.arrays.items() if not name.startswith(_PATCH_ARRAYS)}
        return Record(self.chunk, about, own | arrays)

    def unpacked(self) -> tuple[Chunk, Patch | None]:
        """The chunk and its patch, on the device."""
        chunk = join_chunk(self.chunk, self.arrays)
        return chunk, None if self.patch is None else join_patch(self.patch, self.arrays)


def split_chunk(chunk: Chunk) -> tuple[Plain, Arrays]:
    """A copy that shares nothing with the device."""
    named: dict[str, Any] = {"kv.rot": chunk.kv.rot, "kv.free": chunk.kv.free, "positions": chunk.positions}
    if chunk.inputs is not None:
        named |= {f"inputs.{name}": array for name, array in chunk.inputs.items()}
    about = {name: getattr(chunk, name) for name in _CHUNK} | {"inputs": chunk.inputs is not None}
    about["spec"] = None if chunk.spec is None else asdict(chunk.spec)
    return about, _copied(named)


def join_chunk(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Chunk:
    """What `split_chunk` took apart, on the device; arrays that are not a chunk's are left alone."""
    found = {name: jax.device_put(array) for name, array in arrays.items() if name.startswith(("kv.", "inputs."))}
    inputs = {name.removeprefix("inputs."): array for name, array in found.items() if name.startswith("inputs.")}
    plain: Plain = {name: about[name] for name in _CHUNK} | {"antecedents": tuple(about["antecedents"])}
    return Chunk(
        kv=KV(found["kv.rot"], found["kv.free"]),
        positions=jax.device_put(arrays["positions"]),
        inputs=inputs if about["inputs"] else None,
        spec=None if about["spec"] is None else spec_of(about["spec"]),
        **plain,
    )


def split_patch(patch: Patch) -> tuple[Plain, Arrays]:
    """A copy that shares nothing with the device."""
    leaves = {field.name: getattr(patch.factors, field.name) for field in fields(Factors)}
    named = {f"patch.{name}": leaf for name, leaf in leaves.items() if leaf is not None}
    named |= {"patch.mass": patch.mass, "patch.residual": patch.residual}
    if patch.sketch is not None:
        named |= {f"sketch.{name}": getattr(patch.sketch, name) for name in _SKETCH}
    about = {name: getattr(patch, name) for name in _PATCH}
    about["sketch"] = None if patch.sketch is None else asdict(patch.sketch.spec)
    return about, _copied(named)


def join_patch(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Patch:
    """What `split_patch` took apart, on the device; arrays that are not a patch's are left alone."""
    found = {name: jax.device_put(array) for name, array in arrays.items() if name.startswith(_PATCH_ARRAYS)}
    leaves = {field.name: f"patch.{field.name}" for field in fields(Factors)}
    plain: Plain = {name: about[name] for name in _PATCH} | {"antecedents": tuple(about["antecedents"])}
    sketch = None
    if (kept := about["sketch"]) is not None:
        spec = SketchSpec(tuple(kept["layers"]), tuple(kept["weights"]), kept["tokens"])
        sketch = Sketch(**{name: found[f"sketch.{name}"] for name in _SKETCH}, spec=spec)
    return Patch(
        factors=Factors(**{name: found[leaf] for name, leaf in leaves.items() if leaf in found}),
        mass=found["patch.mass"],
        residual=found["patch.residual"],
        sketch=sketch,
        **plain,
    )


def spec_of(plain: Mapping[str, Any]) -> KVSpec:
    """A KVSpec of its fields as JSON has them."""
    turned: Plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain["rope"].items()}
    identity = tuple((name, digest) for name, digest in plain["identity"])
    return KVSpec(**{**plain, "rope": RopeSpec(**turned), "identity": identity})


def _copied(named: Mapping[str, Any]) -> Arrays:
    return {name: np.array(array) for name, array in named.items()}


_CHUNK = (
    *("length", "advance", "model", "preamble", "antecedents", "turn", "codec", "conditioned"),
    *("key", "content", "lineage"),
)
_PATCH = ("chunk", "model", "antecedents", "length", "codec", "key", "lineage")
_PATCH_ARRAYS = ("patch.", "sketch.")
_SKETCH = ("queries", "outputs", "tokens")
