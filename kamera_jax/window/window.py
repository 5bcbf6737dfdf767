"""Windows: ordered chunks behind a pinned preamble. Every operation returns a new window; none runs the model."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, no_type_check

import jax

from kamera_jax.arguments import whole_number
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.chunk import Chunk, Entry, Patch
from kamera_jax.compress.pooled import check_split, packed_pool
from kamera_jax.errors import CodecError, WindowFullError
from kamera_jax.forward import preamble_chunk
from kamera_jax.handle import Handle, host_scalar
from kamera_jax.identity import EXACT, chunk_key, extended, lineage
from kamera_jax.kv import KVSpec, WindowState, bucket_of_slots, check_length
from kamera_jax.placement import Placement
from kamera_jax.window.pool import SLOT_ALIGNMENT, PoolIndex
from kamera_jax.window.slots import put_first

Mode = Literal["materialise", "in_place"]
"""Write chunks rotated and patched, once for every place they come to, or read them where they lie."""


_MOST_SLOTS = 2**31

Count = TypeVar("Count", int, jax.Array)
"""A number that is known, or one that is traced."""


def aligned(slots: Count) -> Count:
    """The next slot a chunk may start at."""
    return -(-slots // SLOT_ALIGNMENT) * SLOT_ALIGNMENT


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Window(Handle):
    """The context a model attends to: preamble, then chunks.

    A pytree of ``state``, ``entries``, ``preamble`` and ``overflowed``, for a caller's own ``jit``, ``vmap`` or
    ``shard_map``: the operations of `kamera_jax.window.changes` work inside, and a function is compiled once for the
    shapes of a window, whatever it holds. Keys do not come out again; see `kamera_jax.handle`. What does not fit cannot
    be refused in a compiled function: the window that comes out answers nothing but NaN, and every operation on the
    host refuses it.

    Attributes:
        state: rotated and patched KV; in place, of the preamble alone, beside pools of canonical chunks.
        entries: the chunks in order, the preamble not among them.
        spec: what the KV means.
        capacity: slots in all, the preamble's included; the state's arrays have some more, which no chunk comes to.
        preamble: what is pinned at slot 0.
        mode: how its chunks are kept.
        placement: where it lies on a mesh; None on one device.
        overflowed: whether something did not fit, in a compiled function, where it could not be refused.
        storage: the codec that pools keep chunks packed in; ``"exact"`` for as they are.
        indices: what is known to lie in each of the state's pools.
        intact: whether ``state`` is what the entries say. As `dataclasses.replace` and JAX transformations may change
            the one without the other, it is not so after them, and the window has no lineage.
    """

    state: WindowState
    entries: tuple[Entry, ...]
    spec: KVSpec
    capacity: int
    preamble: Entry
    mode: Mode = "materialise"
    overflowed: bool = host_scalar(bool)
    placement: Placement | None = None
    storage: str = EXACT
    indices: tuple[PoolIndex, ...] = field(init=False)
    intact: bool = field(init=False)

    DATA: ClassVar = ("state", "entries", "preamble", "overflowed")
    STATIC: ClassVar = ("spec", "capacity", "mode", "placement", "storage")
    NAMES: ClassVar = {"indices": (), "intact": False}
    SHOWN: ClassVar = ("mode", "capacity", "tokens", "entries")

    def __init__(
        self,
        state: WindowState,
        entries: tuple[Entry, ...],
        spec: KVSpec,
        capacity: int,
        preamble: Entry,
        mode: Mode = "materialise",
        overflowed: bool = False,
        placement: Placement | None = None,
        storage: str = EXACT,
    ) -> None:
        """See the class; `empty` makes one whose state is what its entries say."""
        self._set(state=state, entries=entries, spec=spec, capacity=capacity, preamble=preamble, mode=mode)
        self._set(overflowed=overflowed, placement=placement, storage=storage, **self.NAMES)

    @staticmethod
    def empty(vlm: Backbone, capacity: int, *, mode: Mode = "materialise", storage: str = EXACT) -> "Window":
        """A window that holds the preamble alone.

        Args:
            vlm: the model.
            capacity: slots in all; the same chunks fit in either mode.
            mode: ``"materialise"`` writes chunks rotated and patched: the fastest to ask. ``"in_place"`` keeps them
                canonical and rotates and patches while they are read: reordering and sliding, recalling what still
                lies there, and windows that share a chunk because one was made from the other, then move no KV.
            storage: of ``"in_place"``, a codec that chunks lie in: ``"int8"``, ``"kivi:B"`` or ``"saw:B"``. They are
                unpacked while they are read, so that a token reads their packed bytes. Such a window takes chunks of
                that codec, which `kamera_jax.compress` makes.

        Raises:
            WindowFullError: the preamble does not fit ``capacity`` slots, or the model's length.
            ValueError: an unknown mode, a model that cannot attend to chunks in place, or a capacity that takes more
                memory than there is.
            CodecError: chunks cannot lie in that codec. PlacementError: what it packs together is split by the mesh.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}; got {mode!r}")
        spec = with_defaults(vlm).spec
        capacity = whole_number(capacity, "capacity", 1)
        _check_memory(spec, capacity, mode)
        if mode == "in_place" and not with_defaults(vlm).attends_in_place:
            raise ValueError(
                f"{type(vlm).__name__} does not say attends_in_place = True, so its forward may not read chunks that "
                'lie in pools; use mode="materialise"'
            )
        _check_storage(vlm, mode, storage)
        chunk = preamble_chunk(vlm)
        if chunk.length > capacity:
            raise WindowFullError(
                f"a window of {capacity} slots cannot hold the preamble of {chunk.length} tokens; give it more"
            )
        slots = bucket_of_slots(capacity) if mode == "materialise" else None
        return _of_preamble(vlm, capacity, slots, mode).keeping(storage=storage)

    @staticmethod
    def of_preamble(vlm: Backbone) -> "Window":
        """A window that has no room for more than the preamble: what a chunk is encoded behind."""
        return _of_preamble(vlm, aligned(preamble_chunk(vlm).length), None)

    def to(self, where: Any) -> "Window":
        """See `kamera_jax.handle.Handle.to`; for a model on a mesh ``where`` is its placement."""
        if isinstance(where, Placement):
            check_split(packed_pool(self.storage, self.spec), where)
        moved = super().to(where)
        return moved if where is None else moved.keeping(placement=where if isinstance(where, Placement) else None)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the chunks, in order."""
        return tuple(entry.chunk.key for entry in self.entries)

    @property
    def lineage(self) -> str:
        """What a chunk that is run here depends on: see `kamera_jax.identity.lineage`. Empty if a key is missing."""
        return lineage(self.preamble.chunk.key, (entry.identity for entry in self.entries)) if self.intact else ""

    def is_as_formed(self, chunk: Chunk, patch: Patch, at: int | None = None, fresh: Collection[int] = ()) -> bool:
        """Whether a patch was formed on what stands before a place: to the bit, or as far as the patches there say it.

        A patch was formed behind certain bits. A chunk with a patch that was itself formed where it now stands is, up
        to what the patch's size leaves out, the chunk as a prefill gives it there; so a patch that was formed on a
        prefill of these chunks is as formed behind these chunks with such patches, and not behind blind ones.

        Args:
            chunk: what comes to the place.
            patch: of the chunk.
            at: the place; the window's end by default.
            fresh: entries that are taken to be as a prefill gives them.
        """
        if not (patch.lineage and self.intact and patch.codec == chunk.codec):
            return False
        bits = lineage(self.preamble.chunk.key)
        prefilled = bits
        for place, entry in enumerate(self.entries[:at]):
            made = entry.chunk.lineage if entry.patch is None else entry.patch.lineage
            fitted = EXACT if entry.patch is None else entry.patch.codec
            right = place in fresh or (made in (bits, prefilled) and fitted == entry.chunk.codec)
            bits = extended(bits, entry.identity)
            again = (chunk_key(entry.chunk.content, self.spec, prefilled), EXACT, "")
            prefilled = extended(prefilled, again if right else entry.identity)
        return patch.lineage in (bits, prefilled)

    @property
    def next_slot(self) -> int:
        """Where the next chunk is written."""
        last = self.entries[-1] if self.entries else self.preamble
        return aligned(last.slot + last.chunk.length)

    @property
    def next_position(self) -> float:
        """The position the next chunk, or the tail, starts at."""
        last = self.entries[-1] if self.entries else self.preamble
        return last.base + last.chunk.advance

    @property
    def tokens(self) -> int:
        """Valid tokens, the preamble's included."""
        return self.preamble.chunk.length + sum(entry.chunk.length for entry in self.entries)


def _check_storage(vlm: Backbone, mode: str, storage: str) -> None:
    """Raise unless a window of this mode can keep chunks in a codec."""
    form = packed_pool(storage, vlm.spec)
    if form is not None and mode != "in_place":
        raise CodecError(
            f"storage is {storage!r}, and a window that materialises its chunks writes them unpacked; give "
            'mode="in_place"'
        )
    check_split(form, with_defaults(vlm).placement)


def _check_memory(spec: KVSpec, capacity: int, mode: Mode) -> None:
    """Raise ValueError if no machine like this one can have a window of so many slots."""
    if capacity >= _MOST_SLOTS:
        raise ValueError(f"capacity is {capacity}; expected fewer than 2**31 slots, which is what indices reach")
    needed = capacity * spec.token_bytes if mode == "materialise" else 0  # in place, pools grow with what comes
    if jax.default_backend() == "cpu" and needed > (there := _host_bytes()):
        raise ValueError(
            f"capacity is {capacity}: its KV takes {needed / 2**30:.0f} GiB, and this machine has "
            f"{there / 2**30:.0f} GiB of memory; expected fewer slots"
        )


def _host_bytes() -> float:
    """Bytes of the machine's memory; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _of_preamble(vlm: Backbone, capacity: int, slots: int | None, mode: Mode = "materialise") -> Window:
    """A window of the preamble alone, whose state has so many slots; by default as many as the preamble takes."""
    chunk = preamble_chunk(vlm)
    check_length(vlm.spec, 0.0, chunk.advance)
    entry = Entry(chunk.copied(), None, base=0.0, slot=0)  # a window may be donated, and the model keeps its preamble
    placement = with_defaults(vlm).placement
    state = put_first(vlm.spec, aligned(chunk.length) if slots is None else slots, entry, placement)
    return Window(state, (), vlm.spec, capacity, entry, mode, placement=placement).keeping(intact=True)
