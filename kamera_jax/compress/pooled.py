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
from kamera_jax.compress.quantise import GROUP, Int8, Kivi, Quantised, Rotated
from kamera_jax.compress.stage import QUANTISE
from kamera_jax.errors import CodecError, PlacementError
from kamera_jax.handle import deleted, traced
from kamera_jax.identity import EXACT
from kamera_jax.kv import KV, KVSpec
from kamera_jax.placement import Placement
from pallas_kernels.chunk_attention.call import ScaledInt8, Unpack

NAMES = tuple((f"{part}_scale", f"{part}_step") for part in PARTS)
"""What lies in a pool under another name than in a chunk: scales of single features or heads, which a mesh splits as it
splits these (`kamera_jax.placement.SPLIT`). Those of int8 are of whole tokens, and keep their name."""

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

    def pack(self, kv: KV, length: jax.Array | int, placement: Placement | None = None) -> dict[str, jax.Array]:
        """The arrays of KV [L, T, ·], each with L leading, by name: ``rot``, ``free``, and their scales.

        Where a placement splits KV every device packs its own heads, and asks nothing of the others; but for int8,
        whose scale of a token is of all its values: one number a token and layer.
        """
        if self.storage == INT8:
            arrays = self._packed(kv, length)
            # A scale for every token along the last axis, where it takes no more than its own bytes on a TPU.
            return arrays | {"free_scale": arrays["free_scale"].swapaxes(1, 2)}
        if placement is None or not placement.split:
            return self._packed(kv, length)
        own = self.of_device(placement)
        layers, rows, _ = kv.rot.shape
        outs = placement.specs(self.arrays(layers, rows, kv.rot.dtype.name))
        return placement.on_each_device(own.pack, (kv, length), placement.specs((kv, length)), outs)

    def _packed(self, kv: KV, length: jax.Array | int) -> dict[str, jax.Array]:
        leaves = codec(self.storage).encode(kv, length, self.heads)
        return {self._renamed(name.removeprefix("kv."), 0): array for name, array in leaves.items()}

    def _renamed(self, name: str, known: int) -> str:
        """The other of a pair in `NAMES`, if a name is the one at ``known`` there."""
        if self.storage == INT8:
            return name
        return next((pair[1 - known] for pair in NAMES if pair[known] == name), name)

    def of_device(self, placement: Placement | None) -> "PackedPool":
        """How a device packs its own heads, and unpacks them."""
        if placement is None or not placement.split:
            return self
        parts = placement.parts
        return PackedPool(self.storage, self.rot // parts, self.free // parts, self.heads // parts)

    def arrays(self, layers: int, rows: int, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what `pack` gives of KV of L layers and T rows."""
        parts: Any = [jax.ShapeDtypeStruct((layers, rows, width), dtype) for width in (self.rot, self.free)]
        return jax.eval_shape(self.pack, KV(*parts), jax.ShapeDtypeStruct((), jnp.int32))

    def __call__(self, stored: Mapping[str, jax.Array], length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Unpack`."""
        leaves = {f"kv.{self._renamed(name, 1)}": array[None] for name, array in stored.items()}
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
    _quantiser(storage)
    form = PackedPool(storage, spec.rot_dim, spec.free_dim, spec.heads)
    codec(storage).check_shape(Shape(form.rot, form.free, form.heads))
    return form


def _quantiser(storage: str) -> Int8 | Kivi | Rotated:
    """What a storage of windows packs with.

    Raises:
        CodecError: see `packed_pool`.
    """
    named = codec(storage)
    check_packs(named)
    stages = named.packing
    if len(stages) != 1 or not isinstance(stages[0], Quantised) or not isinstance(stages[0].quantiser, STABLE):
        raise CodecError(
            f"the storage of a window is {storage!r:.80}; expected int8, kivi:B or saw:B alone, which are read a layer "
            "at a time, and give the same when what they gave is packed again"
        )
    return stages[0].quantiser


def check_split(form: PackedPool | None, placement: Placement | None) -> None:
    """Raise PlacementError unless what pools pack in one code, or with one scale, lies on one device of a mesh.

    The widths of a device's own heads have to be whole bytes of codes, and whole groups of what KIVI packs by token.
    """
    if form is None or placement is None or not placement.split or form.storage == INT8:
        return
    own = form.of_device(placement)
    quantiser = _quantiser(form.storage)
    by_token = isinstance(quantiser, Kivi) and not quantiser.by_channel
    broken = ""
    for part, width in (("keys", own.rot), ("values", own.free)):
        if width * quantiser.bits % 8:
            broken = f"{width} codes of {part}, which are no whole bytes"
    if by_token and own.free % GROUP:
        broken = f"{own.free} features of values, and {GROUP} are packed together"
    if by_token and own.heads == 1 and own.rot != own.free:
        broken = "one head whose values are not as wide as its keys, which it would take for latents"
    if broken:
        raise PlacementError(
            f"storage is {form.storage!r}, and each of the {placement.parts} devices that share heads would have "
            f"{broken}; take int8 or saw:4, or split heads over fewer devices"
        )


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
