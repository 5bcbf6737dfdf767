"""A description and named arrays in a folder: all of it, or what was there before.

The arrays lie in a folder of their own, named in the description, which is written beside its place and renamed into it
once they are complete. Whatever a killed process leaves is no part of the snapshot, and the next one sweeps it away.
"""

import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import SnapshotCorruptError, SnapshotNotFoundError, SnapshotVersionError
from kamera_jax.library import arrays as storage
from kamera_jax.library.files import digests, read_sealed, sync_tree, write_sealed

SCHEMA = 3
"""Up to 2, keys did not say which patches a chunk was run behind."""

_DESCRIPTION = "description.json"
_ARRAYS = "arrays-"
_OWN = re.compile(r"description\.json(\.[0-9a-f]{32})?|arrays-[0-9a-f]{32}(\.[A-Za-z0-9_.-]*)?")
"""Names that a snapshot's files and folders have, and those of one that was never finished."""


def write(folder: Path, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a snapshot into a folder, in place of the one that is there.

    Args:
        folder: is made; one that holds something else is refused.
        description: what JSON can hold.
        arrays: by name; they come back to the bit.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [path.name for path in folder.iterdir() if not _OWN.fullmatch(path.name)]
    if foreign:
        raise ValueError(
            f"{folder} holds {', '.join(sorted(foreign)[:3])}; give a folder that is empty or a snapshot's"
        )
    name = f"{_ARRAYS}{uuid.uuid4().hex}"
    try:
        if stored := {key: array for key, array in arrays.items() if array.size}:
            storage.writer().submit(storage.save, folder / name, stored).result()
            sync_tree(folder / name)
        whole = {
            "schema": SCHEMA,
            "description": description,
            "folder": name,
            "arrays": {key: _about(array) for key, array in arrays.items()},
            "files": digests(folder / name),
        }
        write_sealed(folder / _DESCRIPTION, whole)
    except BaseException:
        if not _describes(folder, name):
            _remove(path for path in folder.iterdir() if path.name.startswith(name))
        raise
    kept = (_DESCRIPTION, name)  # not the snapshot before this one, and those that never came to an end
    _remove(path for path in folder.iterdir() if path.name not in kept and _OWN.fullmatch(path.name))


def _describes(folder: Path, name: str) -> bool:
    """Whether the snapshot that is there has its arrays in the folder of this name."""
    try:
        return read_sealed(folder / _DESCRIPTION).get("folder") == name
    except (OSError, ValueError):
        return False


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # the next snapshot removes what is left
        else:
            path.unlink(missing_ok=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a snapshot.

    Raises:
        SnapshotNotFoundError: there is none in the folder.
        SnapshotVersionError: it is of another schema.
        SnapshotCorruptError: it is not as it was written.
    """
    folder = folder.absolute()
    try:
        whole = read_sealed(folder / _DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SnapshotNotFoundError(f"there is no snapshot in {folder}: it has no {_DESCRIPTION}") from error
    except ValueError as error:
        raise SnapshotCorruptError(f"{folder / _DESCRIPTION} is not as it was written; use another snapshot") from error
    if whole.get("schema") != SCHEMA:
        raise SnapshotVersionError(
            f"the snapshot in {folder} is of schema {whole.get('schema')}; this version reads schema {SCHEMA}: begin a "
            "new session and save that, or restore it with the version of kamera-jax that saved it"
        )
    stored: dict[str, np.ndarray] = {}
    if any(np.prod(about["shape"]) for about in whole["arrays"].values()):
        # Before the storage library sees them: of broken files it leaves reads behind.
        if digests(folder / whole["folder"]) != whole["files"]:
            raise SnapshotCorruptError(
                f"the arrays of the snapshot in {folder} are not as they were written; use another"
            )
        stored = _restored(folder / whole["folder"])
    arrays = {}
    for key, about in whole["arrays"].items():
        array = stored.get(key, np.zeros(about["shape"], about["dtype"]))
        if _about(array) != about:
            raise SnapshotCorruptError(f"array {key!r} of the snapshot in {folder} is not as it was written")
        arrays[key] = array
    return whole["description"], arrays


def _restored(folder: Path) -> dict[str, np.ndarray]:
    try:
        return storage.load(folder)
    except Exception as error:  # whatever the storage library makes of missing or broken files
        raise SnapshotCorruptError(
            f"the arrays of the snapshot in {folder} cannot be read ({type(error).__name__}); use another"
        ) from error


def _about(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name}
