"""What lies in host memory: chunks as they are or packed by a codec, what a chunk is run from again, patches."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.chunk import Chunk, source_of
from kamera_jax.compress.codec import PARTS, Shape, check_storable
from kamera_jax.compress.compressed import Compressed, codec_of, packing
from kamera_jax.errors import CodecError
from kamera_jax.identity import EXACT
from kamera_jax.kv import Segment
from kamera_jax.record import Arrays, PatchRecord, Record


@dataclass(frozen=True)
class Packed:
    """A chunk in host memory.

    Attributes:
        record: all of it; of its KV no rows where that is packed or left out.
        storage: the codec that packed its KV, ``"exact"`` for none.
        leaves: the packed arrays.
        basis: digest of what the codec is calibrated with; empty for none.
    """

    record: Record
    storage: str
    leaves: Arrays
    basis: str = ""

    @staticmethod
    def of(chunk: Chunk, storage: str | None) -> "Packed":
        """A copy that shares nothing with the device: packed, where the chunk is exact and the codec can store it.

        What went through a codec already is copied as it is: packed again it would lose more.
        """
        if storage is not None and chunk.codec == EXACT:
            try:
                named = packing(storage)
                named.check_shape(Shape.of(chunk.kv, chunk.spec))
                for part in PARTS:
                    check_storable(np.asarray(getattr(chunk.kv, part)), chunk.length, f"kv.{part}", named)
                packed = Compressed.of(chunk, storage)
            except CodecError:  # a model without what the codec is calibrated with, too
                return Packed(Record.of(chunk), EXACT, {})
            leaves = {name: np.array(leaf) for name, leaf in packed.leaves.items()}
            return Packed(Record.of(packed.rest), storage, leaves, packed.basis)
        return Packed(Record.of(chunk), EXACT, {})

    @property
    def codec(self) -> str:
        """Of the chunk that comes back."""
        return codec_of(self.record.chunk["codec"], self.storage)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.record.nbytes + sum(leaf.nbytes for leaf in self.leaves.values())

    def chunk(self) -> Chunk:
        """The chunk, on the device; its codec says what packing it did to the KV."""
        chunk = self.record.unpacked()[0]
        if self.storage == EXACT:
            return chunk
        leaves = {name: jnp.asarray(leaf) for name, leaf in self.leaves.items()}
        return Compressed(leaves, chunk, self.storage, self.basis).restore()


@dataclass(frozen=True)
class Embedded:
    """What the model read to make a chunk (token ids, media features), in host memory.

    Attributes:
        record: of the chunk, without a row of its KV.
    """

    record: Record

    @staticmethod
    def of(packed: Packed) -> "Embedded":
        """What is left of a chunk without its KV."""
        arrays = dict(packed.record.arrays)
        for name in ("kv.rot", "kv.free"):
            arrays[name] = np.array(arrays[name][:, :0])
        return Embedded(Record(packed.record.chunk, None, arrays))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.record.nbytes

    @property
    def tokens(self) -> int:
        """How many are run."""
        return max(int(self.record.chunk["length"]), 1)

    def segment(self) -> Segment:
        """What is run, on the device."""
        chunk = self.record.unpacked()[0]
        segment = source_of(chunk)
        return Segment(segment.inputs, segment.positions, segment.length, segment.advance, chunk.content)


Form = Packed | Embedded | PatchRecord
"""What a host tier holds."""


def device_bytes(chunk: Chunk) -> int:
    """Bytes of a chunk's arrays, its padding and source included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(chunk) if getattr(leaf, "ndim", 0))
