"""Chunks that lie packed in the pools of a window, and are unpacked while they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Chunk, describe
from kamera_jax.compress.codec import INT8, PARTS, STAGES, Shape, check_packs, check_storable, codec
from kamera_jax.compress.compressed import Compressed
from kamera_jax.compress.quantise import Int8, Kivi, Quantised, Rotated
from kamera_jax.compress.stage import QUANTISE
from kamera_jax.errors import CodecError
from kamera_jax.handle import deleted, traced
from kamera_jax.identity import EXACT
from kamera_jax.kv import KV, KVSpec
from pallas_kernels.chunk_attention.call import ScaledInt8, Unpack

STABLE = (Int8, Kivi, Rotated)
"""Quantisers that give the same values when they are given what they gave, to within the rounding of the KV's dtype."""


@dataclass(frozen=True)
class PackedPool:
    """How the pools of a window pack chunks, and how one layer of one chunk comes out: an `Unpack`.

    Attributes:
        storage: name of the codec.
        rot: Fr.
        free: Ff.
        heads: G; 1 for an MLA.
    """

    storage: str
    rot: int
    free: int
    heads: int

    @property
    def unpack(self) -> Unpack:
        """What kernels know, where they know it."""
        return ScaledInt8() if self.storage == INT8 else self

    def pack(self, kv: KV, length: jax.Array | int) -> dict[str, jax.Array]:
        """The arrays of KV [L, T, ·], each with L leading, by name: ``rot``, ``free``, and their scales."""
        leaves = codec(self.storage).encode(kv, length, self.heads)
        arrays = {name.removeprefix("kv."): array for name, array in leaves.items()}
        if self.storage == INT8:
            # A scale for every token along the last axis, where it takes no more than its own bytes on a TPU.
            arrays["free_scale"] = arrays["free_scale"].swapaxes(1, 2)
        return arrays

    def arrays(self, layers: int, rows: int, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what `pack` gives of KV of L layers and T rows."""
        parts: Any = [jax.ShapeDtypeStruct((layers, rows, width), dtype) for width in (self.rot, self.free)]
        return jax.eval_shape(self.pack, KV(*parts), jax.ShapeDtypeStruct((), jnp.int32))

    def __call__(self, stored: Mapping[str, jax.Array], length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Unpack`."""
        leaves = {f"kv.{name}": array[None] for name, array in stored.items()}
        kv = codec(self.storage).decode(leaves, length, Shape(self.rot, self.free, self.heads), "float32")
        return kv.rot[0], kv.free[0]


def packed_pool(storage: str, spec: KVSpec) -> PackedPool | None:
    """How pools pack chunks of a model by a codec; None for ``"exact"``, as they are.

    Raises:
        CodecError: there is no such codec; it chooses rows; a layer's KV does not come back from that layer alone; or
            what it gave comes back as something else when it is packed again, as chunks in a window are.
    """
    if storage == EXACT:
        return None
    named = codec(storage)
    check_packs(named)
    stages = named.packing
    if len(stages) != 1 or not isinstance(stages[0], Quantised) or not isinstance(stages[0].quantiser, STABLE):
        raise CodecError(
            f"the storage of a window is {storage!r:.80}; expected int8, kivi:B or saw:B alone, which are read a layer "
            "at a time, and give the same when what they gave is packed again"
        )
    form = PackedPool(storage, spec.rot_dim, spec.free_dim, spec.heads)
    named.check_shape(Shape(form.rot, form.free, form.heads))
    return form


def kept_in(chunk: Chunk, storage: str) -> Chunk:
    """The chunk that a window of a storage keeps in place of one: what packing it gives back; itself where it is that.

    Raises:
        CodecError: another quantiser packed it before, or it has values that the storage cannot store.
    """
    parts = chunk.codec.split("+")
    if storage == EXACT or parts[-1] == storage or deleted(chunk.kv):  # what was donated is refused where it comes in
        return chunk
    by = codec(storage)
    other = [part for part in parts if part != EXACT and _quantises(part)]
    if other:
        raise CodecError(
            f"{describe(chunk)} has codec {chunk.codec!r}, and the window keeps its chunks in {storage!r}: packed once "
            f"more it would lose more; give it as it was encoded, or have a window whose storage is {other[0]!r}"
        )
    if not traced(*jax.tree.leaves(chunk.kv)):
        for part in PARTS:
            check_storable(np.asarray(getattr(chunk.kv, part)), chunk.length, f"kv.{part}", by)
    return Compressed.of(chunk, storage).restore()


def _quantises(stage: str) -> bool:
    """Whether a part of a chunk's codec packed its numbers in fewer bits."""
    known = STAGES.get(stage.partition(":")[0])
    return known is not None and known.kind == QUANTISE
