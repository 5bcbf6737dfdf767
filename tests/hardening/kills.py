"""Writers killed at random moments, one after the other in one library for each worker: a fault is one kill."""

import os

from tests.kamera_jax.library.crashes import Victims

_victims = {}


def cases(folder, count, seed):
    """Nothing but numbers: what a writer does is drawn when it is begun."""
    return [seed * count + number for number in range(count)]


def judge(case, folder):
    """Kill a writer, and read back all that must be there."""
    if os.getpid() not in _victims:
        _victims[os.getpid()] = Victims(folder / "library", 1000 * case)
    wrong = _victims[os.getpid()].kill()
    if wrong:
        del _victims[os.getpid()]
    return f"lost: {wrong}" if wrong else ""
