"""Copies of a library: into another, into one file, and to where it is read in place."""

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kamera_jax.arguments import check_keys, check_type
from kamera_jax.errors import ExportError, LibraryReadOnlyError
from kamera_jax.library import exchange, publishing
from kamera_jax.library.commit import Committer
from kamera_jax.library.facts import Exchanged, Publication
from kamera_jax.library.index import Index
from kamera_jax.library.objects import Objects, is_url
from kamera_jax.library.reading import Reader
from kamera_jax.library.rows import Kind


class Copies:
    """What a `kamera_jax.ChunkLibrary` does with others."""

    root: Path | str
    open: Any
    _index: Index
    _reader: Reader
    _writable: Callable[..., Committer]

    def export(self, to: str | Path, keys: Iterable[str] | None = None) -> Exchanged:
        """Copy chunks and patches to another library, or to one file: as they are stored, with their origins.

        Args:
            to: a folder that is a library, is empty or is not there yet; or a file whose name ends in ``.tar``, which
                is not there yet. What is not there yet comes there whole or not at all.
            keys: of chunks, whose patches go along, and of patches, or their beginnings; everything by default.

        Returns:
            What was copied, and what was not: it is not as it was written.

        Raises:
            ExportError: something else is there, or nothing can be written there.
            ChunkNotFoundError, AmbiguousKeyError, LibraryCorruptError: of a key, as `get`; nothing is copied then.
            LibraryFullError, LibraryDiskError: see `put`.
        """
        check_type(to, (str, os.PathLike), "to", "a folder, or a file whose name ends in .tar")
        path = Path(to).absolute()
        if is_url(to):
            raise ExportError(f"{to!r:.200} is an address: publish() there; what is read in place is not added to")
        exchange.check_target(None if isinstance(self.root, str) else self.root, path)
        reader = Reader(self._index, "always")
        wanted = exchange.selected(reader, None if keys is None else check_keys(keys))
        if path.is_dir():
            return self._exported(reader, path, wanted)
        with exchange.beside(path) as place:
            return self._exported(reader, place, wanted)

    def _exported(self, reader: Reader, to: Path, wanted: dict[str, Kind]) -> Exchanged:
        with self.open(to, mode="a") as other:
            return exchange.copy(reader, other._committer, wanted)

    def import_from(self, other: str | Path, keys: Iterable[str] | None = None) -> Exchanged:
        """Copy chunks and patches from another library, or from a file that `export` wrote; see `export`.

        The other may be one that was published, by its address. What is there already stays as it is. Whoever made the
        other library, what comes from it is checked as what is put is.

        Raises:
            LibraryNotFoundError, LibraryVersionError: there is none, or none that this version reads.
            LibraryArchiveError: the file holds none, or has links in it.
            LibraryReadOnlyError, LibraryFullError, LibraryDiskError: see `put`; what came before is there.
            ChunkNotFoundError, AmbiguousKeyError, LibraryCorruptError: of a key, as `get`; nothing is copied then.
        """
        committer = self._writable()
        check_type(other, (str, os.PathLike), "other", "a library's folder, or a file that export wrote")
        where = nullcontext(other) if is_url(other) else exchange.opened(committer.root, Path(other).absolute())
        with where as root:
            reader = self.open(root)._reader
            wanted = exchange.selected(reader, None if keys is None else check_keys(keys))
            return exchange.copy(reader, committer, wanted)

    def publish(self, url: str, *, prune: bool = False) -> Publication:
        """Have this library read in place at an address: what is not there yet is uploaded, then all of it is named.

        Whoever opens the address has the state before or this one, never a part; who opened it before goes on with that
        one. What was interrupted changes nothing for readers, and goes on when it is asked for again. Rows that were
        deleted are no part of it, but lie in the packs that are uploaded until `gc` has written these anew.

        Args:
            url: a folder of an object store, as ``gs://bucket/pages``, ``s3://…`` or ``file://…``, for one library.
            prune: then remove what this state does not name: readers of states before it lose that.

        Returns:
            What was uploaded, and what was not.

        Raises:
            PublishedMeanwhileError: another published there meanwhile; readers have theirs, whole.
            ExportError: another library is published there, or nothing can be written there.
            LibraryCorruptError: something here is not as it was written, see `verify`; nothing is published.
            LibraryReadOnlyError, LibraryFullError, LibraryDiskError: the store refuses, is full, or does not answer.
            LibraryNotFoundError: it is no such address.
        """
        check_type(url, str, "url", "the address of a folder in an object store")
        if isinstance(self.root, str):
            raise LibraryReadOnlyError(f"{self.root} is read in place; publish the library's folder")
        return publishing.publish(self._index, self.root, Objects.open(url), prune=prune)
