"""Chunks and patches off the device: plain fields, and numpy arrays by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import numpy as np

from kamera_jax.chunk import Chunk, Patch
from kamera_jax.handle import columns_of
from kamera_jax.kv import KV, Factors, KVSpec, Segment, Sketch, SketchSpec
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
    def of(chunk: Chunk, patch: Patch | None = None) -> "Record":
        """A copy that shares nothing with the device."""
        about, arrays = split_chunk(chunk)
        if patch is None:
            return Record(about, None, arrays)
        about_patch, of_patch = split_patch(patch)
        return Record(about, about_patch, arrays | of_patch)

    def apart(self) -> tuple["Record", "PatchRecord | None"]:
        """The chunk alone, and its patch if it has one."""
        if self.patch is None:
            return self, None
        of_patch = {name: array for name, array in self.arrays.items() if name.startswith(_PATCH_ARRAYS)}
        own = {name: array for name, array in self.arrays.items() if name not in of_patch}
        return Record(self.chunk, None, own), PatchRecord(self.patch, of_patch)

    def unpacked(self) -> tuple[Chunk, Patch | None]:
        """The chunk and its patch, on the device."""
        chunk = join_chunk(self.chunk, self.arrays)
        return chunk, None if self.patch is None else join_patch(self.patch, self.arrays)


@dataclass(frozen=True)
class PatchRecord:
    """A patch in host memory.

    Attributes:
        about: its fields that are no arrays, as JSON has them.
        arrays: by dotted name.
    """

    about: Plain
    arrays: Arrays

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @staticmethod
    def of(patch: Patch) -> "PatchRecord":
        """A copy that shares nothing with the device."""
        return PatchRecord(*split_patch(patch))

    def unpacked(self) -> Patch:
        """The patch, on the device."""
        return join_patch(self.about, self.arrays)


def split_chunk(chunk: Chunk) -> tuple[Plain, Arrays]:
    """A copy that shares nothing with the device."""
    named: dict[str, Any] = {"kv.rot": chunk.kv.rot, "kv.free": chunk.kv.free, "positions": chunk.positions}
    if chunk.counts is not None:
        named[_COUNTS] = chunk.counts
    about = {name: getattr(chunk, name) for name in _CHUNK} | {"inputs": False}
    source = chunk.source
    if source is not None and chunk.keeps_all_rows:
        named |= {f"{_INPUTS}{name}": array for name, array in source.inputs.items()}
        about["inputs"] = True
    elif source is not None:  # under names of its own: who knows nothing of them reads a chunk without its source
        named |= {f"{_SOURCE}{_INPUTS}{name}": array for name, array in source.inputs.items()}
        named[f"{_SOURCE}positions"] = source.positions
        about["source"] = {"length": int(source.length)}
    spec = chunk.spec
    about["spec"] = None if spec is None else asdict(spec) | {"rope": spec.rope.plain}
    return about, _copied(named)


def join_chunk(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Chunk:
    """What `split_chunk` took apart, on the device; arrays that are not a chunk's are left alone."""
    plain: Plain = {name: about[name] for name in _CHUNK} | {"antecedents": tuple(about["antecedents"])}
    positions = jax.device_put(arrays["positions"])
    source = None
    if about["inputs"]:
        source = Segment(_under(_INPUTS, arrays), positions, np.int32(plain["length"]), plain["advance"])
    elif (apart := about.get("source")) is not None:
        inputs = _under(f"{_SOURCE}{_INPUTS}", arrays)
        tokens = jax.device_put(arrays[f"{_SOURCE}positions"])
        source = Segment(inputs, tokens, np.int32(apart["length"]), plain["advance"])
    return Chunk(
        kv=KV(jax.device_put(arrays["kv.rot"]), jax.device_put(arrays["kv.free"])),
        positions=positions,
        source=source,
        spec=None if about["spec"] is None else spec_of(about["spec"]),
        counts=jax.device_put(arrays[_COUNTS]) if _COUNTS in arrays else None,
        **plain,
    )


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays whose names begin so, on the device, by the rest of their names."""
    return {
        name.removeprefix(prefix): jax.device_put(array) for name, array in arrays.items() if name.startswith(prefix)
    }


def split_patch(patch: Patch) -> tuple[Plain, Arrays]:
    """A copy that shares nothing with the device."""
    leaves = {field.name: getattr(patch.factors, field.name) for field in fields(Factors)}
    named = {f"patch.{name}": leaf for name, leaf in leaves.items() if leaf is not None}
    named |= {"patch.mass": columns_of(patch, "mass"), "patch.residual": patch.residual}
    if patch.sketch is not None:
        named |= {f"sketch.{name}": getattr(patch.sketch, name) for name in _SKETCH}
    about = {name: getattr(patch, name) for name in _PATCH}
    about["sketch"] = None if patch.sketch is None else asdict(patch.sketch.spec)
    return about, _copied(named)


def join_patch(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Patch:
    """What `split_patch` took apart, on the device; arrays that are not a patch's are left alone."""
    on_device = {name: jax.device_put(array) for name, array in arrays.items() if name.startswith(_PATCH_ARRAYS)}
    leaves = {field.name: f"patch.{field.name}" for field in fields(Factors)}
    plain: Plain = {name: about[name] for name in _PATCH} | {"antecedents": tuple(about["antecedents"])}
    sketch = None
    if (kept := about["sketch"]) is not None:
        spec = SketchSpec(tuple(kept["layers"]), tuple(kept["weights"]), kept["tokens"])
        sketch = Sketch(**{name: on_device[f"sketch.{name}"] for name in _SKETCH}, spec=spec)
    return Patch(
        factors=Factors(**{name: on_device[leaf] for name, leaf in leaves.items() if leaf in on_device}),
        mass=on_device["patch.mass"],
        residual=on_device["patch.residual"],
        sketch=sketch,
        **plain,
    )


def spec_of(plain: Mapping[str, Any]) -> KVSpec:
    """A KVSpec of its fields as JSON has them."""
    turned: Plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain["rope"].items()}
    identity = tuple((name, digest) for name, digest in plain["identity"])
    return KVSpec(**{**plain, "rope": RopeSpec(**turned), "identity": identity})


def library_repr(self: Any) -> str:
    """``__repr__`` of a `kamera_jax.ChunkLibrary`: of what it has read, so that nothing is read for it."""
    counts = ", ".join(f"{len(self._index.keys(kind))} {kind}" for kind in ("chunks", "patches"))
    return f"<ChunkLibrary {str(self.root)!r}, mode={self.mode!r}: {counts} in {len(self._index.packs())} packs>"


def _copied(named: Mapping[str, Any]) -> Arrays:
    return {name: np.array(array) for name, array in named.items()}


_INPUTS = "inputs."
_SOURCE = "source."
_COUNTS = "counts"
_CHUNK = (
    *("length", "advance", "model", "preamble", "antecedents", "turn", "codec", "conditioned"),
    *("key", "content", "lineage"),
)
_PATCH = ("chunk", "model", "antecedents", "length", "codec", "key", "lineage")
_PATCH_ARRAYS = ("patch.", "sketch.")
_SKETCH = ("queries", "outputs", "tokens")
