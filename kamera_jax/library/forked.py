"""Forked processes: a child has the memory of its parent, and none of its threads.

What waits for a thread that is not there waits for ever, and so do locks that another thread had at that moment.
"""

import os
import sys

from kamera_jax.errors import ForkedProcessError

_REMEDY = "start it with multiprocessing's 'spawn' or 'forkserver', or open the library in the child alone"

_inherited = False


def _note() -> None:
    """In a child: whether its parent had started JAX, whose threads and devices the child has not."""
    global _inherited
    bridge = sys.modules.get("jax._src.xla_bridge")  # that JAX was started is said nowhere else
    started = getattr(bridge, "backends_are_initialized", lambda: True)
    _inherited = _inherited or (bridge is not None and bool(started()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)


def check_unforked(what: str, pid: int | None = None) -> None:
    """Raise ForkedProcessError in a process that was forked from one that uses JAX, or from the maker of something.

    Args:
        what: is used, for the message.
        pid: the process that made it; None for what each process makes itself.
    """
    if pid is not None and pid != os.getpid():
        raise ForkedProcessError(f"{what} belongs to process {pid}, which this one was forked from; {_REMEDY}")
    if _inherited:
        raise ForkedProcessError(
            f"{what} needs JAX, which was started before this process was forked and has no threads here; {_REMEDY}"
        )
