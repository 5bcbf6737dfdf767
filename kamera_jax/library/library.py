"""The chunk library: what was encoded once, found by its content, in every process that opens the folder."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from kamera_jax.arguments import check_choice, check_type
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.errors import ChunkNotFoundError, LibraryCorruptError, LibraryReadOnlyError
from kamera_jax.kv import KV
from kamera_jax.library import bulk, collection, marks
from kamera_jax.library.arrays import writer
from kamera_jax.library.bulk import Stacked
from kamera_jax.library.commit import LOCK, PACK_BYTES, STAGING, Committer, named_errors
from kamera_jax.library.facts import Collected, Item, LibraryReport, LibraryStats
from kamera_jax.library.failures import reading_errors
from kamera_jax.library.files import locked
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.index import Index
from kamera_jax.library.layout import check_format, make
from kamera_jax.library.leftovers import size, sweep
from kamera_jax.library.manifest import KEY
from kamera_jax.library.packs import THREADS, Pack
from kamera_jax.library.rows import Kind, Storage, chunk_of, kv_leaves, patch_of, row_of
from kamera_jax.record import Arrays, Plain, library_repr

Mode = Literal["r", "a"]
Verify = Literal["always", "first", "never"]

_ATTEMPTS = 5


class ChunkLibrary:
    """Chunks and patches in a folder, safe against crashes and against what a disk does to bytes.

    Several processes, and several threads of each, may put, get, delete and collect at once. What `put` has returned
    for is there for good; a process that dies leaves nothing half-written that could be seen.
    """

    __repr__ = library_repr

    def __init__(self, root: Path, mode: Mode, verify: Verify) -> None:
        """Use `open`."""
        self.root = root
        self.mode = mode
        self._pid = os.getpid()
        self._verify = verify
        self._index = Index(root)
        self._committer = Committer(root, self._index)
        self._checked: set[str] = set()
        self._index.refresh(force=True)

    @classmethod
    def open(cls, path: str | Path, mode: Mode = "r", *, verify: Verify = "always") -> "ChunkLibrary":
        """Open a library.

        Args:
            path: its folder.
            mode: ``"r"`` reads; ``"a"`` writes too, and makes the library if the folder is empty or not there.
            verify: compare what is read with its sha256 ``"always"``, the ``"first"`` time this object reads it, or
                ``"never"``.

        Raises:
            LibraryNotFoundError: the path is no library.
            LibraryVersionError: it has a format that this version does not read.
            LibraryCorruptError: its first file is not as it was written.
            LibraryReadOnlyError: ``mode="a"``, and it may not be written to.
            ValueError: an unknown mode or verify.
        """
        if mode not in get_args(Mode) or verify not in get_args(Verify):
            raise ValueError(
                f"mode is one of {get_args(Mode)}, verify one of {get_args(Verify)}; got {mode!r}, {verify!r}"
            )
        check_type(path, (str, os.PathLike), "path", "the library's folder")
        root = Path(path).absolute()
        check_unforked(f"the library at {root}")
        if mode == "a":
            make(root)
        check_format(root)
        if mode == "a":
            with named_errors(root), locked(root / LOCK):
                sweep(root, STAGING)
                marks.begin(root)
        with reading_errors(root):
            return cls(root, mode, verify)

    def put(self, item: Chunk | Patch, *, storage: Storage = "exact") -> str:
        """Store a chunk or a patch; nothing is written if its key is there already.

        Args:
            item: of any model. A patch can be stored without its chunk, and a kept turn as any chunk.
            storage: of a chunk's KV: ``"exact"``, or ``"int8"`` at about half the bytes of bf16; docs/library.md has
                what that costs. Patches are stored as they are.

        Returns:
            Its key: for `get`, or for `get_patch`.

        Raises:
            LibraryReadOnlyError: the library was opened for reading, or may not be written to.
            LibraryFullError: the disk has no room; nothing was stored.
            LibraryNotFoundError, LibraryDiskError: the library is gone, or its disk fails.
            MissingKeyError: it has no key: its arrays may hold anything.
            UnstorableError: something in it cannot be stored, or would not come back as it is.
            ForkedProcessError: the library was opened before this process was forked.
            ValueError: it is no chunk and no patch.
        """
        return self.put_async(item, storage=storage).result()

    def put_async(self, item: Chunk | Patch, *, storage: Storage = "exact") -> "Future[str]":
        """Store an item without waiting: the future gives its key; the item is copied before this returns. See `put`.

        What is put while the writer is busy is written together. Waits when too much is waiting.
        """
        self._check_writable()
        future = self._committer.add(row_of(item, storage))
        self._committer.flush()
        return future

    def put_many(self, items: Iterable[Chunk | Patch], *, storage: Storage = "exact") -> list[str]:
        """Store items in packs of 256 MiB: the way to store many. See `put`.

        An item that cannot be stored costs no other: all others are stored before its error is raised.
        """
        self._check_writable()
        check_choice(storage, get_args(Storage), "storage")
        check_type(items, Iterable, "items", "chunks and patches; for one item [item]")
        futures: list[Future[str]] = []
        size = 0
        try:
            for item in items:
                try:
                    row = row_of(item, storage)
                except ValueError as error:
                    futures.append(Future())
                    futures[-1].set_exception(error)
                    continue
                futures.append(self._committer.add(row))
                size += row.nbytes
                if size >= PACK_BYTES:
                    self._committer.flush()
                    size = 0
        finally:
            self._committer.flush()
        wait(futures)
        return [future.result() for future in futures]

    def get(self, key: str) -> Chunk:
        """A chunk.

        Raises:
            ChunkNotFoundError: there is none of this key.
            LibraryCorruptError: it is not as it was written, or its pack is gone.
        """
        return chunk_of(*self._row(key, "chunks"))

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """See `kamera_jax.store.Store.find`.

        Raises:
            LibraryCorruptError: it is there, and not as it was written.
        """
        try:
            chunk = self.get(key)
        except ChunkNotFoundError:
            return None
        return chunk if codec in (None, chunk.codec) else None

    def release(self, key: str) -> None:
        """See `kamera_jax.store.Store.release`; a library keeps what it has until `delete`."""

    def get_many(self, keys: Iterable[str]) -> list[Chunk]:
        """Chunks in the order of their keys, read several at once; see `get`."""
        check_type(keys, Iterable, "keys", "what put returned for each; for one chunk use get(key)")
        with ThreadPoolExecutor(THREADS) as pool:
            return [chunk_of(*row) for row in pool.map(lambda key: self._row(key, "chunks"), keys)]

    def get_patch(self, key: str) -> Patch:
        """A patch by the key that `put` gave for it; raises as `get`."""
        about, _, leaves = self._row(key, "patches")
        return patch_of(about, leaves)

    def get_kv(self, key: str, layers: slice = slice(None)) -> KV:
        """KV of some layers of a chunk, of which alone the bytes are read; raises as `get`.

        Args:
            key: of the chunk.
            layers: consecutive.

        Returns:
            KV [l, T, ·].
        """
        _check_key(key)
        check_type(layers, slice, "layers", "consecutive layers, such as slice(0, 2)")
        if layers.step not in (None, 1):
            raise ValueError(f"layers must be consecutive; got {layers}")
        _, (about, _, leaves) = self._pack_and_row(
            key, "chunks", wanted=lambda name: name.startswith("kv."), layers=layers
        )
        kv = kv_leaves(about, leaves)
        return KV(jnp.asarray(kv["kv.rot"]), jnp.asarray(kv["kv.free"]))

    def patches(self, key: str, antecedents: Sequence[str] | None = None) -> tuple[Patch, ...]:
        """The patches of a chunk, in the order of their keys; the chunk is not read, and need not be there.

        Args:
            key: of the chunk.
            antecedents: only those formed after these chunks, in this order.
        """
        _check_key(key)
        self._index.refresh()
        patches = (self.get_patch(patch) for patch in self._index.patches(key))
        return tuple(patch for patch in patches if antecedents is None or patch.antecedents == tuple(antecedents))

    def has(self, key: str) -> bool:
        """Whether a chunk or patch of this key can be read."""
        _check_key(key)
        self._index.refresh()
        return bool(self._index.packs_of(key))

    def keys(self, kind: Kind = "chunks") -> tuple[str, ...]:
        """The keys of all chunks, or of all patches."""
        check_choice(kind, get_args(Kind), "kind")
        self._index.refresh()
        return self._index.keys(kind)

    def info(self, key: str) -> Item:
        """What is stored under a key, of a chunk or of a patch; no array is read. Raises as `get`."""
        _check_key(key)
        self._index.refresh()
        kind: Kind = "patches" if "patches" in self._index.kinds_of(key) else "chunks"
        pack, _ = self._pack_and_row(key, kind, wanted=lambda name: False)
        return self._item(pack, key, kind)

    def items(self) -> Iterator[Item]:
        """What is stored under every key, of chunks and then of patches; see `info`. What cannot be read is left out.

        What is put or deleted meanwhile is among them or not.
        """
        self._index.refresh()
        for kind in get_args(Kind):
            for key in self._index.keys(kind):
                with contextlib.suppress(LibraryCorruptError, ChunkNotFoundError):
                    try:
                        if (pack := self._index.find(key, kind)) is not None:
                            yield self._item(pack, key, kind)
                    except FileNotFoundError:  # collected meanwhile
                        yield self.info(key)

    def _item(self, pack: Pack, key: str, kind: Kind) -> Item:
        about, spec, nbytes = pack.facts(key)
        patches = self._index.patches(key) if kind == "chunks" else ()
        return Item(key, kind, about, spec, nbytes, pack.folder.name, patches)

    def delete(self, key: str) -> bool:
        """Remove a chunk with its patches, or a patch; whether there was something to remove.

        Its room comes free with `gc`.

        Raises:
            LibraryReadOnlyError: see `put`.
        """
        _check_key(key)
        self._check_writable()
        return collection.delete(self._committer, key)

    def verify(self) -> LibraryReport:
        """Read everything and compare it with its digests. Raises nothing: the report says what is wrong."""
        return collection.checked(self._index)

    def gc(self) -> Collected:
        """Free the room of what was deleted: packs of which less than half is alive, and small ones, are put together.

        Packs of which nothing is alive go first, and need no room. Others may go on reading, putting and deleting:
        they wait for one pack at most. What is lost is given up.

        Raises:
            LibraryReadOnlyError: see `put`.
        """
        self._check_writable()
        return collection.collect(self._committer)

    def stats(self) -> LibraryStats:
        """What the library holds."""
        self._index.refresh()
        packs = self._index.packs()
        return LibraryStats(
            chunks=len(self._index.keys("chunks")),
            patches=len(self._index.keys("patches")),
            packs=len(packs),
            bytes=size(self.root),
            deleted=sum(len(keys.keys) - len(self._index.live(name)) for name, keys in packs.items()),
            damaged=len(self._index.damaged),
            lost=len(self._index.lost()),
        )

    def packs(self, kind: Kind = "chunks") -> tuple[str, ...]:
        """Names of the packs, for `restore`."""
        self._index.refresh()
        return tuple(name for name, keys in self._index.packs().items() if keys.kind == kind)

    def restore(self, pack: str, *, sharding: jax.sharding.Sharding | None = None) -> tuple[Stacked, ...]:
        """All chunks of a pack at once, straight to where they are wanted.

        Args:
            pack: of `packs`.
            sharding: of ``kv.rot`` and ``kv.free`` [N, L, T, F]; everything else lies on all of its devices. Orbax
                reads what each device needs. None for the default device, at the speed of the disk.

        Returns:
            Chunks of equal shapes, stacked.

        Raises:
            ChunkNotFoundError: there is no such pack.
            LibraryCorruptError: it is not as it was written.
            ValueError: the sharding does not split the arrays evenly, or its devices cannot take them.
        """
        check_type(pack, str, "pack", "one of what packs() returns")
        self._index.refresh()
        check = self._verify == "always" or (self._verify == "first" and pack not in self._checked)
        try:
            files = self._index.pack(pack)
            live = self._index.live(pack)
            stacked = bulk.restore(files, live, sharding, verified=check)
        except (KeyError, FileNotFoundError) as error:
            raise ChunkNotFoundError(f"{self.root} has no pack {pack!r} of chunks; packs() names them") from error
        if check:
            self._checked.add(pack)
        return stacked

    def close(self) -> None:
        """Wait for what was put, and write down what is where, so that the next to open need not look."""
        if self.mode == "a":
            check_unforked(f"the library at {self.root}", self._pid)
            writer().submit(lambda: None).result()
            with self._committer.writing():
                self._index.save()

    def __enter__(self) -> "ChunkLibrary":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid == os.getpid():  # a forked process has nothing to write down
            self.close()

    def _check_writable(self) -> None:
        check_unforked(f"the library at {self.root}", self._pid)
        if self.mode == "r":
            raise LibraryReadOnlyError(f"{self.root} was opened for reading; open it with mode='a'")

    def _row(self, key: str, kind: Kind) -> tuple[Plain, Plain | None, Arrays]:
        """The row of a key; see `Pack.row`."""
        _check_key(key)
        return self._pack_and_row(key, kind)[1]

    def _pack_and_row(
        self, key: str, kind: Kind, *, wanted: Callable[[str], bool] | None = None, layers: slice = slice(None)
    ) -> tuple[Pack, tuple[Plain, Plain | None, Arrays]]:
        """The pack that holds a key, and its row; another pack's where one is collected meanwhile."""
        for attempt in range(_ATTEMPTS):
            self._index.refresh(force=attempt > 0)
            try:
                if (pack := self._index.find(key, kind)) is None:
                    break
                place = f"{pack.folder.name}.{key}"
                known = place in self._checked or pack.folder.name in self._checked
                check = self._verify == "always" or (self._verify == "first" and not known)
                row = pack.row(key, wanted=wanted, layers=layers, verified=check)
            except FileNotFoundError:
                continue
            if check and wanted is None:
                self._checked.add(place)
            return pack, row
        raise self._missing(key, kind)

    def _missing(self, key: str, kind: Kind) -> ValueError:
        if (pack := self._index.lost_pack(key)) is not None:
            return LibraryCorruptError(f"the pack {pack} of {key[:12]} in {self.root} is gone; put it anew")
        if self._index.packs_of(key):
            other = {"chunks": "a patch: use get_patch", "patches": "a chunk: use get"}[kind]
            return ChunkNotFoundError(f"{key[:12]} in {self.root} is the key of {other}")
        damaged = len(self._index.damaged)
        why = f"; {damaged} of its packs cannot be read, see verify()" if damaged else ""
        what = key[:12] if KEY.fullmatch(key) else repr(key)
        return ChunkNotFoundError(f"{self.root} holds nothing under {what}{why}: it was never stored, or was deleted")


def _check_key(key: Any) -> None:
    check_type(key, str, "key", "what put returned, or the key of a chunk or patch")
