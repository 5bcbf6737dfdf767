"""A persistent cache of compiled programs, in the user's cache folder."""

import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

OFF = ("off", "0", "no", "false")
LIMIT = 4 * 2**30
"""The cache's largest size in bytes; beyond it the least recently used programs are deleted."""


def enable(limit: int = LIMIT) -> Path | None:
    """Switch on JAX's persistent compilation cache for this process.

    A folder that the user gave JAX (``JAX_COMPILATION_CACHE_DIR``, or in its configuration) stays as it is, and with
    ``KAMERA_CACHE=off`` everything does. A folder that cannot be made or written, and an entry that cannot be read,
    cost the time of compiling and nothing else.

    Args:
        limit: the cache's largest size in bytes when this returns.

    Returns:
        The cache's folder, or None where there is no cache.
    """
    import jax

    if os.environ.get("KAMERA_CACHE", "").strip().lower() in OFF:
        return None
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if given := jax.config.values.get("jax_compilation_cache_dir"):
        return Path(given)
    try:
        home = _home()
        folder = home / _machine()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _prune(home, limit)
    except (OSError, RuntimeError):
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    # Hundreds of small programs are most of a start, and reading one takes a tenth of compiling it.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _home() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "kamera-jax" / "xla"


def _machine() -> str:
    # A program for a CPU is made for the instructions that it has, and a home folder may be shared between machines.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {' '.join(sorted(flags.split()))}".encode()).hexdigest()[:16]


def _prune(home: Path, limit: int) -> None:
    entries = list(_files(home))
    size = sum(each[1] for each in entries)
    if size <= limit:
        return
    for _, bytes_of_it, path in sorted(entries):
        Path(path).unlink(missing_ok=True)
        size -= bytes_of_it
        if size <= limit * 3 // 4:  # so that not every run has something to drop
            return


def _files(folder: Path | str) -> Iterator[tuple[float, int, str]]:
    """The cache's files: when each was last read or written, its bytes and its path."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                else:
                    about = entry.stat(follow_symlinks=False)
                    yield max(about.st_atime, about.st_mtime), about.st_size, entry.path
            except FileNotFoundError:  # another process was faster
                continue
