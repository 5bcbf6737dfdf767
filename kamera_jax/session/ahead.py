"""What a session may be told of what comes."""

from collections.abc import Iterable, Mapping

from kamera_jax.session.kept import Kept
from kamera_jax.tiers.tiers import Tiers


class LooksAhead:
    """The part of a session that brings chunks near before they are asked for.

    Both are hints: with a store that has no tiers (host memory, a library alone) they do nothing.
    """

    _kept: Kept

    def prefetch(self, keys: Iterable[str]) -> None:
        """Bring chunks of the store to the device while the caller goes on, in the order in which they will be used.

        What stands in the window is there already.

        Args:
            keys: of chunks; see `kamera_jax.Tiers.prefetch`.

        Raises:
            ValueError: no keys, or the store was closed.
        """
        if isinstance(store := self._kept.store, Tiers):
            standing = set(self._kept.window.keys)
            store.prefetch(key for key in keys if key not in standing)

    def hint(self, steps: Mapping[str, int | None]) -> None:
        """Say in how many look-backs chunks come back, as a workflow knows it; they are fetched, the next ones first.

        Args:
            steps: by key; see `kamera_jax.Tiers.hint`.

        Raises:
            ValueError: no numbers of look-backs, or the store was closed.
        """
        if isinstance(store := self._kept.store, Tiers):
            store.hint(steps)
