"""What a session does with an item that is like a chunk which it holds."""

from collections.abc import Callable
from typing import Any

from kamera_jax.backbone import Backbone
from kamera_jax.errors import ChunkNotHeldError
from kamera_jax.identity import canonical_key
from kamera_jax.inference.renewing import EXTRA, TOLERANCE, renew
from kamera_jax.session.ahead import LooksAhead


class AddsSimilar(LooksAhead):
    """The part of a session that runs what changed of an item, and keeps the rest of an earlier one."""

    _vlm: Backbone
    add: Callable[..., Any]

    def add_similar(
        self,
        item: Any,
        to: str,
        *,
        tolerance: float | int = TOLERANCE,
        extra: float | int = EXTRA,
        patch: bool = True,
        pin: bool = False,
    ) -> str:
        """Put an item at the window's end that differs in a few tokens from a chunk: a screenshot like the last one.

        Only tokens that changed are run, see `kamera_jax.renew`. The chunk is approximate, and its codec and key say
        so; what the session knows exactly is taken as it is. The chunk that it is like stays where it is.

        Args:
            item: what `encode` takes.
            to: key of the chunk it is like, in the window or evicted; of a series, best the one before it.
            tolerance, extra: see `kamera_jax.renew`.
            patch, pin: see `add`.

        Returns:
            The chunk's key, as it stands in the window.

        Raises:
            ChunkNotHeldError: the session holds no such chunk.
            RenewalError: the item differs in size from the chunk, or this is none of which rows can be kept: `add` the
                item then. Else see `kamera_jax.renew` and `add`.
        """
        known = self._kept.find(to)
        if known is None:
            raise ChunkNotHeldError(
                f"the session has no chunk {to[:12]} that the item could be like: it was never added, or was dropped "
                "to stay within the memory; add the item"
            )
        segment = self._vlm.prepare(item)
        own = canonical_key(segment, self._vlm.spec, self._kept.window.preamble.chunk.key)
        if self._kept.find(own) is not None:
            return self.add(item, own, patch=patch, pin=pin)
        renewed = renew(self._vlm, known[0], segment, tolerance=tolerance, extra=extra)
        return self.add(renewed, patch=patch, pin=pin)
