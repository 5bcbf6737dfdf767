"""A description and named arrays in a folder: all of it, or what was there before.

The arrays lie in a folder of their own, named in the description, which is written beside its place and renamed into it
once they are complete. Whatever a killed process leaves is no part of the snapshot, and the next one sweeps it away.
"""

import math
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kamera_jax.errors import SnapshotCorruptError, SnapshotNotFoundError, SnapshotVersionError
from kamera_jax.library import arrays as storage
from kamera_jax.library.fields import AXES, NAME, NAME_LENGTH
from kamera_jax.library.files import MALFORMED, digests, read_sealed, sync_tree, write_sealed
from kamera_jax.library.opening import check_folders, folder_stamp

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
    except (ValueError, OSError) as error:
        raise SnapshotCorruptError(
            f"{folder / _DESCRIPTION} is not as it was written, or cannot be read ({error}); use another snapshot"
        ) from error
    if whole.get("schema") != SCHEMA:
        raise SnapshotVersionError(
            f"the snapshot in {folder} is of schema {whole.get('schema')!r:.80}; this version reads schema {SCHEMA}: "
            "begin a new session and save that, or restore it with the version of kamera-jax that saved it"
        )
    try:
        shapes = _shapes(whole)
        stored: dict[str, np.ndarray] = {}
        if any(math.prod(shape) for shape, _ in shapes.values()):
            # Before the storage library sees them: of broken files it leaves reads behind, and it makes room for
            # whatever they say.
            _check_files(folder / whole["folder"], shapes, whole["files"])
            stored = _restored(folder / whole["folder"])
    except SnapshotCorruptError:
        raise
    except (*MALFORMED, OSError) as error:
        raise SnapshotCorruptError(
            f"the snapshot in {folder} is not as it was written ({error!r:.300}); use another"
        ) from error
    arrays = {}
    for key, (shape, dtype) in shapes.items():
        array = stored[key] if key in stored else np.zeros(shape if 0 in shape else 0, dtype)
        if (array.shape, array.dtype) != (shape, dtype):
            raise SnapshotCorruptError(f"array {key!r} of the snapshot in {folder} is not as it was written")
        arrays[key] = array
    return whole["description"], arrays


def _shapes(whole: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and dtypes of a snapshot's arrays, by name.

    Raises:
        ValueError: names, shapes or dtypes that no array has.
    """
    if not isinstance(whole["description"], dict) or not isinstance(whole["arrays"], dict):
        raise ValueError("it has no description, or no arrays")
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for key, about in whole["arrays"].items():
        shape = tuple(about["shape"])
        if not NAME.fullmatch(key) or len(key) > NAME_LENGTH or len(shape) > AXES:
            raise ValueError(f"array {key!r:.80} has a name or a shape that it cannot have")
        if not all(type(extent) is int and 0 <= extent < 2**31 for extent in shape) or math.prod(shape) >= 2**62:
            raise ValueError(f"array {key!r} has the shape {list(shape)!r:.80}; expected whole numbers")
        shapes[key] = shape, storage.DTYPES[about["dtype"]]
    if not isinstance(whole["folder"], str) or not _OWN.fullmatch(whole["folder"]) or "." in whole["folder"]:
        raise ValueError(f"its arrays are said to be in {whole['folder']!r:.80}; expected a folder of its own")
    return shapes


def _check_files(folder: Path, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], files: Any) -> None:
    """Raise ValueError unless a folder has the files of these arrays, as long as the arrays are, and as written."""
    folder_stamp(folder)  # a folder, and no link to one
    for key, (shape, dtype) in shapes.items():
        if not (nbytes := math.prod(shape) * dtype.itemsize):
            continue
        file = storage.data_file(folder, key, len(shape))
        check_folders(folder, file.relative_to(folder).as_posix())
        if file.lstat().st_size != nbytes:
            raise ValueError(f"{file} has {file.lstat().st_size} bytes; expected {nbytes}, those of {list(shape)}")
        storage.check_layout(folder, key, dtype, shape)
    most = max((math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values()), default=0)
    if digests(folder, most=max(most, 2**24)) != files:
        raise ValueError("its arrays are not as they were written")


def _restored(folder: Path) -> dict[str, np.ndarray]:
    try:
        return storage.load(folder)
    except Exception as error:  # whatever the storage library makes of missing or broken files
        raise SnapshotCorruptError(
            f"the arrays of the snapshot in {folder} cannot be read ({type(error).__name__}); use another"
        ) from error


def _about(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name}
