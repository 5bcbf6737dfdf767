"""A store of tiers: chunks on the device, in host memory and in a library on disk."""

import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

import jax

from kamera_jax.arguments import check_keys, check_type, whole_number
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.compress.compressed import packing
from kamera_jax.errors import ArgumentError, MissingKeyError
from kamera_jax.forward import preamble_chunk
from kamera_jax.handle import deleted, in_bytes
from kamera_jax.identity import EXACT
from kamera_jax.inference.encode import encode_segment
from kamera_jax.library.forked import check_unforked
from kamera_jax.library.library import ChunkLibrary
from kamera_jax.record import PatchRecord
from kamera_jax.tiers.ahead import Ahead
from kamera_jax.tiers.cascade import Cascade
from kamera_jax.tiers.costs import Cost, Costs, tokens_of
from kamera_jax.tiers.disk import UNSTORED, Disk
from kamera_jax.tiers.forms import Packed, device_bytes
from kamera_jax.tiers.shelf import Shelf
from kamera_jax.tiers.stats import TierStats
from kamera_jax.tiers.value import Held, Value
from kamera_jax.transfer import default_device

DEVICE = 2**28
"""Bytes of the device by default: 256 MiB."""

HOST = 2**30
"""Bytes of host memory by default: 1 GiB."""


class Tiers:
    """A `kamera_jax.store.Store` of three tiers: the device, host memory, and a library on disk; of bytes each.

    What is kept where is decided by what it is worth for its bytes: the cost of making it again, times the chance that
    it is asked for. The chance is learned of what was used how often and how lately, or told by `hint`. What a tier
    has no room for goes to the one below, and what the last one has no room for is given up. What is asked for comes
    back up where it is worth more than what is there.

    A chunk is served from the fastest tier that has it, in the codec that it has there, and `Chunk.codec` says which.
    What is read of the library is verified as the library was opened to. Patches lie in host memory and in the library.
    Any thread may ask. An operation that fails leaves all as it was.
    """

    def __init__(
        self,
        *,
        device_bytes: int | None = DEVICE,
        host_bytes: int | None = HOST,
        library: ChunkLibrary | None = None,
        library_bytes: int | None = None,
        host_codec: str | None = None,
        library_codec: str | None = None,
        cost: Cost | None = None,
        vlm: Backbone | None = None,
        policy: Value | None = None,
    ) -> None:
        """Begin empty, over what the library has.

        Args:
            device_bytes: of chunks on the device, beside those in windows; None for no bound.
            host_bytes: of chunks and patches in host memory; None for no bound.
            library: the tier below; it stays the caller's to close. One that was opened for reading is read alone.
            library_bytes: of what these tiers write there; what is worth least is deleted for it. None for no bound.
            host_codec: what packs exact chunks that come to host memory, as ``"kivi:4"``; see `kamera_jax.compress`.
            library_codec: what packs exact chunks that go to the library.
            cost: of making a chunk again: measured seconds, FLOPs or any other unit that is the same for all. By
                default FLOPs of its forward where ``vlm`` is given, and else its tokens.
            vlm: the model that encoded the chunks. What a canonical chunk was made from (token ids, media features)
                then stays in host memory for longer than its KV, which is run again from it where the library has not
                got it, or where that was quicker than reading so far. That is the same KV up to the rounding of the
                device.
            policy: what decides who stays, with what it has learned: of these tiers alone. By default a new one.

        Raises:
            ValueError: an argument of another type, negative bytes, or an unknown codec.
        """
        check_type(library, (ChunkLibrary, type(None)), "library", "kamera_jax.ChunkLibrary.open('lib', mode='a')")
        if cost is not None and not callable(cost):
            raise ArgumentError(f"cost is {cost!r:.60}; expected a function of a chunk, such as one of its seconds")
        for name in (host_codec, library_codec):
            if name is not None:
                packing(name)
        check_type(policy, (Value, type(None)), "policy", "kamera_jax.tiers.value.Value(), or one of its subclasses")
        policy = Value() if policy is None else policy
        self._vlm = vlm
        self._costs = Costs(vlm, cost)
        self._cascade = Cascade(
            policy, host_codec, self._embeds, Shelf(_limit(device_bytes, "device")), Shelf(_limit(host_bytes, "host"))
        )
        self._disk = Disk(library, library_codec, Shelf(_limit(library_bytes, "library")), policy)
        self._changed = threading.Condition(threading.RLock())
        self._ahead = Ahead(self._changed)
        self._ready: set[str] = set()  # fetched, and not asked for since
        self._whole: set[str] = set()  # chunks of which host memory has all patches that the library has
        self._stats = TierStats()
        self._rebuild_seconds = math.inf  # of a token, the least so far: the first of a shape compiles
        self._pid = os.getpid()

    def __repr__(self) -> str:
        with self._changed:
            device = self._cascade.device
            host = self._cascade.host
            return (
                f"<Tiers: {_filled(device)} on the device, {_filled(host)} in host memory, over {self._disk}; "
                f"{self._stats.looks} look-backs, {self._stats.missed} missed>"
            )

    @property
    def stats(self) -> TierStats:
        """What these tiers have done so far, and hold."""
        with self._changed:
            there = self._cascade
            return replace(self._stats, device_bytes=there.device.nbytes, host_bytes=there.host.nbytes)

    def has(self, key: str) -> bool:
        """Whether a chunk of this key can be served, or something of the library has it."""
        with self._changed:
            there = self._cascade
            if there.packed(key) is not None or there.embedded(key) is not None or self._on_device(key) is not None:
                return True
        return self._disk.has(key)

    def find(self, key: str, codec: str | None = None) -> Chunk | None:
        """See `kamera_jax.store.Store.find`: a look-back. Waits where the key is being fetched.

        Raises:
            LibraryCorruptError: the library has it, not as it was written, and no tier above has it.
        """
        check_type(key, str, "key", "of a chunk")
        self._ahead.claim(key)
        with self._changed:
            self._cascade.policy.use(key)
            ready = key in self._ready
            self._ready.discard(key)
            if (chunk := self._on_device(key)) is not None and codec in (None, chunk.codec):
                self._count(avoided=tokens_of(chunk), device=1, fetched=int(ready))
                return chunk
            packed = self._cascade.packed(key)
            if packed is not None and codec in (None, packed.codec):
                chunk = packed.chunk()
                self._promote(chunk)
                self._count(avoided=tokens_of(chunk), host=1, fetched=int(ready), to_device_bytes=packed.nbytes)
                return chunk
            if codec in (None, EXACT) and (chunk := self._rebuilt(key)) is not None:
                self._take(chunk)
                self._count(rebuilt=1)
                return chunk
        chunk = self._disk.find(key, codec)
        if chunk is None:
            self._count(missed=1)
            return None
        read = device_bytes(chunk)
        with self._changed:
            self._take(chunk)
            self._count(avoided=tokens_of(chunk), library=1, read_bytes=read, to_device_bytes=read)
        return chunk

    def patches(self, key: str) -> Sequence[Patch]:
        """See `kamera_jax.store.Store.patches`; also of a chunk that is in use."""
        with self._changed:
            there = {name: self._cascade.host.held[name].item for name in self._cascade.patched.get(key, ())}
            whole = key in self._whole
        stored = () if whole else self._disk.patches(key, there)
        with self._changed:
            cascade = self._cascade.copy()
            for patch in reversed(stored):
                cascade.put_patch(self._held_patch(patch))
            if self._settle(cascade, fails=False) and all(patch.key in cascade.host for patch in stored):
                self._whole.add(key)
        return (*(item.unpacked() for item in there.values()), *stored)

    def put(self, item: Chunk | Patch) -> str:
        """Keep a chunk or a patch, in the fastest tier that it is worth it in; one that is kept was served once more.

        Raises:
            MissingKeyError: it has no key.
            LibraryFullError, LibraryDiskError: what has to leave for it cannot be stored; all stays as it was.
        """
        if not item.key:
            raise MissingKeyError("what has no key cannot be found again; see kamera_jax.handle for what drops keys")
        with self._changed:
            cascade = self._cascade.copy()
            if isinstance(item, Patch):
                cascade.policy.know(item.chunk)
                cascade.put_patch(self._held_patch(item))
            else:
                cascade.policy.know(item.key)
                cascade.put(item, self._costs.of(item))
            self._settle(cascade)
        return item.key

    def release(self, key: str) -> None:
        """See `kamera_jax.store.Store.release`: its room on the device is free, and the first to be so on the host."""
        with self._changed:
            self._cascade.release(key)

    def pin(self, key: str, pinned: bool = True) -> None:
        """Let a chunk that comes to the device or to host memory not leave there, or leave again.

        One that does not fit beside others that are pinned goes to the tier below.
        """
        check_type(key, str, "key", "of a chunk")
        with self._changed:
            self._cascade.policy.pin(key, pinned)

    def hint(self, steps: Mapping[str, int | None], *, prefetch: bool = True) -> None:
        """Say in how many look-backs chunks are used next, as a workflow knows it; None takes a hint back.

        Args:
            steps: by key, at least 1: the next look-back.
            prefetch: fetch them too, the next ones first; see `prefetch`.

        Raises:
            ValueError: no such numbers; nothing is noted.
            ClosedError: see `prefetch`.
        """
        check_type(steps, Mapping, "steps", "look-backs to the next use by key, such as {key: 3}")
        checked: dict[str, int | None] = {}
        for key, after in steps.items():
            check_type(key, str, "a key of steps", "of a chunk")
            checked[key] = None if after is None else whole_number(after, f"steps[{key[:12]!r}]", 1)
        with self._changed:
            self._cascade.policy.hint(checked)
        soon = {key: after for key, after in checked.items() if after is not None}
        if prefetch and soon:
            self._fetch_ahead(sorted(soon, key=lambda key: soon[key]))

    def prefetch(self, keys: Iterable[str]) -> None:
        """Bring chunks to the device, or as near as they are worth it, while the caller goes on; in this order.

        They count as hinted to be used in this order. What cannot be brought is said by `find`: once as the error that
        came, then as if it had not been asked for.

        Raises:
            ClosedError: the tiers were closed.
            ForkedProcessError: they belong to the process that this one was forked from.
        """
        wanted = list(dict.fromkeys(check_keys(keys)))
        for key in wanted:
            check_type(key, str, "a key", "of a chunk")
        with self._changed:
            policy = self._cascade.policy
            policy.hint({key: place for place, key in enumerate(wanted, start=1) if not policy.hinted(key)})
        self._fetch_ahead(wanted)

    def wait(self) -> None:
        """Wait until all that is to be fetched ahead is there."""
        self._ahead.wait()

    def close(self) -> None:
        """Fetch nothing more, and let the library know what was served; what is in memory can still be asked for."""
        self._ahead.close()
        self._disk.close(self.stats)

    def flush(self) -> None:
        """Store all that the library has not got yet, so that it outlives the process; it stays in memory too.

        Raises:
            LibraryFullError, LibraryDiskError, LibraryReadOnlyError: see `ChunkLibrary.put`.
        """
        with self._changed:
            device = self._cascade.device
            rest = [each for each in self._cascade.host if each.key not in device]
            self._count(**self._disk.write([*device, *rest]))

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _fetch_ahead(self, keys: Iterable[str]) -> None:
        check_unforked("the thread of these tiers", self._pid)
        wanted = [key for key in keys if self._on_device(key) is None]
        self._ahead.add(wanted, self._together, jax.default_device(default_device())(self._fetch))

    def _together(self, keys: Sequence[str]) -> Sequence[str]:
        """The first key, and those that are read with it."""
        with self._changed:
            in_memory = {key for key in keys if self._cascade.packed(key) is not None}
        if keys[0] in in_memory:
            return keys[:1]
        return self._disk.together([key for key in keys if key not in in_memory])

    def _fetch(self, keys: Sequence[str]) -> Mapping[str, BaseException]:
        """Bring chunks nearer; on the thread of `Ahead`."""
        failed: dict[str, BaseException] = {}
        with self._changed:
            packed = {key: each for key in keys if (each := self._cascade.packed(key)) is not None}
        found: dict[str, Chunk] = {key: each.chunk() for key, each in packed.items()}
        for key, chunk in self._disk.read([key for key in keys if key not in packed]).items():
            if isinstance(chunk, BaseException):
                failed[key] = chunk
            elif chunk is not None:
                found[key] = chunk
        with self._changed:
            for key, chunk in found.items():
                above = key in packed
                size = packed[key].nbytes if above else device_bytes(chunk)
                (self._promote if above else self._take)(chunk)
                self._ready.add(key)
                self._count(to_device_bytes=size, read_bytes=0 if above else size)
            self._count(failed=len(failed))
        return failed

    def _on_device(self, key: str) -> Chunk | None:
        """A chunk of the device whose arrays nobody gave away."""
        with self._changed:
            held = self._cascade.device.get(key)
            if held is not None and deleted(held.item):
                self._cascade.device.drop(key)
                return None
            return None if held is None else held.item

    def _promote(self, chunk: Chunk) -> None:
        cascade = self._cascade.copy()
        cascade.promote(chunk, self._costs.of(chunk))
        self._settle(cascade, fails=False)

    def _take(self, chunk: Chunk) -> None:
        cascade = self._cascade.copy()
        cascade.put(chunk, self._costs.of(chunk))
        self._settle(cascade, fails=False)

    def _settle(self, cascade: Cascade, *, fails: bool = True) -> bool:
        """Store what leaves, and take the change over; whether it was.

        Args:
            cascade: what is to be.
            fails: whether to raise where something cannot be stored; else all stays as it is.
        """
        cascade.make_room()
        try:
            written = self._disk.write(cascade.leaving)
        except UNSTORED:
            if fails:
                raise
            return False
        for held in cascade.leaving:
            self._whole.discard(held.of)
        self._count(to_host_bytes=cascade.copied, **written)
        self._cascade = cascade
        return True

    def _held_patch(self, patch: Patch) -> Held:
        item = PatchRecord.of(patch)
        return Held(patch.key, patch.chunk, item.nbytes, self._costs.of_patch(patch), item)

    def _embeds(self, packed: Packed) -> bool:
        """Whether a chunk can be run again from what it was made of."""
        about = packed.record.chunk
        if self._vlm is None or not about["inputs"] or about["turn"] or about["conditioned"]:
            return False
        own = (self._vlm.fingerprint, preamble_chunk(self._vlm).key, EXACT)
        return (about["model"], about["preamble"], about["codec"]) == own

    def _rebuilt(self, key: str) -> Chunk | None:
        """A chunk that is run again, where that is the quickest way to it."""
        embedded = self._cascade.embedded(key)
        if embedded is None or self._vlm is None:
            return None
        tokens = embedded.tokens
        known = math.isfinite(self._rebuild_seconds)  # else it is tried once
        if known and self._disk.has(key) and not self._disk.slower(key, self._rebuild_seconds * tokens):
            return None
        began = time.perf_counter()
        chunk = jax.block_until_ready(encode_segment(self._vlm, embedded.segment()))
        self._rebuild_seconds = min(self._rebuild_seconds, (time.perf_counter() - began) / tokens)
        return chunk if chunk.key == key else None

    def _count(self, **counts: int) -> None:
        with self._changed:
            now = {name: getattr(self._stats, name) + count for name, count in counts.items()}
            self._stats = replace(self._stats, **now)


def _limit(nbytes: int | None, tier: str) -> int | None:
    return None if nbytes is None else whole_number(nbytes, f"{tier}_bytes", 0)


def _filled(shelf: Shelf) -> str:
    of = "" if shelf.limit is None else f" of {in_bytes(shelf.limit)}"
    return f"{in_bytes(shelf.nbytes)}{of}"
