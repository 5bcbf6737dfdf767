"""What there is to read of a session."""

import warnings

from kamera_jax.session.kept import Kept
from kamera_jax.session.log import Served
from kamera_jax.session.stats import SessionStats
from kamera_jax.window.window import Window


class Shown:
    """The part of a session that says what stands in its window, what left it, and what was done."""

    _kept: Kept

    @property
    def window(self) -> Window:
        """The window as it stands: the caller's to keep, whatever the session does next."""
        return self._kept.lent.lend(self._kept.window)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the window's chunks, in order."""
        return self._kept.window.keys

    @property
    def evicted(self) -> tuple[str, ...]:
        """Keys of the evicted chunks that can be recalled, the least recently used first."""
        return tuple(key for key in self._kept.state.evicted if self._kept.store.has(key))

    @property
    def held(self) -> tuple[str, ...]:
        """The old name of `evicted`."""
        warnings.warn("Session.held is now Session.evicted", DeprecationWarning, stacklevel=2)
        return self.evicted

    @property
    def last(self) -> tuple[Served, ...]:
        """What the last `add`, `recall` or `replace` did for each chunk it touched, and why."""
        return self._kept.state.last

    @property
    def log(self) -> tuple[Served, ...]:
        """The same of all operations, the latest thousand records."""
        return self._kept.state.log

    @property
    def stats(self) -> SessionStats:
        """What the session has done so far."""
        return self._kept.stats
