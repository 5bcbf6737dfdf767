"""How relocate_patch_into copies staged blocks to a cache in HBM: by DMA, in granules, keeping what is beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.limits import LANES, ROWS
from pallas_kernels.relocate_patch.tpu_plan import Plan


@dataclass(frozen=True)
class Step:
    """Where the grid stands.

    Attributes:
        batch, index, layer, group: program ids.
        slot: the staging buffer in use, 0 or 1.
        place: the first slot, or the page table; scalars in memory.
        remaining: valid tokens from this block on; at least 1.
    """

    batch: jax.Array
    index: jax.Array
    layer: jax.Array
    group: jax.Array
    slot: jax.Array
    place: Any
    remaining: jax.Array


@dataclass(frozen=True)
class Writer:
    """Copies blocks of one array to its cache, whole granules at a time, and keeps what it must not overwrite.

    There are two staging buffers: while one is copied to HBM, the next step fills the other. A step therefore waits,
    before it stages, for the copy that left its buffer two steps ago.

    Where tokens are minor and the cache is contiguous, a chunk may start inside a granule: blocks are shifted by
    ``shift`` lanes, and what falls off the end of a block is carried to the next block of its layer.

    Attributes:
        flip: whether the features lie before the tokens.
        tokens: tokens of a block.
        page: tokens of a page, or None.
        pages: pages of a chunk.
        cache: [B, L, S, F] or [B, L, P, page, F] in HBM; tokens and features swapped if ``flip``.
        stage: two blocks in the cache's dtype, in VMEM.
        edge: two granules in VMEM: what the cache had where the chunk starts and where it ends.
        sent, fetched: DMA semaphores, one for each block and for each edge.
        carry: [L, F, LANES] in VMEM, or None.
    """

    flip: bool
    tokens: int
    page: int | None
    pages: int
    cache: Any
    stage: Any
    edge: Any
    sent: Any
    fetched: Any
    carry: Any

    @property
    def granule(self) -> int:
        """Tokens of the smallest copy."""
        return LANES if self.flip else ROWS

    def shift(self, at: Step) -> jax.Array | int:
        """Lanes between a granule's start and the chunk's."""
        return 0 if self.carry is None else jax.lax.rem(at.place[at.batch], LANES)

    def end(self, at: Step) -> jax.Array:
        """The first staged token not to be written."""
        spill = jnp.where(at.remaining <= self.tokens, self.shift(at), 0)
        return jnp.minimum(at.remaining, self.tokens) + spill

    def staged(self, slot: Any, start: Any, size: int) -> Any:
        """Part of a staged block."""
        token = pl.ds(pl.multiple_of(start, self.granule), size)
        return self.stage.at[(slot, slice(None), token) if self.flip else (slot, token, slice(None))]

    def cached(self, at: Step, start: Any, size: int) -> Any:
        """Where the tokens staged from ``start`` on belong; they share a page."""
        if self.page is None:
            first = at.place[at.batch] - self.shift(at) + at.index * self.tokens + start
            page = ()
        else:
            token = at.index * self.tokens + start
            page = (at.place[at.batch * self.pages + jax.lax.div(token, self.page)],)
            first = jax.lax.rem(token, self.page)
        token = pl.ds(pl.multiple_of(first, self.granule), size)
        if self.flip:
            return self.cache.at[(at.batch, at.layer, *page, slice(None), token)]
        width = self.stage.shape[-1]
        return self.cache.at[(at.batch, at.layer, *page, token, pl.ds(pl.multiple_of(at.group * width, LANES), width))]

    def _pieces(self, at: Step, slot: Any, start: Any, count: Any, most: int, do: Callable[[Any], None]) -> None:
        """Copies of sizes known while compiling, each twice the next, that add up to ``count`` tokens in granules."""
        granules = pl.cdiv(count, self.granule)
        size = 1 << ((most // self.granule).bit_length() - 1)
        while size:
            offset = start + jax.lax.div(granules, 2 * size) * (2 * size * self.granule)

            @pl.when(jax.lax.rem(jax.lax.div(granules, size), 2) == 1)
            def _(size=size, offset=offset):
                tokens = size * self.granule
                do(
                    pltpu.make_async_copy(
                        self.staged(slot, offset, tokens), self.cached(at, offset, tokens), self.sent.at[slot]
                    )
                )

            size //= 2

    def _copies(self, at: Step, slot: Any, do: Callable[[Any], None]) -> None:
        end = self.end(at)
        page = self.page
        if page is None:
            return self._pieces(at, slot, 0, end, self.tokens + (LANES if self.carry is not None else 0), do)

        def one(index: jax.Array, _: None) -> None:
            start = index * page
            self._pieces(at, slot, start, jnp.minimum(end - start, page), page, do)

        return jax.lax.fori_loop(0, pl.cdiv(end, page), one, None)

    def send(self, at: Step) -> None:
        """Start to copy the staged block."""
        self._copies(at, at.slot, lambda copy: copy.start())

    def wait(self, at: Step, slot: Any) -> None:
        """Wait for a block of this grid row: all of them are as long."""
        self._copies(at, slot, lambda copy: copy.wait())

    def _edges(self, at: Step, do: Callable[[int, Any, Any], None]) -> None:
        """``do(which, start, keep)`` at the granules the chunk fills in part; ``keep(token)`` is the cache's part."""
        if self.carry is not None:
            shift = self.shift(at)

            @pl.when((at.index == 0) & (shift > 0))
            def _():
                do(0, 0, lambda token: token < shift)

        end = self.end(at)
        inside = jax.lax.rem(end, self.granule)

        @pl.when((at.remaining <= self.tokens) & (inside > 0))
        def _():
            do(1, end - inside, lambda token: token >= inside)

    def fetch(self, at: Step) -> None:
        """Start to read the edges."""
        self._edges(at, lambda which, start, _: self._fetch(at, which, start).start())

    def _fetch(self, at: Step, which: int, start: Any) -> Any:
        return pltpu.make_async_copy(self.cached(at, start, self.granule), self.edge.at[which], self.fetched.at[which])

    def keep(self, at: Step) -> None:
        """Put the edges into the staged block."""

        def merge(which: int, start: Any, keep: Callable[[jax.Array], jax.Array]) -> None:
            self._fetch(at, which, start).wait()
            part = self.staged(at.slot, start, self.granule)
            old = self.edge[which].astype(jnp.float32)
            new = part[...].astype(jnp.float32)
            token = jax.lax.broadcasted_iota(jnp.int32, old.shape, 1 if self.flip else 0)
            part[...] = jnp.where(keep(token), old, new).astype(part.dtype)

        self._edges(at, merge)

    def put(self, at: Step, features: slice, x: jax.Array) -> None:
        """Stage f32 values."""
        if self.carry is not None:
            before = self.carry[at.layer, features, :].astype(jnp.float32)
            self.carry[at.layer, features, :] = x[:, -LANES:].astype(self.carry.dtype)
            # What is carried enters on the left as the whole moves right.
            x = pltpu.roll(jnp.concatenate([x, before], axis=1), self.shift(at), 1)
        place = (features, slice(None)) if self.flip else (slice(None), features)
        self.stage[(at.slot, *place)] = x.astype(self.stage.dtype)


@dataclass(frozen=True)
class Layout:
    """How one of the two arrays is staged.

    Attributes:
        flip: whether the features lie before the tokens.
        carry: whether lanes are carried from block to block.
        width: features of a block.
        tokens: tokens of a block.
        dtype: of the cache.
    """

    flip: bool
    carry: bool
    width: int
    tokens: int
    dtype: Any

    def scratch(self, layers: int) -> list[Any]:
        """What `writer_of` makes a `Writer` of, in its order."""
        if self.flip:
            stage = (2, self.width, self.tokens + (LANES if self.carry else 0))
            edge = (2, self.width, LANES)
        else:
            stage = (2, self.tokens, self.width)
            edge = (2, ROWS, self.width)
        buffers = [pltpu.VMEM(stage, self.dtype), pltpu.VMEM(edge, self.dtype)]
        buffers += [pltpu.SemaphoreType.DMA((2,)), pltpu.SemaphoreType.DMA((2,))]
        return [*buffers, pltpu.VMEM((layers, self.width, LANES), self.dtype)] if self.carry else buffers


def layouts(plan: Plan, caches: Sequence[jax.Array], page: int | None) -> list[Layout]:
    """Of rot and of free: pages are never entered inside a granule, so that nothing is carried between their blocks."""
    return [
        Layout(
            flip=flip,
            carry=flip and page is None,
            width=cache.shape[-2] if flip else cache.shape[-1] // plan.tiles.groups,
            tokens=plan.tiles.tokens,
            dtype=cache.dtype,
        )
        for flip, cache in zip((plan.rot_transposed, plan.free_transposed), caches, strict=True)
    ]


def writer_of(layout: Layout, cache: Any, scratch: list[Any], page: int | None, pages: int) -> Writer:
    """The writer of one array; takes its scratch off the front of the list."""
    stage, edge, sent, fetched = (scratch.pop(0) for _ in range(4))
    carry = scratch.pop(0) if layout.carry else None
    return Writer(layout.flip, layout.tokens, page, pages, cache, stage, edge, sent, fetched, carry)
