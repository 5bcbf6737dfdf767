"""The keys that retrieval heads read, of all chunks of a library: read once, kept within a bound, and refreshed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError
from kamera_jax.kv import KV, bucket
from kamera_jax.library.library import ChunkLibrary

BLOCK_ROWS = 2**14
"""Rows of a block of chunks, at most; one chunk may have more."""


class Pair(NamedTuple):
    """A layer and one of its KV heads."""

    layer: int
    head: int


class Block(NamedTuple):
    """Slices of P chunks, whose rows are filled up to one number.

    Attributes:
        keys: of the chunks; there may be fewer than P.
        arrays: [P, s, R, D].
        lengths: i32[P]; 1 where there is no chunk.
    """

    keys: tuple[str, ...]
    arrays: jax.Array
    lengths: jax.Array

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.arrays.nbytes + self.lengths.nbytes


class Slices:
    """What is known of a library's chunks, of some pairs of a layer and a KV head.

    Attributes:
        left_out: why a chunk is not among those that are searched, by its key.
        read_bytes: of keys that were read from the library so far.
    """

    def __init__(
        self, library: ChunkLibrary, pairs: Sequence[Pair], of: Mapping[str, object], memory: int, heads: int | None
    ) -> None:
        """Know nothing yet.

        Args:
            library: where the chunks are.
            pairs: whose keys are read.
            of: fields that a chunk has to have, such as the model.
            memory: bytes that are kept, at most.
            heads: G, that keys split into; None where keys are latents and rotated parts together.
        """
        self._library = library
        self._pairs = tuple(pairs)
        self._of = of
        self._memory = memory
        self._heads = heads
        self._blocks: list[Block] = []
        self._beyond: list[tuple[str, ...]] = []
        self._known: set[str] = set()
        self._rows: dict[str, int] = {}
        self._gone: set[str] = set()
        self._damaged: set[str] = set()
        self.left_out: dict[str, str] = {}
        self.read_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in memory."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def chunks(self) -> int:
        """How many chunks are searched."""
        return len(self._known) - len(self._gone)

    def refresh(self) -> None:
        """See what was put into the library since, and what was deleted."""
        there = set(self._library.keys())
        self._gone = self._known - there
        kept = there - self._damaged  # what could not be read may have been put anew
        self.left_out = {key: why for key, why in self.left_out.items() if key in kept}
        self._damaged = set()
        if 2 * len(self._gone) > len(self._known):  # what is deleted takes more room than what is there
            self._blocks = []
            self._beyond = []
            self._known = set()
            self._gone = set()
        fresh = [key for key in self._library.keys() if key not in self._known and key not in self.left_out]
        lengths = {key: length for key in fresh if (length := self._length(key)) is not None}
        for keys in _batches(lengths):
            block = self._read(keys, lengths)
            self._known |= set(block.keys)
            if block.keys and self.nbytes + block.nbytes <= self._memory:
                self._blocks.append(block)
            elif block.keys:
                self._beyond.append(block.keys)
                self._rows |= {key: lengths[key] for key in block.keys}

    def blocks(self) -> Iterator[tuple[Block, frozenset[str]]]:
        """Every block, and which of its chunks are deleted; what is beyond the bound is read anew."""
        for block in self._blocks:
            yield block, frozenset(self._gone.intersection(block.keys))
        for keys in self._beyond:
            block = self._read([key for key in keys if key not in self._gone], self._rows)
            if block.keys:
                yield block, frozenset()

    def _length(self, key: str) -> int | None:
        """Rows of a chunk that is to be searched."""
        try:
            fields = self._library.info(key).fields
        except (LibraryCorruptError, ChunkNotFoundError) as error:
            self._leave_out(key, error)
            return None
        if fields.get("turn"):
            self.left_out[key] = "it is a question with its answer"
            return None
        for name, wanted in self._of.items():
            if fields.get(name) != wanted:
                self.left_out[key] = f"its {name} is {str(fields.get(name))[:12]}, not {str(wanted)[:12]}"
                return None
        return int(fields["length"])

    def _read(self, keys: Sequence[str], lengths: Mapping[str, int]) -> Block:
        read: list[np.ndarray] = []
        found: list[str] = []
        for key in keys:
            try:
                read.append(self._slices(key))
                found.append(key)
            except (LibraryCorruptError, ChunkNotFoundError) as error:
                self._leave_out(key, error)
        return block_of(found, read, [lengths[key] for key in found])

    def _leave_out(self, key: str, error: ValueError) -> None:
        self.left_out[key] = str(error)
        self._damaged.add(key)

    def _slices(self, key: str) -> np.ndarray:
        """[s, T, D] of one chunk: only the layers that are asked for are read, and held against their digests."""
        layers: dict[int, KV | np.ndarray] = {}
        for layer in sorted({pair.layer for pair in self._pairs}):
            here = slice(layer, layer + 1)
            layers[layer] = self._library.get_kv(key, here) if self._heads is None else self._library.get_rot(key, here)
        self.read_bytes += sum(
            each.rot.nbytes + each.free.nbytes if isinstance(each, KV) else each.nbytes for each in layers.values()
        )
        return np.stack([keys_of(layers[pair.layer], self._heads or 1)[0, pair.head] for pair in self._pairs])


def keys_of(kv: KV | np.ndarray, heads: int) -> np.ndarray:
    """What queries are compared with [l, G, T, D]: keys by head, or an MLA's latents with what of them is rotated."""
    if isinstance(kv, KV):
        return np.concatenate([np.asarray(kv.free), np.asarray(kv.rot)], axis=-1)[:, None]
    layers, rows, width = kv.shape
    return kv.reshape(layers, rows, heads, width // heads).swapaxes(1, 2)


def _batches(lengths: Mapping[str, int]) -> Iterator[list[str]]:
    """Keys of chunks of one bucket of rows, as many as a block has."""
    by_rows: dict[int, list[str]] = {}
    for key, length in lengths.items():
        by_rows.setdefault(bucket(length), []).append(key)
    for rows, keys in sorted(by_rows.items()):
        most = max(BLOCK_ROWS // rows, 1)
        for first in range(0, len(keys), most):
            yield keys[first : first + most]


def block_of(keys: Sequence[str], slices: Sequence[np.ndarray], lengths: Sequence[int]) -> Block:
    """A block of chunks' slices [s, T, D], filled up to a power of two of chunks and one number of rows."""
    if not keys:
        return Block((), jnp.zeros((0, 1, 1, 1)), jnp.zeros(0, jnp.int32))
    rows = max(each.shape[1] for each in slices)
    count = 1 << (len(keys) - 1).bit_length()
    arrays = np.zeros((count, slices[0].shape[0], rows, slices[0].shape[2]), slices[0].dtype)
    filled = np.ones(count, np.int32)
    for place, (each, length) in enumerate(zip(slices, lengths, strict=True)):
        arrays[place, :, : each.shape[1]] = each
        filled[place] = length
    return Block(tuple(keys), jnp.asarray(arrays), jnp.asarray(filled))
