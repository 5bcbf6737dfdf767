"""relocate_patch_into on TPU: the pass of `relocate_patch`, its blocks copied straight into the cache."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.chunk import Cache, Chunk
from pallas_kernels.relocate_patch.limits import LANES, ROWS, transposed
from pallas_kernels.relocate_patch.tpu import block_of, in_specs, scalars
from pallas_kernels.relocate_patch.tpu_plan import Operands, Plan, Tiles, cost, laid_out, plan_call
from pallas_kernels.relocate_patch.tpu_tile import work
from pallas_kernels.relocate_patch.tpu_writer import Layout, Step, layouts, writer_of
from pallas_kernels.tpu import batch_of, fold, varying


def relocate_patch_into_tpu(
    cache: Cache, place: jax.Array, chunk: Chunk, *, interpret: Any = False, tiles: Tiles | None = None
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch_into`.

    Args:
        cache: written in place where it is donated.
        place: the first slot, i32[], or the page table, i32[T / page].
        chunk: the call.
        interpret: as `jax.experimental.pallas.pallas_call` takes it.
        tiles: instead of `choose_tiles`.
    """
    page = cache.page if place.ndim else None
    chunk = _whole_granules(chunk)
    plan = plan_call(chunk, interpret=interpret, tiles=tiles, multiple=page or 1)
    flips = plan.rot_transposed, plan.free_transposed
    call = custom_vmap(functools.partial(_into, plan, page))

    @call.def_vmap
    def _(size: int, is_batched: Any, operands: Any) -> Any:
        return fold(call, size, is_batched[0], operands)

    def turned(array: jax.Array, flip: bool) -> jax.Array:
        return jnp.swapaxes(array, -1, -2) if flip else array

    caches = [turned(array, flip)[None] for array, flip in zip((cache.rot, cache.free), flips, strict=True)]
    new = call((caches, place.reshape(1, -1), laid_out(plan, chunk)))
    rot, free = (turned(array[0], flip) for array, flip in zip(new, flips, strict=True))
    return rot, free


def _whole_granules(chunk: Chunk) -> Chunk:
    """The chunk with padding up to the smallest copy, if it is shorter, and a length within its tokens."""
    length = jnp.minimum(chunk.length, chunk.tokens)
    narrow = transposed(chunk.rot.shape[-1]) or transposed(chunk.free.shape[-1])
    missing = -chunk.tokens % (LANES if narrow else ROWS)
    if not missing:
        return replace(chunk, length=length)
    rot, free = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (chunk.rot, chunk.free))
    cos, sin = (jnp.pad(x, ((0, missing), (0, 0))) for x in (chunk.cos, chunk.sin))
    patch = chunk.patch
    if patch is not None:
        patch = replace(patch, u=jnp.pad(patch.u, ((0, 0), (0, 0), (0, missing))))
    return replace(chunk, rot=rot, free=free, cos=cos, sin=sin, patch=patch, length=length)


def _into(
    plan: Plan, page: int | None, everything: tuple[list[jax.Array], jax.Array, Operands]
) -> tuple[jax.Array, jax.Array]:
    """The kernel on (caches, places, operands), which lead with B or 1: caches [B, L, S, F], or features first."""
    caches, place, operands = everything
    batch = batch_of(everything)
    # Each row of the batch writes to a cache and at a place of its own.
    caches = [jnp.broadcast_to(cache, (batch, *cache.shape[1:])) for cache in caches]
    place = jnp.broadcast_to(place, (batch, place.shape[1]))
    staged = layouts(plan, caches, page)
    specs, inputs = in_specs(plan, operands)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    prefetched = [*scalars(operands, batch), place.reshape(-1)]
    aliased = len(prefetched) + len(inputs)
    return pl.pallas_call(
        functools.partial(_kernel, plan, staged, page, place.shape[1]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(batch, pl.cdiv(plan.tokens, plan.tiles.tokens), operands.layers, plan.tiles.groups),
            in_specs=[*specs, anywhere, anywhere],
            out_specs=[anywhere, anywhere],
            scratch_shapes=[scratch for layout in staged for scratch in layout.scratch(operands.layers)],
        ),
        out_shape=[varying(cache.shape, cache.dtype, everything) for cache in caches],
        input_output_aliases={aliased: 0, aliased + 1: 1},
        compiler_params=pltpu.CompilerParams(
            # Carried lanes go from one block of tokens to the next. Layers and groups share the staging buffers.
            dimension_semantics=(
                "parallel",
                "arbitrary" if any(layout.carry for layout in staged) else "parallel",
                "arbitrary",
                "arbitrary",
            ),
        ),
        cost_estimate=cost(plan, operands, batch),
        interpret=plan.interpret,
        name="relocate_patch_into",
    )(*prefetched, *inputs, *caches)


def _kernel(
    plan: Plan,
    staged: list[Layout],
    page: int | None,
    pages: int,
    length: Any,
    ranks: Any,
    place: Any,
    *refs: Any,
) -> None:
    """A block of tokens of one layer: worked on into a staging buffer, whose copy to the cache the next steps overlap.

    ``refs`` are the inputs, the caches in HBM as inputs and as outputs (the same memory), and the writers' scratch.
    """
    refs_of_inputs = len(refs) - 4 - sum(4 + layout.carry for layout in staged)
    inputs = refs[:refs_of_inputs]
    _, _, *caches = refs[refs_of_inputs : refs_of_inputs + 4]
    scratch = list(refs[refs_of_inputs + 4 :])
    writers = [writer_of(layout, cache, scratch, page, pages) for layout, cache in zip(staged, caches, strict=True)]
    block = block_of(ranks, inputs)
    batch, index, layer, group = (pl.program_id(axis) for axis in range(4))
    step = layer * plan.tiles.groups + group
    steps = pl.num_programs(2) * plan.tiles.groups
    remaining = length[batch] - index * plan.tiles.tokens
    at = Step(batch, index, layer, group, jax.lax.rem(step, 2), place, remaining)

    @pl.when(remaining > 0)
    def _() -> None:
        # What the cache keeps of the first and the last granule is on its way while the block is computed.
        for writer in writers:
            writer.fetch(at)

        @pl.when(step >= 2)
        def _() -> None:
            for writer in writers:
                writer.wait(at, at.slot)

        work(plan, block, *(functools.partial(writer.put, at) for writer in writers))
        for writer in writers:
            writer.keep(at)
            writer.send(at)

        # The last step of these tokens leaves no copy behind: the next tokens find both buffers free.
        @pl.when(step == steps - 1)
        def _() -> None:
            for writer in writers:
                writer.wait(at, at.slot)

        @pl.when((step == steps - 1) & (step > 0))
        def _() -> None:
            for writer in writers:
                writer.wait(at, 1 - at.slot)
