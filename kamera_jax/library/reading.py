"""Reading a library by key: the whole key, or as much of its beginning as names one."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, get_args

from kamera_jax.arguments import check_type
from kamera_jax.errors import AmbiguousKeyError, ChunkNotFoundError, LibraryCorruptError
from kamera_jax.library.facts import Item
from kamera_jax.library.index import Index
from kamera_jax.library.manifest import KEY
from kamera_jax.library.origin import Origin
from kamera_jax.library.packs import Pack
from kamera_jax.library.rows import Kind
from kamera_jax.record import Arrays, Plain

Verify = Literal["always", "first", "never"]

SHORTEST = 4
"""Digits of a key that name it, at least."""

_BEGINNING = re.compile(rf"[0-9a-f]{{{SHORTEST},63}}")
_ATTEMPTS = 5


class Reader:
    """What one `ChunkLibrary` reads, and what it has compared with its digests already."""

    def __init__(self, index: Index, verify: Verify) -> None:
        """Read nothing yet."""
        self.root = index.place.root
        self.index = index
        self._verify = verify
        self._checked: set[str] = set()

    def resolve(self, key: str, kind: Kind | None = None) -> str:
        """The key that is given, or the one key that begins so; see `ChunkLibrary.resolve`."""
        check_type(key, str, "key", "what put returned, the key of a chunk or patch, or its beginning")
        if KEY.fullmatch(key):
            return key
        self._check_beginning(key)
        self.index.refresh()
        found = self.index.keys_from(key)
        return self._only(key, [each for each, kinds in found.items() if kind in (None, *kinds)] or list(found))

    def resolve_patched(self, key: str) -> str:
        """As `resolve`, of a chunk that need not be there itself if patches of it are."""
        check_type(key, str, "key", "the key of a chunk, or its beginning")
        if KEY.fullmatch(key):
            return key
        self._check_beginning(key)
        self.index.refresh()
        chunks = [each for each, kinds in self.index.keys_from(key).items() if "chunks" in kinds]
        return self._only(key, sorted({*chunks, *self.index.patched_from(key)}))

    def _check_beginning(self, key: str) -> None:
        if not _BEGINNING.fullmatch(key):
            raise ChunkNotFoundError(
                f"{self.root} has no key that begins with {key!r:.80}: a key has 64 hexadecimal digits in lower case, "
                f"of which at least the first {SHORTEST} are needed"
            )

    def _only(self, start: str, found: Sequence[str]) -> str:
        if not found:
            raise ChunkNotFoundError(f"{self.root} has no key that begins with {start!r}{self._damage()}")
        if len(found) > 1:
            some = ", ".join(each[: max(12, len(start) + 4)] for each in found[:3])
            more = ", …" if len(found) > 3 else ""
            raise AmbiguousKeyError(
                f"{len(found)} keys in {self.root} begin with {start!r} ({some}{more}); give more of it"
            )
        return found[0]

    def has(self, key: str) -> bool:
        """Whether something that is alive has the key."""
        try:
            key = self.resolve(key)
        except ChunkNotFoundError:
            return False
        self.index.refresh()
        return bool(self.index.packs_of(key))

    def row(self, key: str, kind: Kind) -> tuple[Plain, Plain | None, Arrays]:
        """The row of a whole key; see `Pack.row`."""
        return self.pack_and_row(key, kind)[1]

    def rows(self, pool: Executor, keys: Sequence[str], kind: Kind) -> Iterator[tuple[Plain, Plain | None, Arrays]]:
        """Rows of keys or their beginnings, in their order, read several at once.

        They are asked for together where that helps; see `kamera_jax.library.places.Place`.
        """
        for batch in self._batches(keys, kind):
            with self.index.ahead(batch, kind) if self.index.place.batch else contextlib.nullcontext():
                yield from pool.map(lambda key: self.row(self.resolve(key, kind), kind), batch)

    def _batches(self, keys: Sequence[str], kind: Kind) -> Iterator[Sequence[str]]:
        most = self.index.place.batch
        if most is None:
            yield keys
            return
        self.index.refresh()
        batch: list[str] = []
        nbytes = 0
        for key in keys:
            key = self.resolve(key, kind)
            batch.append(key)
            with contextlib.suppress(LibraryCorruptError):  # said where it is read
                if (pack := self.index.find(key, kind)) is not None:
                    nbytes += pack.manifest.row_nbytes(key)
            if nbytes >= most:
                yield batch
                batch = []
                nbytes = 0
        yield batch

    def pack_and_row(
        self, key: str, kind: Kind, *, wanted: Callable[[str], bool] | None = None, layers: slice = slice(None)
    ) -> tuple[Pack, tuple[Plain, Plain | None, Arrays]]:
        """The pack that holds a key, and its row; another pack's where one is collected meanwhile."""
        for attempt in range(_ATTEMPTS):
            self.index.refresh(force=attempt > 0)
            try:
                if (pack := self.index.find(key, kind)) is None:
                    break
                place = f"{pack.name}.{key}"
                check = self._verify == "always" or (self._verify == "first" and not self._knows(place, pack))
                row = pack.row(key, wanted=wanted, layers=layers, verified=check)
            except FileNotFoundError:
                continue
            if check and wanted is None:
                self._checked.add(place)
            return pack, row
        raise self._missing(key, kind)

    def _knows(self, place: str, pack: Pack) -> bool:
        return place in self._checked or pack.name in self._checked

    def checks_pack(self, pack: str) -> bool:
        """Whether a whole pack is to be compared with its digests when it is read."""
        return self._verify == "always" or (self._verify == "first" and pack not in self._checked)

    def checked_pack(self, pack: str) -> None:
        """Know that a whole pack was compared with its digests."""
        self._checked.add(pack)

    def _missing(self, key: str, kind: Kind) -> ValueError:
        if (pack := self.index.lost_pack(key)) is not None:
            return LibraryCorruptError(f"the pack {pack} of {key[:12]} in {self.root} is gone; put it anew")
        if self.index.packs_of(key):
            other = {"chunks": "a patch: use get_patch", "patches": "a chunk: use get"}[kind]
            return ChunkNotFoundError(f"{key[:12]} in {self.root} is the key of {other}")
        return ChunkNotFoundError(
            f"{self.root} holds nothing under {key[:12]}{self._damage()}: it was never stored, or was deleted"
        )

    def _damage(self) -> str:
        damaged = len(self.index.damaged)
        return f"; {damaged} of its packs cannot be read, see verify()" if damaged else ""

    def item(self, key: str) -> Item:
        """What is stored under a whole key; see `ChunkLibrary.info`."""
        self.index.refresh()
        kind: Kind = "patches" if "patches" in self.index.kinds_of(key) else "chunks"
        pack, _ = self.pack_and_row(key, kind, wanted=lambda name: False)
        return self._item(pack, key, kind)

    def items(self) -> Iterator[Item]:
        """What is stored under every key; see `ChunkLibrary.items`."""
        self.index.refresh()
        for kind in get_args(Kind):
            for key in self.index.keys(kind):
                with contextlib.suppress(LibraryCorruptError, ChunkNotFoundError):
                    try:
                        if (pack := self.index.find(key, kind)) is not None:
                            yield self._item(pack, key, kind)
                    except FileNotFoundError:  # collected meanwhile
                        yield self.item(key)

    def _item(self, pack: Pack, key: str, kind: Kind) -> Item:
        about, spec, nbytes = pack.facts(key)
        patches = self.index.patches(key) if kind == "chunks" else ()
        plain: Any = about.pop("origin", None)
        origin = Origin.of(plain) if kind == "chunks" and plain is not None else None
        return Item(key, kind, about, spec, nbytes, pack.name, patches, origin)
