"""What processes that died left in a library: files and folders of names that the library alone gives."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from kamera_jax.library.failures import LIBRARY
from kamera_jax.library.index_file import INDEX
from kamera_jax.library.marks import LOG
from kamera_jax.library.opening import is_folder, is_regular

UNFINISHED = re.compile(rf"({'|'.join(map(re.escape, (LIBRARY, INDEX, LOG)))})\.[0-9a-f]{{32}}")
"""Names of files that are written, and not yet in the place of what was there."""

_STAGED = re.compile(r"[0-9a-f]{32}(\..*)?")


def sweep(root: Path, staging: Path) -> list[int]:
    """Remove unfinished writes, and give the bytes of each; the caller is the one writer, so nobody is at them.

    What no writer makes there is left alone, and so is what cannot be removed.

    Args:
        root: of the library.
        staging: the writer's folder of packs that are being written, or removed.
    """
    sizes = []
    for path in sorted(staging.iterdir()):
        if _STAGED.fullmatch(path.name) and is_folder(path):
            with contextlib.suppress(OSError):
                sizes.append(size(path))
                shutil.rmtree(path)
    for path in sorted(root.iterdir()):
        if UNFINISHED.fullmatch(path.name) and is_regular(path):
            with contextlib.suppress(OSError):
                sizes.append(size(path))
                path.unlink()
    return sizes


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes away meanwhile is left out."""
    total = 0
    with contextlib.suppress(OSError):
        if not is_folder(path):
            return os.lstat(path).st_size
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
