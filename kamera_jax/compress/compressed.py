"""A chunk whose KV is packed by a codec."""

from dataclasses import dataclass, field
from typing import ClassVar, no_type_check

import jax
from jaxtyping import Array, Shaped

from kamera_jax.chunk import Chunk
from kamera_jax.compress.basis import arrays_of, by_digest, for_codec
from kamera_jax.compress.codec import Codec, Shape, check_packs, codec
from kamera_jax.handle import Handle
from kamera_jax.identity import EXACT, row_stages
from kamera_jax.kv import KV

ROW_BYTES = 2
"""Of a chosen row, which token it is of: a chunk has fewer than 65,536."""


def codec_of(before: str, storage: str) -> str:
    """The codec of KV of a codec that went through a storage."""
    if storage == EXACT:
        return before
    return storage if before == EXACT else f"{before}+{storage}"


def packing(storage: str) -> Codec:
    """The codec of a storage; ``"exact"`` packs nothing.

    Raises:
        CodecError: there is no such codec, or it says which rows a chunk has, for which it takes the model.
    """
    if storage == EXACT:
        return Codec(EXACT, ())
    named = codec(storage)
    check_packs(named)
    return named


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Compressed(Handle):
    """A chunk with its KV in few bits: `restore` gives the chunk that is served.

    A pytree of ``leaves`` and ``rest``.

    Attributes:
        leaves: the packed arrays, each with L leading, by name.
        rest: the chunk without the rows of its KV.
        storage: name of what packed them.
        basis: digest of the `kamera_jax.compress.basis.CodecBasis` that it took; empty for none.
    """

    leaves: dict[str, Shaped[Array, "L ..."]]
    rest: Chunk
    storage: str = field(default=EXACT)
    basis: str = field(default="")

    DATA: ClassVar = ("leaves", "rest")
    STATIC: ClassVar = ("storage", "basis")
    SHOWN: ClassVar = ("key", "length", "codec")

    def __init__(self, leaves: dict[str, jax.Array], rest: Chunk, storage: str, basis: str = "") -> None:
        """See the class."""
        self._set(leaves=leaves, rest=rest, storage=storage, basis=basis)

    @staticmethod
    def of(chunk: Chunk, storage: str) -> "Compressed":
        """Pack a chunk; its values are not looked at.

        Raises:
            BasisError: the storage takes what is measured once for a model, and of this one it is not known.
        """
        shape = Shape.of(chunk.kv, chunk.spec)
        by = packing(storage)
        basis = for_codec(by, chunk.spec, chunk.model)
        leaves = by.encode(chunk.kv, chunk.length, shape.heads, arrays_of(basis, shape.layouts(1, shape.layers)))
        rest = chunk.keeping(kv=jax.tree.map(lambda rows: rows[:, :0], chunk.kv))
        return Compressed(leaves, rest, storage, "" if basis is None else basis.digest)

    @property
    def key(self) -> str:
        """Key of the chunk, which names what it was made of."""
        return self.rest.key

    @property
    def codec(self) -> str:
        """What the KV went through, this storage included."""
        return codec_of(self.rest.codec, self.storage)

    @property
    def length(self) -> int:
        """Valid rows."""
        return self.rest.length

    @property
    def nbytes(self) -> int:
        """Bytes of the KV over valid rows as stored, with scales, and which rows were chosen in 16 bits each.

        `Chunk.nbytes` is what it was.
        """
        kv = self.rest.kv
        shape = Shape.of(kv, self.rest.spec)
        stored = packing(self.storage).nbytes(self.length, shape.layers, shape, kv.rot.dtype)
        return stored + (ROW_BYTES * self.length if row_stages(self.rest.codec) else 0)

    def restore(self) -> Chunk:
        """The chunk that is served: same key, KV to within the codec's error, and a codec that says so."""
        empty = self.rest.kv
        shape = Shape.of(empty, self.rest.spec)
        basis = arrays_of(by_digest(self.basis) if self.basis else None, shape.layouts(1, shape.layers))
        kv: KV = packing(self.storage).decode(self.leaves, self.rest.length, shape, empty.rot.dtype, basis)
        return self.rest.keeping(kv=kv, codec=self.codec)
