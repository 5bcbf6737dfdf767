"""Who may write to a library: one at a time, by a lock of the system's on a file, or by a lease."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kamera_jax.library.leases import SECONDS, leased
from kamera_jax.library.locks import locked

Lock = Literal["file", "lease"]
"""``"file"``: the system's, for the processes of one host; ``"lease"``: for several hosts, see `leases`."""

STAGING = "staging"
LOCK = "LOCK"


@dataclass(frozen=True)
class Turn:
    """What the one writer has while it is.

    Attributes:
        staging: the folder in which packs are made, and into which they are removed.
        through: the folder out of which every other change is renamed to its place; None: files are changed in place.
        check: raises LeaseLostError if another writes now; before what was made in ``staging`` is renamed.
    """

    staging: Path
    through: Path | None
    check: Callable[[], None]


@dataclass(frozen=True)
class Writers:
    """Everyone who may write to a library.

    Attributes:
        root: of the library.
        lock: by what they take turns.
        seconds: of a lease.
    """

    root: Path
    lock: Lock = "file"
    seconds: float = SECONDS

    @contextmanager
    def one(self) -> Iterator[Turn]:
        """The context in which the caller is the one writer; it waits for others.

        Raises:
            LeaseLostError: another has taken over, and what was to be changed was not.
            NoFileLocksError, NotRegularError, OSError: see `locked` and `leased`.
        """
        staging = self.root / STAGING
        if self.lock == "file":
            with locked(self.root / LOCK):
                yield Turn(staging, None, _nothing)
            return
        with leased(self.root, staging, self.seconds) as lease:
            yield Turn(lease.staging, lease.staging, lease.check)


def _nothing() -> None:
    """A lock is held until it is let go."""
