"""The Mosaic GPU kernel of relocate_patch (jax 0.11 or newer); `gpu` says what it serves and prepares its operands.

A thread block owns 64 tokens of a group of layers. It streams their columns through shared memory, the two halves of a
head's pairs or one slice of `free` at a time, adds ``Uᵀ V`` on the tensor cores, rotates in f32 registers, and writes
by TMA. The tile that `length` cuts first reads the rows of the cache that it must keep.
"""

# Types are checked against the jax of Python 3.11, which lacks what this is written with.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportPrivateImportUsage=false

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.relocate_patch.gpu_call import ROWS, Call, Operands, pad_columns

WGMMA = plgpu.Layout.WGMMA


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One pipeline of a thread block: tiles of ``source``, `compute`d and written to the same columns of ``target``.

    Attributes:
        steps: of a layer.
        width: columns of a tile.
        source, target: refs in global memory.
        at: from the step to where its tiles start.
        aligned: divides the width and every start.
        patch_at: from the step to where its columns of ``v`` start.
        patch_aligned: divides those.
        compute: from the step's tiles and patches to the new tiles.
    """

    steps: int
    width: int
    source: Any
    target: Any
    at: Callable[[Any], list[Any]]
    aligned: int
    patch_at: Callable[[Any], list[Any]]
    patch_aligned: int
    compute: Callable[[list[jax.Array], list[jax.Array]], list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Block:
    """What a thread block works on.

    Attributes:
        tile: of ROWS tokens.
        first, depth: its layers.
        left: valid tokens from the start of the tile on.
        rows: where in the target each run of rows starts; a run does not cross a page.
        patch: refs of u and v, or nothing.
    """

    tile: Any
    first: Any
    depth: int
    left: Any
    rows: list[Any]
    patch: Sequence[Any]

    @property
    def run(self) -> int:
        return ROWS // len(self.rows)


def _transforms(width: int, dtype: Any) -> tuple[Any, ...]:
    """Tiling and the widest swizzle that divides ``width``; none when it is not a multiple of 32 bytes."""
    size = jnp.dtype(dtype).itemsize
    for swizzle in (128, 64, 32):
        if width * size % swizzle == 0:
            return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)
    return ()


def _load(ref: Any) -> jax.Array:
    return plgpu.load(ref, layout=WGMMA, optimized=False)


def _store(ref: Any, value: jax.Array) -> None:
    plgpu.store(ref, value, optimized=False)


def _multiply(u: Any, v: Any, width: int) -> jax.Array:
    """The first ``width`` columns of ``Uᵀ V`` in f32, for refs [m, ROWS] and [m, N]."""

    def accumulate(total: Any) -> jax.Array:
        plgpu.wgmma(total, u.T, v)
        plgpu.wgmma_wait(0)
        return total[...]

    product = pl.run_scoped(accumulate, plgpu.ACC((ROWS, v.shape[-1]), jnp.float32))
    return product if width == v.shape[-1] else product[:, :width]


def _unpack(word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two bf16 of a u32 as f32, the first in memory first."""
    first = word << jnp.uint32(16)
    second = word & jnp.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(first, jnp.float32), lax.bitcast_convert_type(second, jnp.float32)


def _pack(first: jax.Array, second: jax.Array) -> jax.Array:
    def bits(x: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)

    return bits(first) | (bits(second) << jnp.uint32(16))


def _rotation(cos: jax.Array, sin: jax.Array, packed: bool) -> Callable[..., list[jax.Array]]:
    def compute(tiles: list[jax.Array], patches: list[jax.Array]) -> list[jax.Array]:
        a, b = _unpack(tiles[0]) if packed else (tile.astype(jnp.float32) for tile in tiles)
        if patches:
            a = a + patches[0]
            b = b + patches[1]
        a, b = a * cos - b * sin, b * cos + a * sin
        return [_pack(a, b)] if packed else [a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)]

    return compute


def _addition(tiles: list[jax.Array], patches: list[jax.Array]) -> list[jax.Array]:
    if not patches:
        return tiles
    return [(tiles[0].astype(jnp.float32) + patches[0]).astype(jnp.bfloat16)]


def _specs(stream: _Stream, block: _Block) -> tuple[list[Any], list[Any], int]:
    """What the pipeline loads: block specs, the refs they cut, and how many are tiles of the source."""
    zero = jnp.int32(0)

    def spec(shape: tuple[Any, ...], at: Callable[[Any], tuple[Any, Any]], aligned: int, dtype: Any) -> Any:
        return plgpu.BlockSpec(
            (None, *shape),
            lambda layer, step: (block.first + layer, *at(step)),
            transforms=_transforms(aligned, dtype),
        )

    def columns(at: Callable[[Any], list[Any]], aligned: int, row: Any, rows: int, width: int, dtype: Any) -> list[Any]:
        return [
            spec(
                (rows, pl.Element(width)),
                lambda step, k=k: (row, pl.multiple_of(at(step)[k], aligned)),
                aligned,
                dtype,
            )
            for k in range(len(at(zero)))
        ]

    specs = columns(stream.at, stream.aligned, block.tile, ROWS, stream.width, stream.source.dtype)
    refs = [stream.source] * len(specs)
    tiles = len(specs)
    if block.patch:
        u, v = block.patch
        rank = u.shape[1]
        width = pad_columns(stream.width)
        # Both sides of the multiply have one swizzle, and it divides the depth.
        aligned = math.gcd(rank, width, stream.patch_aligned, v.shape[-1])
        specs.append(spec((rank, ROWS), lambda _: (0, block.tile), math.gcd(ROWS, aligned), u.dtype))
        specs += columns(stream.patch_at, math.gcd(ROWS, aligned), 0, rank, width, v.dtype)
        refs += [u] + [v] * (len(specs) - tiles - 1)
    return specs, refs, tiles


def _run(stream: _Stream, block: _Block, call: Call) -> None:
    """One stream over the block's layers.

    Shared memory has the pipeline's stages, which TMA fills ahead of the step that reads them, and one output tile for
    each tile of the source. A step's values are in registers between the two.
    """
    specs, refs, tiles = _specs(stream, block)
    width = stream.width
    run = block.run
    left = block.left

    def scoped(outs: list[Any], fetched: Any) -> None:
        def step(index: tuple[Any, Any], *refs: Any) -> None:
            layer, at = index
            columns = [pl.multiple_of(column, stream.aligned) for column in stream.at(at)]

            def places(r: int) -> list[tuple[Any, Any]]:
                rows = pl.ds(block.rows[r], run)
                return [
                    (out.at[pl.ds(r * run, run), :], stream.target.at[block.first + layer, rows, pl.ds(column, width)])
                    for out, column in zip(outs, columns, strict=True)
                ]

            def fetch(r: int) -> None:
                for here, there in places(r):
                    plgpu.copy_gmem_to_smem(there, here, fetched)
                    plgpu.barrier_wait(fetched)

            def send(r: int) -> None:
                for here, there in places(r):
                    plgpu.copy_smem_to_gmem(here, there, commit_group=False)

            def each_run(do: Callable[[int], None]) -> None:
                for r in range(len(block.rows)):
                    # A run past the end may have no page.
                    pl.when(r * run < left if call.into else True)(functools.partial(do, r))

            # The output tiles are free once TMA has read what the step before put there.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            patches = [_multiply(refs[tiles], v, width) for v in refs[tiles + 1 :]]
            news = stream.compute([_load(ref) for ref in refs[:tiles]], patches)
            valid = plgpu.broadcasted_iota(jnp.int32, (ROWS, width), 0, layout=WGMMA) < left

            @pl.when(left >= ROWS)
            def _():
                for out, new in zip(outs, news, strict=True):
                    _store(out, new)

            # The tile that the length cuts is written whole too: past it the cache's own rows, fetched first, or zeros.
            @pl.when(left < ROWS)
            def _():
                if call.into:
                    each_run(fetch)
                for out, new in zip(outs, news, strict=True):
                    _store(out, jnp.where(valid, new, _load(out) if call.into else jnp.zeros_like(new)))

            # What the threads stored must be visible to TMA before it reads.
            plgpu.commit_smem()
            each_run(send)
            plgpu.commit_smem_to_gmem_group()

        plgpu.emit_pipeline(
            step, grid=(block.depth, stream.steps), in_specs=specs, max_concurrent_steps=call.tiles.stages
        )(*refs)
        # The next stream uses the same shared memory.
        plgpu.wait_smem_to_gmem(0)

    out = plgpu.SMEM((ROWS, width), stream.source.dtype, transforms=_transforms(stream.aligned, stream.source.dtype))
    pl.run_scoped(scoped, [out] * tiles, plgpu.Barrier())


def _streams(rot: tuple[Any, Any], free: tuple[Any, Any], cos: Any, sin: Any, tile: Any, call: Call) -> list[_Stream]:
    """The pairs of the heads, what is left of the heads, and `free`; rot and free are a (source, target) each."""
    units = call.units
    head_patch = call.head_patch
    pairs = call.pairs
    heads = rot[0].shape[-1] // units
    half = pad_columns(pairs)
    streams = []
    wide = min(pairs, call.tiles.pairs)
    for chunk in range(0, pairs, wide):
        members = [chunk] if call.packed else [chunk, pairs + chunk]
        rows = pl.ds(tile * ROWS, ROWS)
        cosine = _load(cos.at[rows, pl.ds(chunk, wide)])
        sine = _load(sin.at[rows, pl.ds(members[-1], wide)])
        streams.append(
            _Stream(
                steps=heads,
                width=wide,
                source=rot[0],
                target=rot[1],
                at=lambda head, members=members: [head * units + start for start in members],
                aligned=math.gcd(units, wide) if call.packed else math.gcd(units, wide, pairs),
                patch_at=lambda head, chunk=chunk: [head * head_patch + chunk, head * head_patch + half + chunk],
                patch_aligned=math.gcd(head_patch, half, chunk),
                compute=_rotation(cosine, sine, call.packed),
            )
        )
    slices = next(
        n for n in range(1, call.rest + 2) if call.rest % (16 * n) == 0 and call.rest <= n * call.tiles.columns
    )
    for chunk in range(0, call.rest, call.rest // slices or 1):
        streams.append(
            _Stream(
                steps=heads,
                width=call.rest // slices,
                source=rot[0],
                target=rot[1],
                at=lambda head, chunk=chunk: [head * units + 2 * pairs + chunk],
                aligned=math.gcd(units, 2 * pairs, call.rest // slices),
                patch_at=lambda head, chunk=chunk: [head * head_patch + 2 * half + chunk],
                patch_aligned=math.gcd(head_patch, 2 * half, chunk),
                compute=_addition,
            )
        )
    columns = min(call.tiles.columns, free[0].shape[-1])
    streams.append(
        _Stream(
            # The last slice may reach over the edge, where TMA reads zeros and writes nothing.
            steps=-(-free[0].shape[-1] // columns),
            width=columns,
            source=free[0],
            target=free[1],
            at=lambda step: [step * columns],
            aligned=math.gcd(columns, free[0].shape[-1]),
            patch_at=lambda step: [heads * head_patch + step * columns],
            patch_aligned=math.gcd(heads * head_patch, columns),
            compute=_addition,
        )
    )
    return streams


def relocate(operands: Operands, call: Call, interpret: Any) -> Any:
    """Launch it.

    Args:
        operands: what it is launched on.
        call: what is fixed.
        interpret: None or False, or parameters of the interpret mode.

    Returns:
        (rot, free), or nothing when they are in the caches.
    """
    rot = operands.rot
    free = operands.free
    caches = operands.caches
    tiles = call.tiles
    depth = rot.shape[0] // tiles.groups
    run = min(ROWS, call.page or ROWS)

    def start(place_in: Any, token: Any) -> Any:
        if not call.into:
            return pl.multiple_of(token, run)
        if call.page is None:
            return pl.multiple_of(place_in[1] + token, 16)
        return pl.multiple_of(place_in[1 + token // call.page] * call.page + token % call.page, 16)

    def kernel(rot_in: Any, free_in: Any, cos_in: Any, sin_in: Any, place_in: Any, *refs: Any) -> None:
        *patch_in, rot_out, free_out = refs
        tile = lax.axis_index("tile")
        group = lax.axis_index("group")
        left = place_in[0] - tile * ROWS

        def work() -> None:
            rows = [start(place_in, tile * ROWS + r) for r in range(0, ROWS, run)]
            block = _Block(tile, group * depth, depth, left, rows, patch_in)
            for stream in _streams((rot_in, rot_out), (free_in, free_out), cos_in, sin_in, tile, call):
                _run(stream, block, call)

        pl.when(left > 0 if call.into else True)(work)

    outputs = () if caches else tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (rot, free))
    return plgpu.kernel(
        kernel,
        out_type=outputs,
        grid=(rot.shape[1] // ROWS, tiles.groups),
        grid_names=("tile", "group"),
        interpret=interpret,
        kernel_name="relocate_patch",
    )(rot, free, operands.cos, operands.sin, operands.place, *(operands.patch or ()), *(caches or ()))
