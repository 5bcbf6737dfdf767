"""chunk_attention on TPUs: one pass over all chunks, each tile of keys made in VMEM, used and dropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.tree_util import register_dataclass

from pallas_kernels.chunk_attention.call import Call, Heads
from pallas_kernels.chunk_attention.tpu_kernel import kernel
from pallas_kernels.chunk_attention.tpu_plan import Plan, Tiles, choose_tiles, tokens_minor
from pallas_kernels.relocate_patch.chunk import Patch
from pallas_kernels.relocate_patch.limits import LANES
from pallas_kernels.tpu import batch_of, fold, varying


@no_type_check  # as `Call`
@register_dataclass
@dataclass(frozen=True)
class Operands:
    """A call's arrays as the kernel takes them: every one leads with B, or with 1 where the whole batch shares it.

    Attributes:
        q: [B, G, rows, width], rows over query tokens and the heads that share a KV head.
        rot: [B, ≥ C, T, Fr], or [B, ≥ C, Fr, T] where XLA lays it out so.
        free: [B, ≥ C, T, Ff], or [B, ≥ C, Ff, T].
        positions: f32[B, C, A, T].
        inv_freq: f32[B, R/2, A], a column for every axis; for interleaved pairs a row for every dim, [B, R, A].
        patch: u [B, ≥ C, m, T], v [B, ≥ C, m, Fr + Ff] and ranks [B, C]; or None.
        lengths, bases: [B, C].
        first: i32[B].
        scales: of int8, of every channel of rot f32[B, ≥ C, 1, Fr], and of every token of free f32[B, ≥ C, 1, T].
    """

    q: jax.Array
    rot: jax.Array
    free: jax.Array
    positions: jax.Array
    inv_freq: jax.Array
    patch: Patch | None
    lengths: jax.Array
    bases: jax.Array
    first: jax.Array
    scales: tuple[jax.Array, jax.Array] | None


def chunk_attention_tpu(
    call: Call, *, tiles: Tiles | None = None, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.chunk_attention`.

    Args:
        call: the call.
        tiles: instead of `choose_tiles`.
        interpret: as `jax.experimental.pallas.pallas_call` takes it.
    """
    heads = call.heads
    queries = call.q.shape[0]
    plan_of = partial(Plan, heads, call.scale, call.rope_scale, call.layout)
    attend = _mapped(partial(_attend, plan_of, heads, tiles, interpret))
    out, lse = attend(_operands(call))

    def by_query(x: jax.Array) -> jax.Array:
        x = x.reshape(heads.groups, queries, heads.per_group, -1).transpose(1, 0, 2, 3)
        return x.reshape(queries, heads.queries, -1)

    return by_query(out), by_query(lse)[..., 0]


def _operands(call: Call) -> Operands:
    heads = call.heads
    rows = call.q.reshape(call.q.shape[0], heads.groups, heads.per_group, -1).transpose(1, 0, 2, 3)
    rot, free = (x.swapaxes(1, 2) if tokens_minor(*x.shape[1:]) else x for x in (call.rot, call.free))
    scales = None if call.packed is None else (call.packed["rot_scale"], call.packed["free_scale"])
    operands = Operands(
        q=rows.reshape(heads.groups, -1, call.q.shape[-1]),
        rot=rot,
        free=free,
        positions=call.positions,
        inv_freq=call.inv_freq.T if call.layout == "half" else jnp.repeat(call.inv_freq.T, 2, axis=0),
        patch=call.patch,
        lengths=call.lengths,
        bases=call.bases,
        first=jnp.asarray(call.first, jnp.int32),
        scales=scales,
    )
    return jax.tree.map(lambda array: array[None], operands)


def _mapped(call: Any) -> Any:
    """``call`` of operands, made to take what `jax.vmap` adds as more rows or as a larger batch."""
    batched = custom_vmap(call)

    @batched.def_vmap
    def rule(size: int, in_batched: Any, operands: Operands) -> Any:
        is_batched = in_batched[0]
        if any(jax.tree.leaves(replace(is_batched, q=False))):
            return fold(batched, size, is_batched, operands)
        # The same chunks: more rows, and the chunks are still read once.
        q = jnp.moveaxis(operands.q, 0, 2)
        results = batched(replace(operands, q=q.reshape(*q.shape[:2], -1, q.shape[-1])))
        return tuple(jnp.moveaxis(x.reshape(*q.shape[:4], -1), 2, 0) for x in results), (True, True)

    return batched


def _attend(
    plan_of: Callable[..., Plan], heads: Heads, tiles: Tiles | None, interpret: Any, operands: Operands
) -> tuple[jax.Array, jax.Array]:
    """The kernel on operands: out [B, G, rows, Dv] and lse f32[B, G, rows, 1]."""
    batch = batch_of(operands)
    chunks, _, tokens = operands.positions.shape[1:]
    rows = operands.q.shape[2]
    rank = 0 if operands.patch is None else operands.patch.u.shape[2]
    if tiles is None:
        tiles = choose_tiles(heads, rows, tokens, rank, operands.q.dtype.itemsize)
    if operands.scales is not None and rank:
        # A tile's values are then whole numbers, to which no patch can be added.
        tiles = replace(tiles, absorb=True)
    plan = plan_of(tiles, rows, chunks, tokens, rank, operands.scales is not None)
    scalars = _scalars(plan, batch, operands)
    inputs = _inputs(plan, operands)
    outputs = [(heads.value, operands.q.dtype), (LANES, jnp.dtype(jnp.float32))]
    block = (tiles.heads, tiles.rows)
    scratch = [pltpu.VMEM((*block, width), jnp.float32) for width in (heads.value, LANES, LANES)]
    if tiles.absorb and heads.latent:
        scratch.append(pltpu.VMEM((tiles.rows, rank), jnp.float32))
    out, lse = pl.pallas_call(
        partial(kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, *plan.grid),
            in_specs=[spec for _, spec in inputs],
            out_specs=[pl.BlockSpec((1, *block, width), lambda b, h, i, *_: (b, h, i, 0)) for width, _ in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[varying((batch, heads.groups, rows, width), dtype, operands) for width, dtype in outputs],
        compiler_params=pltpu.CompilerParams(
            # The running softmax goes from tile to tile and from chunk to chunk.
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary", "arbitrary")
        ),
        cost_estimate=_cost(plan, batch, operands),
        interpret=interpret,
        name="chunk_attention",
    )(*scalars, *(array for array, _ in inputs))
    return out, lse[..., :1]


def _cost(plan: Plan, batch: int, operands: Operands) -> pl.CostEstimate:
    """Bytes of each chunk once for every tile of rows, and products of queries with keys and of weights with values."""
    rows = batch * plan.heads.groups * plan.rows
    pairs = rows * plan.chunks * plan.tokens
    stored = [operands.rot, operands.free, *(operands.scales or ())]
    if operands.patch is not None:
        # Where heads are split, v is two inputs.
        stored += [operands.patch.u, *[operands.patch.v] * (plan.factors - 1)]
    read = operands.positions.nbytes + operands.inv_freq.nbytes
    read += sum(x.nbytes * plan.chunks // x.shape[1] for x in stored)
    written = rows * (plan.heads.value * operands.q.dtype.itemsize + LANES * 4)
    return pl.CostEstimate(
        flops=2 * pairs * (operands.q.shape[-1] + plan.heads.value),
        transcendentals=pairs,
        bytes_accessed=plan.grid[1] * read + written + operands.q.nbytes,
    )


class Scalars(NamedTuple):
    """What is prefetched into SMEM, each [B, C] but for ``first``, [B].

    Attributes:
        lengths, bases: of the call.
        source: the chunk whose blocks a step has at hand: its own, or the last that had tokens where it has none.
        last: the last tile of ``source`` that holds a valid token.
        first: of the call.
        ranks: of the call, where it has a patch.
    """

    lengths: Any
    bases: Any
    source: Any
    last: Any
    first: Any
    ranks: Any = None


def _scalars(plan: Plan, batch: int, operands: Operands) -> list[jax.Array]:
    """The arrays of `Scalars`; what has nothing to read points at what was read last, which is not fetched again."""
    chunks = plan.chunks
    lengths = jnp.broadcast_to(operands.lengths, (batch, chunks))
    chunk = jnp.broadcast_to(jnp.arange(chunks, dtype=jnp.int32)[None, :], (batch, chunks))
    before = (chunk[:, None, :] <= chunk[:, :, None]) & (lengths[:, None, :] > 0)
    source = jnp.where(before, chunk[:, None, :], 0).max(axis=2)
    last = jnp.maximum(jnp.take_along_axis(lengths, source, axis=1) - 1, 0) // plan.tiles.tokens
    scalars = Scalars(
        lengths=lengths,
        bases=jnp.broadcast_to(operands.bases, (batch, chunks)),
        source=source,
        last=last,
        first=jnp.broadcast_to(operands.first, (batch,)),
        ranks=None if operands.patch is None else jnp.broadcast_to(operands.patch.ranks, (batch, chunks)),
    )
    return [array for array in scalars if array is not None]


def _block(plan: Plan, array: jax.Array, shape: Sequence[int], *axes: str) -> pl.BlockSpec:
    """A block whose index along each axis is one of these; ``values`` are the columns after those of keys."""
    shared = array.shape[0] == 1

    def index(b: Any, h: Any, i: Any, c: Any, t: Any, *refs: Any) -> tuple[Any, ...]:
        scalars = Scalars(*refs)
        at = scalars.source[b, c]
        end = scalars.last[b, c]
        known = {
            "head": h,
            "row": i,
            "place": at,
            "chunk": scalars.first[b] + at,
            "tile": jnp.where(at == c, jnp.minimum(t, end), end),
            "values": h + plan.heads.groups // plan.tiles.heads,
            "0": 0,
        }
        return (0 if shared else b, *(known[axis] for axis in axes))

    return pl.BlockSpec((1, *shape), index)


def _inputs(plan: Plan, operands: Operands) -> list[tuple[jax.Array, pl.BlockSpec]]:
    """The kernel's inputs and what a step has of each, in the order of `tpu_kernel.Refs`."""
    tiles = plan.tiles
    block = partial(_block, plan)
    q = operands.q
    positions = operands.positions
    inv_freq = operands.inv_freq
    inputs = [
        (q, block(q, (tiles.heads, tiles.rows, q.shape[-1]), "head", "row", "0")),
        (positions, block(positions, (1, positions.shape[2], tiles.tokens), "place", "0", "tile")),
        (inv_freq, block(inv_freq, inv_freq.shape[1:], "0", "0")),
    ]
    for array, width, is_transposed in (
        (operands.rot, plan.key_width, plan.keys_transposed),
        (operands.free, plan.value_width, plan.values_transposed),
    ):
        if is_transposed:
            inputs.append((array, block(array, (1, width, tiles.tokens), "chunk", "head", "tile")))
        else:
            inputs.append((array, block(array, (1, tiles.tokens, width), "chunk", "tile", "head")))
    if operands.scales is not None:
        by_channel, by_token = operands.scales
        inputs.append((by_channel, block(by_channel, (1, 1, plan.key_width), "chunk", "0", "head")))
        inputs.append((by_token, block(by_token, (1, 1, tiles.tokens), "chunk", "0", "tile")))
    if operands.patch is not None:
        u = operands.patch.u
        v = operands.patch.v
        inputs.append((u, block(u, (1, plan.rank, tiles.tokens), "chunk", "0", "tile")))
        if plan.factors == 2:
            inputs.append((v, block(v, (1, *v.shape[2:]), "chunk", "0", "0")))
        else:
            inputs.append((v, block(v, (1, plan.rank, plan.key_width), "chunk", "0", "head")))
            inputs.append((v, block(v, (1, plan.rank, plan.value_width), "chunk", "0", "values")))
    return inputs
