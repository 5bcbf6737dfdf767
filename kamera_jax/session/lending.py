"""Windows that a session hands out, whose buffers it takes again once nobody has them any more."""

from collections.abc import Callable
from typing import Any
from weakref import ref

import jax

from kamera_jax.window.window import Window


class Lent:
    """What a caller may still have of a session's window.

    A window that is handed out has array objects of its own, of the same buffers: as long as one of them lives, whether
    or not in that window, the buffers are the caller's too.
    """

    def __init__(self) -> None:
        self._arrays: list[Callable[[], Any]] = []
        self._window: Callable[[], Window | None] = lambda: None
        self._of: Callable[[], Window | None] = lambda: None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a session has arrays of its own, of which nobody has any."""
        return Lent, ()

    def lend(self, window: Window) -> Window:
        """The window for a caller; the same one as long as the caller has it."""
        known = self._window()
        if known is not None and self._of() is window:
            return known
        # On a mesh there is no other object of the same buffers, and one of a small table would be bound to one device.
        state = jax.tree.map(_alias, window.state) if window.placement is None else window.state
        lent = window.keeping(state=state)
        self._arrays += [_reference(leaf) for leaf in jax.tree.leaves(lent.state)]
        self._window = ref(lent)
        self._of = ref(window)
        return lent

    def forget(self) -> None:
        """The session has gone on with other buffers."""
        self._arrays = []

    def __bool__(self) -> bool:
        """Whether a caller still has an array."""
        self._arrays = [each for each in self._arrays if each() is not None]
        return bool(self._arrays)


def _alias(leaf: Any) -> Any:
    """Another array object of the same buffer, where there is one on one device; else the array itself."""
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) > 1:
        return leaf
    # An array keeps what `addressable_data` gives: asked of one that goes at once, it is nobody else's.
    alias = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, [leaf.addressable_data(0)])
    return alias if leaf.committed else alias.addressable_data(0)


def _reference(leaf: Any) -> Callable[[], Any]:
    return ref(leaf) if isinstance(leaf, jax.Array) else lambda: leaf
