"""relocate_patch on TPU, ``"pallas_tpu"``: one pass over the chunk, layers innermost so the tables are read once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.relocate_patch.chunk import Chunk
from pallas_kernels.relocate_patch.tpu_plan import Operands, Plan, Tiles, cost, laid_out, plan_call
from pallas_kernels.relocate_patch.tpu_tile import Block, Put, work
from pallas_kernels.tpu import batch_of, fold, varying


def relocate_patch_tpu(
    chunk: Chunk, *, interpret: Any = False, tiles: Tiles | None = None
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`.

    Args:
        chunk: the call.
        interpret: as `jax.experimental.pallas.pallas_call` takes it.
        tiles: instead of `choose_tiles`.
    """
    plan = plan_call(chunk, interpret=interpret, tiles=tiles)
    call = custom_vmap(functools.partial(_relocate, plan))

    @call.def_vmap
    def _(size: int, is_batched: Any, operands: Operands) -> Any:
        return fold(call, size, is_batched[0], operands)

    rot, free = (x[0] for x in call(laid_out(plan, chunk)))
    return (
        jnp.swapaxes(rot, -1, -2) if plan.rot_transposed else rot,
        jnp.swapaxes(free, -1, -2) if plan.free_transposed else free,
    )


def _relocate(plan: Plan, operands: Operands) -> tuple[jax.Array, jax.Array]:
    batch = batch_of(operands)
    groups = plan.tiles.groups
    tokens = plan.tiles.tokens
    arrays = operands.rot, operands.free
    specs, inputs = in_specs(plan, operands)

    def out(array: jax.Array, flip: bool) -> pl.BlockSpec:
        size = (array.shape[2], tokens) if flip else (tokens, array.shape[3] // groups)
        return pl.BlockSpec(
            (pl.Squeezed(), pl.Squeezed(), *size),
            lambda b, i, layer, h, *_: (b, layer, 0, i) if flip else (b, layer, i, h),
        )

    return pl.pallas_call(
        functools.partial(_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, pl.cdiv(plan.tokens, tokens), operands.layers, groups),
            in_specs=specs,
            out_specs=[out(operands.rot, plan.rot_transposed), out(operands.free, plan.free_transposed)],
        ),
        out_shape=[varying((batch, *array.shape[1:]), array.dtype, operands) for array in arrays],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        cost_estimate=cost(plan, operands, batch),
        interpret=plan.interpret,
        name="relocate_patch",
    )(*scalars(operands, batch), *inputs)


def scalars(operands: Operands, batch: int) -> tuple[jax.Array, jax.Array]:
    """What is prefetched into SMEM: the length of every row of the batch, and the ranks of its layers in one axis.

    Without a patch the lengths stand in for the ranks, which are then not read.
    """
    length = jnp.broadcast_to(operands.length, (batch,))
    if operands.patch is None:
        return length, length
    return length, jnp.broadcast_to(operands.patch.ranks, (batch, operands.layers)).reshape(-1)


def in_specs(plan: Plan, operands: Operands) -> tuple[list[pl.BlockSpec], list[jax.Array]]:
    """Blocks and inputs on the grid (batch, tokens, layer, group), the scalars being (length, ranks, …).

    Blocks of tokens past the length, and factors of an unpatched layer, name a block that is at hand or soon needed:
    the pipeline fetches nothing where the index stays the same.
    """
    tokens = plan.tiles.tokens
    groups = plan.tiles.groups
    inputs = [operands.cos, operands.sin, operands.rot, operands.free]
    flips = [plan.rot_transposed, plan.rot_transposed, plan.rot_transposed, plan.free_transposed]

    def spec(array: jax.Array, size: tuple[int, int], place: Callable[..., Any], factor: bool = False) -> pl.BlockSpec:
        shared = array.shape[0] == 1
        layered = array.ndim == 4

        def index_map(b, i, layer, h, length, ranks, *_):
            block = jnp.minimum(i, jax.lax.div(jnp.maximum(length[b] - 1, 0), tokens))
            if factor:
                layers = array.shape[1]
                layer = jnp.where(ranks[b * layers + layer] > 0, layer, jnp.minimum(layer + 1, layers - 1))
            return (0 if shared else b, *([layer] if layered else []), *place(block, h))

        return pl.BlockSpec((pl.Squeezed(),) * (array.ndim - 2) + size, index_map)

    def rows(array: jax.Array, flip: bool) -> pl.BlockSpec:
        if flip:
            return spec(array, (array.shape[-2], tokens), lambda block, h: (0, block))
        if array.ndim == 3:
            return spec(array, (tokens, array.shape[-1]), lambda block, h: (block, 0))
        return spec(array, (tokens, array.shape[-1] // groups), lambda block, h: (block, h))

    specs = [rows(array, flip) for array, flip in zip(inputs, flips, strict=True)]
    if operands.patch is None:
        return specs, inputs
    u = operands.patch.u
    v = operands.patch.v
    rank = u.shape[2]
    width = v.shape[3]
    specs.append(spec(u, (rank, tokens), lambda block, h: (0, block), factor=True))
    if operands.rot.shape[-1] == operands.free.shape[-1] and not (plan.rot_transposed or plan.free_transposed):
        size = (rank, width // (2 * groups))
        specs.append(spec(v, size, lambda block, h: (0, h), factor=True))
        specs.append(spec(v, size, lambda block, h: (0, h + groups), factor=True))
        return specs, [*inputs, u, v, v]
    specs.append(spec(v, (rank, width), lambda block, h: (0, 0), factor=True))
    return specs, [*inputs, u, v]


def block_of(ranks: Any, inputs: Sequence[Any]) -> Block:
    """The block of this grid step, from the refs of `scalars` and of `in_specs`'s inputs."""
    cos, sin, rot, free, *patch = inputs
    rank = ranks[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)] if patch else None
    return Block(cos, sin, rot, free, tuple(patch), rank)


def _kernel(plan: Plan, length: Any, ranks: Any, *refs: Any) -> None:
    """A block of tokens of one layer: blocks that hold a valid token are worked on, the others come out as zeros."""
    *inputs, new_rot, new_free = refs
    block = block_of(ranks, inputs)
    valid = length[pl.program_id(0)] - pl.program_id(1) * plan.tiles.tokens

    def put(out: Any, flip: bool) -> Put:
        def store(features: slice, x: jax.Array) -> None:
            # Past the length the inputs may be nan: chosen, not multiplied.
            token = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1 if flip else 0)
            x = jnp.where(token < valid, x, 0.0).astype(out.dtype)
            out[(features, slice(None)) if flip else (slice(None), features)] = x

        return store

    @pl.when(valid > 0)
    def _() -> None:
        work(plan, block, put(new_rot, plan.rot_transposed), put(new_free, plan.free_transposed))

    @pl.when(valid <= 0)
    def _() -> None:
        # Their inputs were not fetched.
        new_rot[...] = jnp.zeros_like(new_rot)
        new_free[...] = jnp.zeros_like(new_free)
