"""Where this project keeps, in the user's cache folder, what can be made again: compiled programs, converted models."""

import os
from pathlib import Path

OFF = ("off", "0", "no", "false")
"""Values of ``KAMERA_CACHE`` with which nothing is kept."""


def cache_folder(name: str) -> Path | None:
    """A folder of the project's own in ``XDG_CACHE_HOME`` or ``~/.cache``, which need not be there yet.

    Returns:
        The folder; None with ``KAMERA_CACHE=off``, or where there is no home folder.
    """
    if os.environ.get("KAMERA_CACHE", "").strip().lower() in OFF:
        return None
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "kamera-jax" / name
    except RuntimeError:
        return None
