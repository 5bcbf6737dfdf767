"""Where chunks and patches are kept and found again by key: host memory, a library on disk, tiers of both."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from kamera_jax.chunk import Chunk, Patch


@runtime_checkable
class Store(Protocol):
    """What a session asks of the place that its evicted chunks go to.

    `kamera_jax.session.memory.ChunkMemory`, `kamera_jax.ChunkLibrary` and `kamera_jax.Tiers` are stores.
    """

    def has(self, key: str) -> bool:
        """Whether something is stored under a key."""
        ...

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """The chunk of a key, on the device; None where none is stored.

        Args:
            key: of the chunk.
            codec: only KV of this codec; any by default.
        """
        ...

    def patches(self, key: str) -> Sequence[Patch]:
        """The stored patches of a chunk, on the device."""
        ...

    def put(self, item: Chunk | Patch) -> str:
        """Store a chunk or a patch, and return its key.

        Raises:
            MissingKeyError: it has none.
        """
        ...

    def release(self, key: str) -> None:
        """Say that a chunk is in use elsewhere, so that its room may serve another; a store may keep it."""
        ...
