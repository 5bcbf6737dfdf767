"""What processes that died left in a library: files and folders of names that the library alone gives."""

import contextlib
import os
import re
import shutil
from pathlib import Path

_STAGED = re.compile(r"[0-9a-f]{32}(\.[A-Za-z0-9_.-]*)?")
_BESIDE = re.compile(r"(LIBRARY\.json|index\.json|deleted\.log)\.[0-9a-f]{32}")


def sweep(root: Path, staging: str) -> list[int]:
    """Remove unfinished writes, and give the bytes of each; the caller is the one writer, so nobody is at them.

    Args:
        root: of the library.
        staging: its folder of packs that are being written, or removed.
    """
    left = [path for path in _listed(root / staging) if _STAGED.fullmatch(path.name)]
    left += [path for path in _listed(root) if _BESIDE.fullmatch(path.name)]
    sizes = [size(path) for path in left]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return sizes


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes away meanwhile is left out."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            return os.lstat(path).st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
