"""The folders of a library, and its first file, which says which format they have."""

import uuid
from pathlib import Path

from kamera_jax.errors import LibraryCorruptError, LibraryNotFoundError, LibraryVersionError
from kamera_jax.library.commit import LOCK, STAGING, named_errors
from kamera_jax.library.files import locked, read_sealed, write_sealed
from kamera_jax.library.index import FOLDERS, INDEX
from kamera_jax.library.marks import CHANGES, LOG, RESERVE, TOMBSTONES

FORMAT_VERSION = 2
"""In format 1 keys did not say which patches a chunk was run behind."""

LIBRARY = "LIBRARY.json"
_OWN = (*FOLDERS.values(), TOMBSTONES, STAGING, LOCK, INDEX, LIBRARY, LOG, CHANGES, RESERVE)


def make(root: Path) -> None:
    """Make a library, if there is none."""
    if root.exists() and not root.is_dir():
        raise LibraryNotFoundError(f"{root} is a file; give a folder that is empty or a library")
    with named_errors(root):
        if root.is_dir() and not (root / LIBRARY).exists():
            foreign = sorted(path.name for path in root.iterdir() if not path.name.startswith(_OWN))
            if foreign:
                raise LibraryNotFoundError(
                    f"{root} is no library and holds {', '.join(foreign[:3])}; give a folder that is empty or a library"
                )
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / LOCK):
            for name in (*FOLDERS.values(), STAGING, TOMBSTONES):
                (root / name).mkdir(exist_ok=True)
            if not (root / LIBRARY).exists():
                write_sealed(root / LIBRARY, {"format_version": FORMAT_VERSION, "uuid": uuid.uuid4().hex})


def check_format(root: Path) -> None:
    """Raise unless there is a library that this version reads; see `ChunkLibrary.open`."""
    try:
        version = read_sealed(root / LIBRARY)["format_version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LibraryNotFoundError(
            f"{root} is no library: it has no {LIBRARY}; open it with mode='a' to make one"
        ) from error
    except (ValueError, KeyError) as error:
        raise LibraryCorruptError(
            f"{root / LIBRARY} is not as it was written; remove it and open the library with mode='a': the packs say "
            "what there is"
        ) from error
    if missing := [name for name in (*FOLDERS.values(), TOMBSTONES) if not (root / name).is_dir()]:
        raise LibraryCorruptError(
            f"{root} has lost its folder {missing[0]}; open it with mode='a' to go on with what is left"
        )
    if version == FORMAT_VERSION:
        return
    if type(version) is int and version < FORMAT_VERSION:
        raise LibraryVersionError(
            f"{root} has format {version}, whose keys do not say which patches a chunk was run behind, so a chunk may "
            f"not be the one that is asked for; this version reads format {FORMAT_VERSION}: encode the items into a "
            "new folder"
        )
    raise LibraryVersionError(
        f"{root} has format {version}; this version reads format {FORMAT_VERSION}: use a newer kamera-jax"
    )
