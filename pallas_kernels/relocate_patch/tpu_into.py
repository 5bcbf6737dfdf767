"""relocate_patch_into on TPU: the pass of `relocate_patch`, its blocks copied straight into the cache."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.limits import LANES, ROWS, transposed
from pallas_kernels.relocate_patch.reference import PairLayout
from pallas_kernels.relocate_patch.tpu import (
    SCALARS,
    Plan,
    Tiles,
    batched,
    cost,
    in_specs,
    laid_out,
    plan_call,
    tile,
    total_tokens,
    varying,
)


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

    Where tokens are minor and the cache is contiguous, a chunk may start inside a granule: blocks are shifted by
    ``shift`` lanes, and what falls off the end of a block is carried to the next block of its layer.

    Attributes:
        flip: whether the features lie before the tokens.
        tokens: tokens of a block.
        page: tokens of a page, or None.
        pages: pages of a chunk.
        cache: [B, L, S, F] or [B, L, P, page, F] in HBM; tokens and features swapped if ``flip``.
        stage: two blocks in the cache's dtype.
        edge: two granules: what the cache held where the chunk starts and where it ends.
        sent, fetched: DMA semaphores, one for each block and for each edge.
        carry: [L, F, LANES], or None.
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


def _kernel(
    plan: Plan, page: int | None, pages: int, has_patch: bool, length, ranks, place, cos, sin, rot, free, *refs
):
    refs = list(refs)
    patch = tuple(refs.pop(0) for _ in range(len(refs) - 4 - 8 - sum(carried(plan, page)))) or None
    (_, _, *caches) = refs[:4]
    scratch = refs[4:]
    writers = []
    for flip, carry, cache in zip(
        (plan.rot_transposed, plan.free_transposed), carried(plan, page), caches, strict=True
    ):
        stage, edge, sent, fetched = (scratch.pop(0) for _ in range(4))
        held = scratch.pop(0) if carry else None
        writers.append(Writer(flip, plan.tiles.tokens, page, pages, cache, stage, edge, sent, fetched, held))
    batch, index, layer, group = (pl.program_id(axis) for axis in range(4))
    step = layer * plan.tiles.groups + group
    steps = pl.num_programs(2) * plan.tiles.groups
    remaining = length[batch] - index * plan.tiles.tokens
    at = Step(batch, index, layer, group, jax.lax.rem(step, 2), place, remaining)

    @pl.when(remaining > 0)
    def _():
        for writer in writers:
            writer.fetch(at)

        @pl.when(step >= 2)
        def _():
            for writer in writers:
                writer.wait(at, at.slot)

        rank = ranks[batch * pl.num_programs(2) + layer] if has_patch else None
        tile(plan, cos, sin, rot, free, patch, rank, *(functools.partial(writer.put, at) for writer in writers))
        for writer in writers:
            writer.keep(at)
            writer.send(at)

        @pl.when(step == steps - 1)
        def _():
            for writer in writers:
                writer.wait(at, at.slot)

        @pl.when((step == steps - 1) & (step > 0))
        def _():
            for writer in writers:
                writer.wait(at, 1 - at.slot)


def carried(plan: Plan, page: int | None) -> tuple[bool, bool]:
    """Whether rot and free carry lanes from block to block."""
    return plan.rot_transposed and page is None, plan.free_transposed and page is None


def _into(plan: Plan, page: int | None, cache_rot, cache_free, place, length, ranks, cos, sin, rot, free, u, v):
    batch = length.shape[0]
    layers = rot.shape[1]
    tokens = plan.tiles.tokens
    groups = plan.tiles.groups
    specs, operands = in_specs(plan, cos, sin, rot, free, u, v)
    scratch = []
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    flips = plan.rot_transposed, plan.free_transposed
    for flip, carry, cache in zip(flips, carried(plan, page), (cache_rot, cache_free), strict=True):
        if flip:
            width = cache.shape[-2]
            stage = (2, width, tokens + (LANES if carry else 0))
            edge = (2, width, LANES)
        else:
            width = cache.shape[-1] // groups
            stage = (2, tokens, width)
            edge = (2, ROWS, width)
        scratch += [pltpu.VMEM(stage, cache.dtype), pltpu.VMEM(edge, cache.dtype)]
        scratch += [pltpu.SemaphoreType.DMA((2,)), pltpu.SemaphoreType.DMA((2,))]
        scratch += [pltpu.VMEM((layers, width, LANES), cache.dtype)] if carry else []
    everything = [length, *operands, cache_rot, cache_free]
    return pl.pallas_call(
        functools.partial(_kernel, plan, page, place.shape[1], u is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, pl.cdiv(total_tokens(plan, rot), tokens), layers, groups),
            in_specs=[*specs, anywhere, anywhere],
            out_specs=[anywhere, anywhere],
            scratch_shapes=scratch,
        ),
        out_shape=[varying(cache.shape, cache, everything) for cache in (cache_rot, cache_free)],
        input_output_aliases={3 + len(operands): 0, 4 + len(operands): 1},
        compiler_params=pltpu.CompilerParams(
            # Carried lanes go from one block of tokens to the next.
            dimension_semantics=(
                "parallel",
                "arbitrary" if any(carried(plan, page)) else "parallel",
                "arbitrary",
                "arbitrary",
            ),
        ),
        cost_estimate=cost(plan, rot, free, u, v, batch),
        interpret=plan.interpret,
        name="relocate_patch_into",
    )(length, ranks.reshape(-1), place.reshape(-1), *operands, cache_rot, cache_free)


def relocate_patch_into_tpu(
    cache_rot: jax.Array,
    cache_free: jax.Array,
    place: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    length: jax.Array,
    *,
    rotary_dim: int,
    layout: PairLayout,
    interpret: Any = False,
    tiles: Tiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch_into`; every argument is already checked."""
    page = cache_rot.shape[2] if place.ndim else None
    length = jnp.minimum(length, rot.shape[1])
    flips = transposed(rot.shape[-1]), transposed(free.shape[-1])
    missing = -rot.shape[1] % (LANES if any(flips) else ROWS)
    if missing:  # a chunk shorter than a granule
        rot, free = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (rot, free))
        cos, sin = (jnp.pad(x, ((0, missing), (0, 0))) for x in (cos, sin))
        u = None if u is None else jnp.pad(u, ((0, 0), (0, 0), (0, missing)))
    plan = plan_call(
        rot, free, cos, u, rotary_dim=rotary_dim, layout=layout, interpret=interpret, tiles=tiles, multiple=page or 1
    )
    caches = [
        (jnp.swapaxes(cache, -1, -2) if flip else cache)[None]
        for cache, flip in zip((cache_rot, cache_free), flips, strict=True)
    ]
    # Caches, places, lengths and ranks are each call's own.
    owned = (0, 1, 2, *(3 + place for place in SCALARS))
    call = batched(functools.partial(_into, plan, page), owned)
    new = call(*caches, place.reshape(1, -1), *laid_out(plan, cos, sin, rot, free, u, v, ranks, length))
    new_rot, new_free = (
        jnp.swapaxes(cache[0], -1, -2) if flip else cache[0] for cache, flip in zip(new, flips, strict=True)
    )
    return new_rot, new_free
