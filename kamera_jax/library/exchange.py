"""Chunks and patches from one library into another, or into one file that can be sent: their bytes as they are stored.

The file is a tar archive of a library's folder. Whoever reads one may have it from anybody: regular files and folders
alone are taken out of it, each once, below a folder of its own.
"""

import errno
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, get_args

from kamera_jax.errors import (
    ExportError,
    LibraryArchiveError,
    LibraryDiskError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
    NotRegularError,
)
from kamera_jax.library.arrays import writer
from kamera_jax.library.commit import OWN_FOLDERS, PACK_BYTES, Committer
from kamera_jax.library.facts import Exchanged
from kamera_jax.library.failures import LIBRARY, is_full, named_errors
from kamera_jax.library.files import MALFORMED, sync
from kamera_jax.library.index_file import INDEX
from kamera_jax.library.opening import is_there, open_regular
from kamera_jax.library.reading import Reader
from kamera_jax.library.rows import Kind, Row, check_row

TAR = ".tar"
"""How the name of a file ends that a library is exported to; other names are those of folders."""

_OF_THE_TARGET = (LibraryFullError, LibraryReadOnlyError, LibraryDiskError, LibraryNotFoundError)
"""Errors of the library that rows come to, not of a row."""

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_DEEPEST = 16
"""Folders within each other in an archive, at most."""


def copy(source: Reader, target: Committer, wanted: Mapping[str, Kind]) -> Exchanged:
    """Copy rows as they are stored; what cannot be copied costs no other row.

    Args:
        source: of the library that has them.
        target: of the library that they come to, which keeps what it has.
        wanted: the keys, and of which kind each is.

    Raises:
        LibraryFullError, LibraryReadOnlyError, LibraryDiskError: the target takes no more, or the store that is read
            does not answer; what came before is there.
    """
    failed: dict[str, str] = {}
    added: dict[str, tuple[Kind, int, Future[str]]] = {}
    known = 0
    waiting = 0
    try:
        target.index.refresh()
        for key, kind in wanted.items():
            if target.index.packs_of(key):
                known += 1
                continue
            try:
                row = _stored(source, key, kind)
            except LibraryDiskError:  # of an object store: it would not give the others either
                raise
            except ValueError as error:
                failed[key] = str(error)
                continue
            added[key] = kind, row.nbytes, target.add(row)
            waiting += row.nbytes
            if waiting >= PACK_BYTES:
                target.flush()
                waiting = 0
    finally:
        target.flush()
        writer().submit(lambda: None).result()
    counts: dict[Kind, int] = {"chunks": 0, "patches": 0}
    size = 0
    for key, (kind, nbytes, future) in added.items():
        error = future.exception()
        if error is None:
            counts[kind] += 1
            size += nbytes
        elif isinstance(error, _OF_THE_TARGET) or not isinstance(error, ValueError):
            raise error
        else:
            failed[key] = str(error)
    return Exchanged(counts["chunks"], counts["patches"], known, size, failed)


def _stored(source: Reader, key: str, kind: Kind) -> Row:
    """A row of a library that may be anybody's, checked as one that is put.

    Raises:
        ValueError: it is not as it was written, or is no row that may be put.
    """
    pack, (about, spec, leaves) = source.pack_and_row(key, kind)
    digests = {name: leaf.digest for name, leaf in pack.manifest.leaves(key).items()}
    row = Row(key, kind, about, spec if about.get("spec") else None, leaves, digests)
    try:
        check_row(row)
    except MALFORMED as error:
        raise ValueError(f"{key[:12]} of {source.root} is none that can be stored: {error}") from error
    return row


def selected(source: Reader, keys: Iterable[str] | None) -> dict[str, Kind]:
    """Keys with what goes along: a chunk's patches; everything there is by default.

    Raises:
        ChunkNotFoundError, AmbiguousKeyError: see `Reader.resolve`.
    """
    source.index.refresh()
    if keys is None:
        return {key: kind for kind in get_args(Kind) for key in source.index.keys(kind)}
    wanted: dict[str, Kind] = {}
    for key in keys:
        item = source.item(source.resolve(key))
        wanted[item.key] = item.kind
        wanted |= dict.fromkeys(item.patches, "patches")
    return dict(sorted(wanted.items(), key=lambda each: each[1]))  # chunks first


def check_target(root: Path | None, to: Path) -> None:
    """Raise ExportError unless something can be exported from a library, None for one in no folder, to a path."""
    if to.suffix in _COMPRESSED:
        raise ExportError(
            f"{to} would be a compressed file; an export is a folder, or a file whose name ends in {TAR}, which may be "
            "compressed afterwards"
        )
    if is_there(to):
        if root is not None and os.path.exists(to) and os.path.samefile(to, root):
            raise ExportError(f"{to} is the library that is exported from; give another folder or a {TAR} file")
        if to.suffix == TAR or not to.is_dir():
            raise ExportError(f"{to} is there already; give another name, or remove it")
    elif not to.parent.is_dir():
        raise ExportError(f"there is no folder {to.parent} to export to; make it, or give another path")
    elif not os.access(to.parent, os.W_OK):
        raise ExportError(f"{to.parent} may not be written to; give another path")


@contextmanager
def beside(to: Path) -> Iterator[Path]:
    """The context in which a library is made beside a path; at its end it comes there, whole or not at all.

    Raises:
        LibraryFullError, LibraryReadOnlyError, LibraryDiskError: it cannot be written.
    """
    place = to.with_name(f"{to.name}.{uuid.uuid4().hex}")
    made = place / "library"
    try:
        with named_errors(to.parent):
            place.mkdir()
        yield made
        with named_errors(to.parent):
            if to.suffix == TAR:
                made = pack_folder(made, place / to.name)
            check_target(made, to)
            made.rename(to)
            sync(to.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def pack_folder(root: Path, to: Path) -> Path:
    """Write a library's folder into a tar archive, without names of users, bring it to the disk, and give its path."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = 0
        member.gid = 0
        member.uname = ""
        member.gname = ""
        return member

    with os.fdopen(open_regular(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted((*OWN_FOLDERS, LIBRARY, INDEX)):
                if is_there(root / name):
                    archive.add(root / name, f"library/{name}", filter=anonymous)
        file.flush()
        os.fsync(file.fileno())
    return to


@contextmanager
def opened(root: Path, other: Path) -> Iterator[Path]:
    """The context in which another library, or that of an archive, is a folder.

    Args:
        root: of the library that something is imported into.
        other: the folder, or the file.

    Raises:
        LibraryNotFoundError: there is neither, or it is the same library.
        LibraryArchiveError, LibraryFullError: see `unpacked`.
    """
    if not other.is_dir():
        with unpacked(other) as folder:
            yield folder
        return
    if os.path.samefile(other, root):
        raise LibraryNotFoundError(f"{other} is the library that is imported into; give another folder or a {TAR} file")
    yield other


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The context in which the library of an archive lies in a folder, which is removed at its end.

    Raises:
        LibraryNotFoundError: there is no such file.
        LibraryArchiveError: it is no such archive, or has something in it that no library has.
        LibraryFullError: there is no room to unpack it.
    """
    try:
        file = os.fdopen(open_regular(path), "rb")
    except FileNotFoundError as error:
        raise LibraryNotFoundError(f"there is no folder and no file {path}") from error
    except (NotRegularError, OSError) as error:
        raise LibraryArchiveError(f"{path} cannot be read: {error}") from error
    with file, tempfile.TemporaryDirectory(prefix="kamera-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            needed = os.fstat(file.fileno()).st_size
            if needed > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _unpack(file, folder)
            roots = {each.parent for pattern in (LIBRARY, f"*/{LIBRARY}") for each in folder.glob(pattern)}
            if len(roots) != 1:
                raise ValueError(f"it has {len(roots)} libraries in it; expected one")
            for own in OWN_FOLDERS:
                (min(roots) / own).mkdir(exist_ok=True)  # some programs leave empty folders out
        except (tarfile.TarError, EOFError, OSError, *MALFORMED) as error:
            if is_full(error):
                raise LibraryFullError(
                    f"{path} is unpacked in {folder.parent}, whose disk has no room for it; name another folder in the "
                    "environment, TMPDIR"
                ) from error
            raise LibraryArchiveError(
                f"{path} is no library as export writes one into a file, or is not whole: {error}"
            ) from error
        yield min(roots)


def _unpack(file: IO[bytes], folder: Path) -> None:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            parts = _parts(member.name)
            place = folder.joinpath(*parts)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            # A sparse file would take room that the archive does not have.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None or not parts:
                raise ValueError(f"{member.name!r:.80} is neither a regular file nor a folder")
            content: Any = archive.extractfile(member)
            place.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(open_regular(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as to:
                shutil.copyfileobj(content, to, 2**20)


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the file that a member's name has, none of which leads elsewhere."""
    parts = tuple(part for part in PurePosixPath(name).parts if part != ".")
    odd = name.startswith("/") or ".." in parts or len(parts) > _DEEPEST
    if odd or any("\\" in part or ":" in part or "\0" in part for part in parts):
        raise ValueError(f"{name!r:.80} leads out of the library's folder")
    return parts
