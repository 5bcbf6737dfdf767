"""The Mosaic GPU kernel of chunk_attention (jax 0.11 or newer); `gpu` says what it serves and prepares its operands.

A thread block attends to one chunk by the queries of one KV head. It streams tiles of 64 tokens through shared memory;
of each it makes the keys (``+ Uᵀ V`` on the tensor cores, rotated in f32 registers, written to shared memory as the
second operand of a product), and adds their values to a running softmax (arXiv 2205.14135). The patch of the values is
absorbed: weights times ``U`` is summed beside weights times values, and meets ``V`` once, behind the last tile.
"""

# Types are checked against the jax of Python 3.11, which lacks what this is written with.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportPrivateImportUsage=false

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.chunk_attention.gpu_call import ROWS, Operands, Shape
from pallas_kernels.chunk_attention.reference import UNSEEN

WGMMA = plgpu.Layout.WGMMA
LOG2_E = math.log2(math.e)


def _transforms(width: int, dtype: Any) -> tuple[Any, ...]:
    """Tiling and the widest swizzle that divides ``width``."""
    size = jnp.dtype(dtype).itemsize
    swizzle = next(each for each in (128, 64, 32) if width * size % each == 0)
    return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)


def _load(ref: Any) -> jax.Array:
    return plgpu.load(ref, layout=WGMMA, optimized=False)


def _product(*pairs: tuple[Any, Any]) -> jax.Array:
    """The sum of matrix products in f32, each of ROWS rows, of operands in shared memory."""

    def accumulate(total: Any) -> jax.Array:
        for a, b in pairs:
            plgpu.wgmma(total, a, b)
        plgpu.wgmma_wait(0)
        return total[...]

    return pl.run_scoped(accumulate, plgpu.ACC((ROWS, pairs[0][1].shape[-1]), jnp.float32))


def _rows(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcast_in_dim(value, shape, [0])


@dataclasses.dataclass(frozen=True)
class _Block:
    """What a thread block works on.

    Attributes:
        chunk, group: its own.
        first: of the stored chunks the call's first.
        length: valid tokens.
        shape: of the call.
        q: its queries in shared memory, a ref for each piece of a head.
        keys: scratch for a tile's keys, likewise.
        weights: scratch for a tile's weights.
        factors: of the patch's ``V`` in shared memory: a ref for each piece of a head, then for each of its values.
    """

    chunk: Any
    group: Any
    first: Any
    length: Any
    shape: Shape
    q: list[Any]
    keys: list[Any]
    weights: Any
    factors: list[Any]


def _specs(block: _Block) -> list[Any]:
    """Blocks that the pipeline loads for a tile: the pieces of a head of ``rot``, those of ``free``, and ``u``."""
    shape = block.shape
    pieces = shape.pieces
    at = block.first + block.chunk

    def spec(rows: int, columns: int, index: Any, aligned: int) -> Any:
        return plgpu.BlockSpec((None, rows, columns), index, transforms=_transforms(aligned, jnp.bfloat16))

    specs = [
        spec(ROWS, shape.piece, lambda tile, i=i: (at, tile, block.group * pieces + i), shape.piece)
        for i in range(pieces)
    ]
    parts = shape.parts
    specs += [
        spec(ROWS, shape.part, lambda tile, i=i: (at, tile, block.group * parts + i), shape.aligned)
        for i in range(parts)
    ]
    if shape.rank:
        specs.append(spec(shape.rank, ROWS, lambda tile: (block.chunk, 0, tile), shape.aligned))
    return specs


def _angles(block: _Block, rows: Any, i: int, tables: tuple[Any, Any]) -> jax.Array:
    """Of a tile's tokens and the pairs of a piece, in radians."""
    positions, frequencies = tables
    piece = block.shape.piece
    total = None
    for axis in range(positions.shape[1]):
        at = plgpu.load(positions.at[block.chunk, axis, rows], layout=WGMMA.reduce(1), optimized=False)
        per = plgpu.load(frequencies.at[axis, pl.ds(i * piece, piece)], layout=WGMMA.reduce(0), optimized=False)
        angle = _rows(at, (ROWS, piece)) * lax.broadcast_in_dim(per, (ROWS, piece), [1])
        total = angle if total is None else total + angle
    assert total is not None
    return total


def _make_keys(block: _Block, refs: Any, tile: Any, tables: tuple[Any, Any]) -> None:
    """The keys of a tile, patched and rotated, into their scratch."""
    shape = block.shape
    half = shape.pieces // 2
    rows = pl.ds(pl.multiple_of(tile * ROWS, ROWS), ROWS)
    # The products of the tile before must have read what is written now, in all warps.
    plgpu.commit_smem()
    for i in range(half):
        angles = _angles(block, rows, i, tables)
        cos = jnp.cos(angles) * shape.rope_scale
        sin = jnp.sin(angles) * shape.rope_scale
        a, b = (_load(refs[j]).astype(jnp.float32) for j in (i, half + i))
        if shape.rank:
            a, b = (x + _product((refs[-1].T, block.factors[j])) for x, j in ((a, i), (b, half + i)))
        plgpu.store(block.keys[i], (a * cos - b * sin).astype(jnp.bfloat16), optimized=False)
        plgpu.store(block.keys[half + i], (b * cos + a * sin).astype(jnp.bfloat16), optimized=False)
    plgpu.commit_smem()


def _step(block: _Block, tables: tuple[Any, Any], index: Any, *arguments: Any) -> Any:
    """A tile: (highest score, sum of weights, weighted values, weighted ``U``) with it added; scores are in base 2."""
    *refs, (highest, total, weighted, patched) = arguments
    shape = block.shape
    (tile,) = index
    left = block.length - tile * ROWS
    _make_keys(block, refs, tile, tables)
    values = refs[shape.pieces : shape.pieces + shape.parts]

    # A weight of 0 times what lies past the length, which may be NaN, would be NaN.
    @pl.when(left < ROWS)
    def _():
        valid = plgpu.broadcasted_iota(jnp.int32, (ROWS, shape.part), 0, layout=WGMMA) < left
        for part in values:
            held = _load(part)
            plgpu.store(part, jnp.where(valid, held, jnp.zeros_like(held)), optimized=False)
        plgpu.commit_smem()

    scores = _product(*((q, keys.T) for q, keys in zip(block.q, block.keys, strict=True)))
    seen = plgpu.broadcasted_iota(jnp.int32, (ROWS, ROWS), 1, layout=WGMMA) < left
    scores = jnp.where(seen, scores * (shape.scale * LOG2_E), UNSEEN)
    new = jnp.maximum(highest, scores.max(axis=1))
    kept = jnp.exp2(highest - new)
    p = jnp.exp2(scores - _rows(new, scores.shape))
    total = total * kept + p.sum(axis=1)
    plgpu.store(block.weights, p.astype(jnp.bfloat16), optimized=False)
    plgpu.commit_smem()
    weighted = tuple(
        part * _rows(kept, part.shape) + _product((block.weights, value))
        for part, value in zip(weighted, values, strict=True)
    )
    if shape.rank:
        patched = patched * _rows(kept, patched.shape) + _product((block.weights, refs[-1].T))
    return new, total, weighted, patched


def _finish(block: _Block, state: Any, out: Any, lse: Any) -> None:
    """The state normalised, as far as its rows are queries, to global memory."""
    highest, total, weighted, patched = state
    shape = block.shape
    if shape.rank:

        def absorbed(sums: Any) -> tuple[jax.Array, ...]:
            plgpu.store(sums, patched.astype(jnp.bfloat16), optimized=False)
            plgpu.commit_smem()
            factors = block.factors[shape.pieces :]
            return tuple(part + _product((sums, v)) for part, v in zip(weighted, factors, strict=True))

        held = plgpu.SMEM((ROWS, shape.rank), jnp.bfloat16, transforms=_transforms(shape.aligned, jnp.bfloat16))
        weighted = pl.run_scoped(absorbed, held)
    divisor = jnp.where(total > 0, total, jnp.ones_like(total))
    logs = jnp.where(total > 0, highest / LOG2_E + jnp.log(divisor), jnp.full_like(total, UNSEEN))
    rows = pl.ds(0, shape.queries)

    def write(values: list[Any], sums: Any) -> None:
        for to, part in zip(values, weighted, strict=True):
            plgpu.store(to, part / _rows(divisor, part.shape), optimized=False)
        sums[...] = logs
        plgpu.commit_smem()
        for i, part in enumerate(values):
            columns = pl.ds(i * shape.part, shape.part)
            plgpu.copy_smem_to_gmem(part.at[rows, :], out.at[block.chunk, block.group, :, columns])
        plgpu.copy_smem_to_gmem(sums.at[rows], lse.at[block.chunk, block.group])
        plgpu.wait_smem_to_gmem(0)

    values = plgpu.SMEM((ROWS, shape.part), jnp.float32, transforms=_transforms(shape.part, jnp.float32))
    pl.run_scoped(write, [values] * shape.parts, plgpu.SMEM((ROWS,), jnp.float32))


def _attend(block: _Block, sources: list[Any], tables: tuple[Any, Any], out: Any, lse: Any) -> None:
    """The whole chunk."""
    shape = block.shape

    def zeros(columns: int) -> jax.Array:
        return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), WGMMA)

    def row(value: float) -> jax.Array:
        return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), WGMMA.reduce(1))

    weighted = tuple(zeros(shape.part) for _ in range(shape.parts))
    state = row(UNSEEN), row(0.0), weighted, zeros(shape.rank) if shape.rank else None
    state = plgpu.emit_pipeline(
        functools.partial(_step, block, tables),
        grid=((block.length + (ROWS - 1)) // ROWS,),
        in_specs=_specs(block),
        max_concurrent_steps=shape.stages,
        init_carry=state,
    )(*sources)
    _finish(block, state, out, lse)


def attend(operands: Operands, shape: Shape, interpret: Any) -> tuple[jax.Array, jax.Array]:
    """Launch it.

    Args:
        operands: what it is launched on.
        shape: what is fixed.
        interpret: None or False, or parameters of the interpret mode.

    Returns:
        Of each chunk by itself the output f32[C, G, queries, Dv] and the log-sum-exp f32[C, G, queries]; 0 and a
        number below every score where it has no token.
    """
    chunks = operands.positions.shape[0]
    groups = operands.q.shape[0]
    pieces = shape.pieces
    piece = shape.piece

    def kernel(q_in: Any, rot: Any, free: Any, positions: Any, frequencies: Any, place: Any, *refs: Any) -> None:
        *patch, out, lse = refs
        chunk = lax.axis_index("chunk")
        group = lax.axis_index("group")

        def scoped(q: list[Any], keys: list[Any], weights: Any, factors: list[Any], fetched: Any) -> None:
            for i, to in enumerate(q):
                plgpu.copy_gmem_to_smem(q_in.at[group, :, pl.ds(i * piece, piece)], to, fetched)
            starts = [(group * pieces + i) * piece for i in range(pieces)]
            starts += [rot.shape[-1] + (group * shape.parts + i) * shape.part for i in range(shape.parts)]
            for start, to in zip(starts, factors, strict=False):
                columns = pl.ds(pl.multiple_of(start, math.gcd(piece, shape.part)), to.shape[-1])
                plgpu.copy_gmem_to_smem(patch[1].at[chunk, :, columns], to, fetched)
            plgpu.barrier_wait(fetched)
            block = _Block(chunk, group, place[0], place[1 + chunk], shape, q, keys, weights, factors)
            sources = [*[rot] * pieces, *[free] * shape.parts, *patch[:1]]
            _attend(block, sources, (positions, frequencies), out, lse)

        tile = plgpu.SMEM((ROWS, piece), jnp.bfloat16, transforms=_transforms(piece, jnp.bfloat16))
        widths = [*[piece] * pieces, *[shape.part] * shape.parts] if shape.rank else []
        aligned = _transforms(shape.aligned, jnp.bfloat16)
        factors = [plgpu.SMEM((shape.rank, width), jnp.bfloat16, transforms=aligned) for width in widths]
        copies = plgpu.Barrier(num_arrivals=pieces + len(factors))
        weights = plgpu.SMEM((ROWS, ROWS), jnp.bfloat16, transforms=aligned)
        pl.run_scoped(scoped, [tile] * pieces, [tile] * pieces, weights, factors, copies)

    queries = (chunks, groups, shape.queries)
    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((*queries, shape.value), jnp.float32),
            jax.ShapeDtypeStruct(queries, jnp.float32),
        ),
        grid=(chunks, groups),
        grid_names=("chunk", "group"),
        interpret=interpret,
        kernel_name="chunk_attention",
    )(
        operands.q,
        operands.rot,
        operands.free,
        operands.positions,
        operands.frequencies,
        operands.place,
        *(operands.patch or ()),
    )
