"""The chunk library: what was encoded once, found by its content, in every process that opens the folder."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kamera_jax.arguments import check_choice, check_keys, check_type
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ChunkNotFoundError, LibraryReadOnlyError
from kamera_jax.kv import KV
from kamera_jax.library import bulk, collection, marks, published
from kamera_jax.library.arrays import writer
from kamera_jax.library.bulk import Stacked, Where
from kamera_jax.library.commit import Committer, named_errors
from kamera_jax.library.copies import Copies
from kamera_jax.library.facts import Collected, Item, LibraryReport, LibraryStats
from kamera_jax.library.failures import reading_errors
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.index import Index
from kamera_jax.library.layout import check_format, check_lease, make
from kamera_jax.library.leases import SECONDS
from kamera_jax.library.leftovers import sweep
from kamera_jax.library.objects import Objects, is_url
from kamera_jax.library.origin import Origin
from kamera_jax.library.packs import THREADS
from kamera_jax.library.places import Folder, Place
from kamera_jax.library.reading import Reader, Verify
from kamera_jax.library.rows import Kind, Storage, check_storage, chunk_of, patch_of, row_of
from kamera_jax.library.slices import consecutive, read_kv, read_rot
from kamera_jax.library.storing import put_all
from kamera_jax.library.writers import Lock, Writers
from kamera_jax.record import library_repr

Mode = Literal["r", "a"]

_IN_PLACE = "is read in place, and not written to: put into the library's folder, and publish() that there"


class ChunkLibrary(Copies):
    """Chunks and patches in a folder, safe against crashes and against what a disk does to bytes.

    Several processes, and several threads of each, may put, get, delete and collect at once. What `put` has returned
    for is there for good; a process that dies leaves nothing half-written that could be seen.
    """

    __repr__ = library_repr

    def __init__(self, place: Place, mode: Mode, verify: Verify, writers: Writers | None) -> None:
        """Use `open`."""
        self.root = place.root
        self.mode = mode
        self._pid = os.getpid()
        self._index = Index(place)
        self._reader = Reader(self._index, verify)
        self._committer = None if writers is None else Committer(writers.root, self._index, writers)
        self._index.refresh(force=True)

    @classmethod
    def open(
        cls,
        path: str | Path,
        mode: Mode = "r",
        *,
        verify: Verify = "always",
        lock: Lock | None = None,
        lease_seconds: float = SECONDS,
    ) -> "ChunkLibrary":
        """Open a library.

        Args:
            path: its folder; or the address that it was published at, see `publish`, as ``gs://bucket/pages``,
                ``s3://…``, ``http(s)://…`` or ``file://…``: it is read in place there, as it is now.
            mode: ``"r"`` reads; ``"a"`` writes too, and makes the library if the folder is empty or not there.
            verify: compare what is read with its digests ``"always"``, the ``"first"`` time this object reads it, or
                ``"never"``.
            lock: by what writers take turns, for good: ``"file"``, the default of a new library, the system's lock;
                ``"lease"`` where several hosts write to one folder of a network. None for what the library has.
            lease_seconds: after which others take over a lease that is not renewed, as a thread does; 0.5 to 3600.

        Raises:
            LibraryNotFoundError: the path is no library.
            LibraryVersionError: it has a format that this version does not read.
            LibraryCorruptError: its first file is not as it was written.
            LibraryReadOnlyError: ``mode="a"``, and it may not be written to.
            LibraryDiskError: an object store does not answer, or refuses; so may all that read there.
            ValueError: an unknown mode, verify or lock, a lock that is not the library's, or no such seconds.
        """
        check_choice(mode, get_args(Mode), "mode")
        check_choice(verify, get_args(Verify), "verify")
        check_type(path, (str, os.PathLike), "path", "the library's folder")
        check_lease(lock, lease_seconds)
        if is_url(path):
            if mode == "a" or lock is not None:
                raise LibraryReadOnlyError(f"{path} {_IN_PLACE}")
            return cls(published.opened(Objects.open(str(path))), mode, verify, None)
        root = Path(path).absolute()
        check_unforked(f"the library at {root}")
        if mode == "a":
            make(root, lock or "file")
        writers = Writers(root, check_format(root, lock), lease_seconds)
        if mode == "a":
            with named_errors(root), writers.one() as turn:
                sweep(root, turn.staging)
                marks.begin(root, turn.through)
        with reading_errors(root):
            return cls(Folder(root), mode, verify, writers)

    def put(self, item: Chunk | Patch, *, storage: Storage = "exact", origin: Origin | None = None) -> str:
        """Store a chunk or a patch; nothing is written if its key is there already.

        Args:
            item: of any model. A patch can be stored without its chunk, and a kept turn as any chunk.
            storage: of a chunk's KV: ``"exact"``, or a codec of `kamera_jax.compress`, as ``"int8"`` at about half the
                bytes of bf16 or ``"kivi:4"``; docs/library.md has what that costs. Patches are stored as they are.
            origin: where a chunk came from; `info` and `items` give it back. It is no part of the key: of equal
                content from two places the first place is kept, until the chunk is deleted.

        Returns:
            Its key: for `get`, or for `get_patch`.

        Raises:
            LibraryReadOnlyError: the library was opened for reading, or may not be written to.
            LibraryFullError: the disk has no room; nothing was stored.
            LibraryNotFoundError, LibraryDiskError: the library is gone, or its disk fails.
            MissingKeyError: it has no key: its arrays may hold anything.
            UnstorableError: something in it cannot be stored, or would not come back as it is.
            CodecError: there is no such storage.
            ForkedProcessError: the library was opened before this process was forked.
            LeaseLostError: another took over, see `open`; nothing was stored: put it again.
            ValueError: it is no chunk and no patch, or a patch with an origin.
        """
        return self.put_async(item, storage=storage, origin=origin).result()

    def put_async(
        self, item: Chunk | Patch, *, storage: Storage = "exact", origin: Origin | None = None
    ) -> "Future[str]":
        """Store an item without waiting: the future gives its key; the item is copied before this returns. See `put`.

        What is put while the writer is busy is written together. Waits when too much is waiting.
        """
        committer = self._writable()
        future = committer.add(row_of(item, storage, origin))
        committer.flush()
        return future

    def put_many(
        self,
        items: Iterable[Chunk | Patch],
        *,
        storage: Storage = "exact",
        origins: Iterable[Origin | None] | None = None,
    ) -> list[str]:
        """Store items in packs of 256 MiB: the way to store many. See `put`.

        An item that cannot be stored costs no other: all others are stored before its error is raised.

        Args:
            items, storage: see `put`.
            origins: where each item came from, in the same order; None for what has none, such as a patch.
        """
        committer = self._writable()
        check_storage(storage)
        return put_all(committer, items, storage, origins)

    def resolve(self, key: str, kind: Kind | None = None) -> str:
        """The one key that begins with some hexadecimal digits; a whole key is given back without a look.

        `get` and all others that take a key do this first, `find` alone takes whole keys only.

        Args:
            key: at least the first 4 digits of it.
            kind: of chunks or of patches; of both by default.

        Raises:
            ChunkNotFoundError: no key begins so, or it is too short to tell.
            AmbiguousKeyError: several keys do.
        """
        check_choice(kind, (*get_args(Kind), None), "kind")
        return self._reader.resolve(key, kind)

    def get(self, key: str) -> Chunk:
        """A chunk, by its key or the beginning of it, see `resolve`.

        Raises:
            ChunkNotFoundError: there is none of this key.
            AmbiguousKeyError: several keys begin so.
            LibraryCorruptError: it is not as it was written, or its pack is gone.
        """
        return chunk_of(*self._reader.row(self.resolve(key, "chunks"), "chunks"))

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """See `kamera_jax.store.Store.find`.

        Raises:
            LibraryCorruptError: it is there, and not as it was written.
        """
        check_type(key, str, "key", "of a chunk")
        try:
            chunk = chunk_of(*self._reader.row(key, "chunks"))
        except ChunkNotFoundError:
            return None
        return chunk if codec in (None, chunk.codec) else None

    def release(self, key: str) -> None:
        """See `kamera_jax.store.Store.release`; a library keeps what it has until `delete`."""

    def get_many(self, keys: Iterable[str]) -> list[Chunk]:
        """Chunks in the order of their keys, read several at once; see `get`."""
        check_keys(keys)
        with ThreadPoolExecutor(THREADS) as pool:
            return [chunk_of(*row) for row in self._reader.rows(pool, list(keys), "chunks")]

    def get_patch(self, key: str) -> Patch:
        """A patch by the key that `put` gave for it; raises as `get`."""
        about, _, leaves = self._reader.row(self.resolve(key, "patches"), "patches")
        return patch_of(about, leaves)

    def get_kv(self, key: str, layers: slice = slice(None)) -> KV:
        """KV of some layers of a chunk, of which alone the bytes are read if they are stored apart; raises as `get`.

        Args:
            key: of the chunk.
            layers: consecutive.

        Returns:
            KV [l, T, ·].
        """
        rot, free = read_kv(self._reader, self.resolve(key, "chunks"), consecutive(layers))
        return KV(jnp.asarray(rot), jnp.asarray(free))

    def get_rot(self, key: str, layers: slice = slice(None)) -> Float[np.ndarray, "l T Fr"]:
        """The same of ``rot`` alone, in host memory: un-rotated keys, which a search reads of many chunks."""
        return np.asarray(read_rot(self._reader, self.resolve(key, "chunks"), consecutive(layers)))

    def patches(self, key: str, antecedents: Sequence[str] | None = None) -> tuple[Patch, ...]:
        """The patches of a chunk, in the order of their keys; the chunk is not read, and need not be there.

        Args:
            key: of the chunk.
            antecedents: only those formed after these chunks, in this order.
        """
        key = self._reader.resolve_patched(key)
        self._index.refresh()
        patches = (self.get_patch(patch) for patch in self._index.patches(key))
        return tuple(patch for patch in patches if antecedents is None or patch.antecedents == tuple(antecedents))

    def has(self, key: str) -> bool:
        """Whether a chunk or patch of this key can be read.

        Raises:
            AmbiguousKeyError: it is the beginning of several keys.
        """
        return self._reader.has(key)

    def keys(self, kind: Kind = "chunks") -> tuple[str, ...]:
        """The keys of all chunks, or of all patches."""
        check_choice(kind, get_args(Kind), "kind")
        self._index.refresh()
        return self._index.keys(kind)

    def info(self, key: str) -> Item:
        """What is stored under a key, of a chunk or of a patch; no array is read. Raises as `get`."""
        return self._reader.item(self.resolve(key))

    def items(self) -> Iterator[Item]:
        """What is stored under every key, of chunks and then of patches; see `info`. What cannot be read is left out.

        What is put or deleted meanwhile is among them or not.
        """
        return self._reader.items()

    def delete(self, key: str) -> bool:
        """Remove a chunk with its patches, or a patch; whether there was something to remove.

        Its room comes free with `gc`.

        Raises:
            LibraryReadOnlyError: see `put`.
            AmbiguousKeyError: it is the beginning of several keys; nothing is removed.
        """
        committer = self._writable()
        try:
            key = self.resolve(key)
        except ChunkNotFoundError:
            return False
        return collection.delete(committer, key)

    def verify(self) -> LibraryReport:
        """Read everything and compare it with its digests.

        It raises nothing of what is wrong, which the report says; a store that does not answer is a LibraryDiskError.
        """
        return collection.checked(self._index)

    def gc(self) -> Collected:
        """Free the room of what was deleted: packs of which less than half is alive, and small ones, are put together.

        Packs of which nothing is alive go first, and need no room. Others may go on reading, putting and deleting:
        they wait for one pack at most. What is lost is given up.

        Raises:
            LibraryReadOnlyError: see `put`.
        """
        return collection.collect(self._writable())

    def stats(self) -> LibraryStats:
        """What the library holds."""
        return collection.counted(self._index)

    def packs(self, kind: Kind = "chunks") -> tuple[str, ...]:
        """Names of the packs, for `restore`."""
        self._index.refresh()
        return tuple(name for name, keys in self._index.packs().items() if keys.kind == kind)

    def restore(self, pack: str, *, sharding: Where | None = None) -> tuple[Stacked, ...]:
        """All chunks of a pack at once, straight to where they are wanted.

        Args:
            pack: of `packs`.
            sharding: of ``kv.rot`` and ``kv.free`` [N, L, T, F], or the ``placement`` of a model on a mesh; everything
                else lies on all of its devices. Orbax reads what each device needs. None for the default device, at the
                speed of the disk.

        Returns:
            Chunks of equal shapes, stacked.

        Raises:
            ChunkNotFoundError: there is no such pack.
            LibraryCorruptError: it is not as it was written.
            ValueError: the sharding does not split the arrays evenly, or its devices cannot take them.
        """
        check_type(pack, str, "pack", "one of what packs() returns")
        return bulk.restore_pack(self._reader, pack, sharding)

    def close(self) -> None:
        """Wait for what was put, and write down what is where, so that the next to open need not look."""
        if self.mode == "a":
            committer = self._writable()
            writer().submit(lambda: None).result()
            with committer.writing():
                self._index.save()

    def __enter__(self) -> "ChunkLibrary":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid == os.getpid():  # a forked process has nothing to write down
            self.close()

    def _writable(self) -> Committer:
        check_unforked(f"the library at {self.root}", self._pid)
        if self._committer is None:
            raise LibraryReadOnlyError(f"{self.root} {_IN_PLACE}")
        if self.mode == "r":
            raise LibraryReadOnlyError(f"{self.root} was opened for reading; open it with mode='a'")
        return self._committer
