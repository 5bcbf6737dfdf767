"""Which of a chunk's stored patches is used."""

from collections.abc import Sequence

from kamera_jax.chunk import Chunk, Match, Patch
from kamera_jax.window.window import Window

_MATCHES = (Match.EXACT, Match.PERMUTED, Match.PARTIAL, Match.MISS)


def best_patch(window: Window, chunk: Chunk, patches: Sequence[Patch], at: int | None) -> Patch | None:
    """Of a chunk's patches the one formed behind what is most like what stands before a place."""

    def unlike(patch: Patch) -> int:
        return -1 if window.is_as_formed(chunk, patch, at) else _MATCHES.index(patch.match(window.keys[:at]))

    return min(patches, key=unlike, default=None)
