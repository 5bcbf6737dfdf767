"""chunk_attention on TPUs: one pass over all chunks, each tile of keys made in VMEM, used and dropped.

A tile of keys is worked on transposed, [D, tokens]: positions lie along the lanes as they do in memory, a head of any
width is a slice of sublanes, half-split pairs are two of them, and scores are a plain product.

cos and sin are made from positions in the kernel. As tables they would be 4 R bytes a token beside 2 (Fr + Ff) of KV:
a quarter more to read for 4 KV heads of 128, half for 2. Positions are 4 A bytes, and the heads of a step share what
is made from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.chunk_attention.reference import UNSEEN
from pallas_kernels.chunk_attention.shapes import Heads
from pallas_kernels.relocate_patch.limits import LANES, transposed
from pallas_kernels.relocate_patch.reference import PairLayout

VMEM = 12 << 20
"""Bytes a step may take: Mosaic allows 16 MiB by default, and wants some for itself."""


@dataclass(frozen=True)
class Tiles:
    """What one grid step works on.

    Attributes:
        rows: queries of one KV head, over query tokens and the heads that share it.
        tokens: of a chunk.
        heads: KV heads.
        absorb: whether the patch of what does not rotate goes into the products, Σp(v + uᵀw) = Σp·v + (Σp·u)w, and
            not into each tile of it.
    """

    rows: int
    tokens: int
    heads: int
    absorb: bool


def choose_tiles(heads: Heads, rows: int, tokens: int, rank: int, itemsize: int) -> Tiles:
    """Tiles for ``rows`` queries of each KV head, chunks of ``tokens`` and numbers of ``itemsize`` bytes.

    Absorbing takes ``rows * rank`` products a token, twice for a latent, which is key and value; adding takes
    ``value * rank`` and a rounding of every value. Rows share the making of a tile of keys: as many as fit, up to 1024.
    """
    absorb = rank > 0 and rows * (2 if heads.latent else 1) <= heads.value
    row_tile = _up(rows, 32 // itemsize) if rows <= 1024 else 1024
    counts = [count for count in range(min(heads.groups, 8), 0, -1) if _splits(heads, count)] or [heads.groups]
    while True:
        for limit in (512, 256, 128):
            steps = pl.cdiv(tokens, limit)
            token_tile = tokens if steps == 1 else _up(pl.cdiv(tokens, steps), LANES)
            for count in counts:
                tiles = Tiles(row_tile, token_tile, count, absorb)
                if _vmem(tiles, heads, rank, itemsize) <= VMEM:
                    return tiles
        if row_tile <= LANES:
            return tiles
        row_tile = _up(row_tile // 2, LANES)


def _up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def _splits(heads: Heads, count: int) -> bool:
    """Whether a step may take ``count`` KV heads: all of them, or whole lanes, alike in keys and values."""
    whole_lanes = heads.rotated == heads.value and count * heads.rotated % LANES == 0
    return heads.groups % count == 0 and (count == heads.groups or whole_lanes)


def _vmem(tiles: Tiles, heads: Heads, rank: int, itemsize: int) -> int:
    """Bytes of a step: blocks twice, since the next are fetched meanwhile, scratch, and the larger temporaries."""
    rot, free = (_up(tiles.heads * width, LANES) for width in (heads.rotated, heads.value))
    width = _up(heads.rotated + (heads.value if heads.latent else 0), LANES)
    rows = tiles.heads * tiles.rows
    tokens = _up(tiles.tokens, LANES)
    value = _up(heads.value, LANES)
    blocks = tokens * (rot + free) + rows * (width + value) + _up(rank, 32 // itemsize) * (tokens + rot + free)
    scratch = rows * (value + 2 * LANES)
    temporaries = 2 * tiles.rows * tokens + 2 * rot * tokens + (0 if tiles.absorb else value * tokens)
    return 2 * (blocks * itemsize + rows * LANES * 4) + 4 * (scratch + temporaries) + tiles.rows * tokens * itemsize


def _tokens_minor(tokens: int, width: int) -> bool:
    """Whether XLA lays [C, T, width] out with the tokens innermost, so that [C, width, T] is the same memory."""
    return transposed(width) and tokens % LANES == 0


def chunk_attention_tpu(
    q: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    positions: jax.Array,
    inv_freq: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    lengths: jax.Array,
    bases: jax.Array,
    first: jax.Array | int = 0,
    *,
    heads: Heads,
    scale: float,
    rope_scale: float,
    layout: PairLayout,
    tiles: Tiles | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.chunk_attention`; every argument is already checked.

    Args:
        first: where the C chunks that lengths and bases tell of begin in rot, free, u and v.
        tiles: instead of `choose_tiles`.
        interpret: as `jax.experimental.pallas.pallas_call` takes it.
    """
    queries = q.shape[0]
    rows = q.reshape(queries, heads.groups, heads.per_group, -1).transpose(1, 0, 2, 3)
    operands = {
        "q": rows.reshape(heads.groups, -1, q.shape[-1]),
        "rot": rot,
        "free": free,
        "positions": positions,
        "lengths": lengths,
        "bases": bases,
        "first": jnp.asarray(first, jnp.int32),
        # A column for every axis; for interleaved pairs a row for every dim.
        "inv_freq": inv_freq.T if layout == "half" else jnp.repeat(inv_freq.T, 2, axis=0),
    }
    for name in ("rot", "free"):
        if _tokens_minor(*operands[name].shape[1:]):
            operands[name] = operands[name].swapaxes(1, 2)
    if u is not None and v is not None and ranks is not None:
        operands |= {"u": u, "v": v, "ranks": ranks}
    call = _batchable(
        partial(
            _call,
            heads=heads,
            scale=scale,
            rope_scale=rope_scale,
            layout=layout,
            tiles=tiles,
            interpret=interpret,
        )
    )
    out, lse = call({name: array[None] for name, array in operands.items()})

    def by_query(x: jax.Array) -> jax.Array:
        x = x.reshape(heads.groups, queries, heads.per_group, -1).transpose(1, 0, 2, 3)
        return x.reshape(queries, heads.queries, -1)

    return by_query(out), by_query(lse)[..., 0]


def _batchable(call: Any) -> Any:
    """``call`` of operands that lead with B or with 1, so that under vmap none is copied for the others' sake.

    Pallas's own vmap of a kernel with prefetched scalars is a loop that copies each element's operands.
    """

    @custom_vmap
    def batched(operands: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return call(operands)

    @batched.def_vmap
    def rule(size: int, is_batched: Any, operands: dict[str, jax.Array]) -> Any:  # pyright: ignore
        is_batched = is_batched[0] if isinstance(is_batched, (list, tuple)) else is_batched
        if not any(given for name, given in is_batched.items() if name != "q"):
            # The same chunks: more rows, and the chunks are still read once.
            q = jnp.moveaxis(operands["q"], 0, 2)
            results = batched(operands | {"q": q.reshape(*q.shape[:2], -1, q.shape[-1])})
            return tuple(jnp.moveaxis(x.reshape(*q.shape[:4], -1), 2, 0) for x in results), (True, True)
        leads = {name: array.shape[int(is_batched[name])] for name, array in operands.items()}
        batch = max(leads.values())

        def merged(name: str, array: jax.Array) -> jax.Array:
            if not is_batched[name] and leads[name] == 1:
                return array
            array = array if is_batched[name] else array[None]
            return jnp.broadcast_to(array, (size, batch, *array.shape[2:])).reshape(size * batch, *array.shape[2:])

        results = batched({name: merged(name, array) for name, array in operands.items()})
        return tuple(x.reshape(size, batch, *x.shape[1:]) for x in results), (True, True)

    return batched


def _call(
    operands: dict[str, jax.Array],
    *,
    heads: Heads,
    scale: float,
    rope_scale: float,
    layout: PairLayout,
    tiles: Tiles | None,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Operands leading with B or 1, q [B, G, rows, width], to out [B, G, rows, Dv] and lse f32[B, G, rows, 1]."""
    q, rot, free, positions = (operands[name] for name in ("q", "rot", "free", "positions"))
    batch = max(array.shape[0] for array in operands.values())
    chunks = positions.shape[1]
    tokens = positions.shape[3]
    rows = q.shape[2]
    rank = operands["u"].shape[2] if "u" in operands else 0
    if tiles is None:
        tiles = choose_tiles(heads, rows, tokens, rank, q.dtype.itemsize)
    steps = pl.cdiv(tokens, tiles.tokens)

    # What has nothing to read points at what was read last, which is then not fetched again.
    lengths = jnp.broadcast_to(operands["lengths"], (batch, chunks))
    chunk = jnp.broadcast_to(jnp.arange(chunks, dtype=jnp.int32)[None, :], (batch, chunks))
    before = (chunk[:, None, :] <= chunk[:, :, None]) & (lengths[:, None, :] > 0)
    source = jnp.where(before, chunk[:, None, :], 0).max(axis=2)
    last = jnp.maximum(jnp.take_along_axis(lengths, source, axis=1) - 1, 0) // tiles.tokens
    scalars = [
        lengths,
        jnp.broadcast_to(operands["bases"], (batch, chunks)),
        source,
        last,
        jnp.broadcast_to(operands["first"], (batch,)),
    ]
    if rank:
        scalars.append(jnp.broadcast_to(operands["ranks"], (batch, chunks)))

    def block(array: jax.Array, shape: Sequence[int], *axes: str) -> pl.BlockSpec:
        """A block whose index along each axis is one of these; ``values`` are the columns after those of keys."""
        shared = array.shape[0] == 1

        def index(b: Any, h: Any, i: Any, c: Any, t: Any, *scalars: Any):
            _, _, source, last, first, *_ = scalars
            at = source[b, c]
            end = last[b, c]
            known = {
                "head": h,
                "row": i,
                "place": at,
                "chunk": first[b] + at,
                "tile": jnp.where(at == c, jnp.minimum(t, end), end),
                "values": h + heads.groups // tiles.heads,
                "0": 0,
            }
            return (0 if shared else b, *(known[axis] for axis in axes))

        return pl.BlockSpec((1, *shape), index)

    key_width = tiles.heads * heads.rotated
    value_width = tiles.heads * heads.value
    inputs = [
        (q, block(q, (tiles.heads, tiles.rows, q.shape[-1]), "head", "row", "0")),
        (positions, block(positions, (1, positions.shape[2], tiles.tokens), "place", "0", "tile")),
        (operands["inv_freq"], block(operands["inv_freq"], operands["inv_freq"].shape[1:], "0", "0")),
    ]
    minor = (
        _tokens_minor(tokens, heads.groups * heads.rotated),
        _tokens_minor(tokens, heads.groups * heads.value),
    )
    for array, width, tokens_minor in ((rot, key_width, minor[0]), (free, value_width, minor[1])):
        if tokens_minor:
            inputs.append((array, block(array, (1, width, tiles.tokens), "chunk", "head", "tile")))
        else:
            inputs.append((array, block(array, (1, tiles.tokens, width), "chunk", "tile", "head")))
    if rank:
        u = operands["u"]
        v = operands["v"]
        inputs.append((u, block(u, (1, rank, tiles.tokens), "chunk", "0", "tile")))
        if tiles.heads == heads.groups:
            inputs.append((v, block(v, (1, *v.shape[2:]), "chunk", "0", "0")))
        else:
            inputs.append((v, block(v, (1, rank, key_width), "chunk", "0", "head")))
            inputs.append((v, block(v, (1, rank, value_width), "chunk", "0", "values")))

    like = jax.ShapeDtypeStruct.like(jax.eval_shape(_any, operands))
    shapes = [(heads.value, q.dtype), (LANES, jnp.float32)]
    lanes = (tiles.heads, tiles.rows, LANES)
    scratch = [pltpu.VMEM((*lanes[:2], width), jnp.float32) for width in (heads.value, LANES, LANES)]
    if tiles.absorb and heads.latent:
        scratch.append(pltpu.VMEM((tiles.rows, rank), jnp.float32))
    pairs = batch * heads.groups * rows * chunks * tokens
    read = sum(x.nbytes for x, _ in inputs[1:3]) + sum(x.nbytes * chunks // x.shape[1] for x, _ in inputs[3:])
    grid = (batch, heads.groups // tiles.heads, pl.cdiv(rows, tiles.rows), chunks, steps)
    out, lse = pl.pallas_call(
        partial(
            _kernel,
            heads=heads,
            scale=scale,
            rope_scale=rope_scale,
            layout=layout,
            tiles=tiles,
            minor=minor,
            patched=rank > 0,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[pl.BlockSpec((1, *lanes[:2], width), lambda b, h, i, *_: (b, h, i, 0)) for width, _ in shapes],
            scratch_shapes=scratch,
        ),
        out_shape=[
            like.update(shape=(batch, *q.shape[1:3], width), dtype=jnp.dtype(dtype), sharding=None)
            for width, dtype in shapes
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * pairs * (q.shape[-1] + heads.value),
            transcendentals=pairs,
            bytes_accessed=grid[2] * read
            + batch * heads.groups * rows * sum(width * jnp.dtype(dtype).itemsize for width, dtype in shapes)
            + q.nbytes,
        ),
        interpret=interpret,
        name="chunk_attention",
    )(*scalars, *(operand for operand, _ in inputs))
    return out, lse[..., :1]


def _any(operands: dict[str, jax.Array]) -> jax.Array:
    """Traced for its type alone: it varies over every mesh axis (of shard_map) that any operand varies over."""
    return sum((array.ravel()[0].astype(jnp.float32) for array in operands.values()), jnp.float32(0.0))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product of matrices in f32; bf16 by bf16 is exact in one pass of the matrix unit, anything else takes six."""
    narrow = a.dtype == b.dtype == jnp.bfloat16
    if not narrow:
        a = a.astype(jnp.float32)
        b = b.astype(jnp.float32)
    precision = jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _cos_sin(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of f32 radians with one range reduction for both, a quarter of the instructions of the generic ones.

    Cody and Waite's reduction to [-pi/4, pi/4], and the polynomials of Cephes. Within 2e-7 up to 1e4 radians, and
    within 4e-6 up to 1e5, where f32 itself tells angles 8e-3 apart.
    """
    turns = jnp.round(angles * (2 / math.pi))
    rest = ((angles - turns * 1.5703125) - turns * 4.837512969970703e-4) - turns * 7.549789954891882e-8
    square = rest * rest
    sin = rest + rest * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4))
    cos = 4.166664568298827e-2 - square * (1.388731625493765e-3 - square * 2.443315711809948e-5)
    cos = 1.0 - square * (0.5 - square * cos)
    quarter = turns.astype(jnp.int32)
    odd = quarter & 1 != 0
    cos, sin = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    return jnp.where((quarter + 1) & 2 != 0, -cos, cos), jnp.where(quarter & 2 != 0, -sin, sin)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array, layout: PairLayout) -> jax.Array:
    """A head f32[D, tokens] rotated by tables [R/2, tokens] (half) or [R, tokens] (interleaved)."""
    count = cos.shape[0]
    if layout == "half":
        a = x[:count]
        b = x[count : 2 * count]
        rest = x[2 * count :]
        parts = [a * cos - b * sin, b * cos + a * sin]
    else:
        turned = x[:count]
        rest = x[count:]
        even = jax.lax.broadcasted_iota(jnp.int32, turned.shape, 0) % 2 == 0
        partner = jnp.where(even, -pltpu.roll(turned, count - 1, axis=0), pltpu.roll(turned, 1, axis=0))
        parts = [turned * cos + partner * sin]
    return jnp.concatenate([*parts, rest] if rest.shape[0] else parts, axis=0)


def _kernel(
    *refs: Any,
    heads: Heads,
    scale: float,
    rope_scale: float,
    layout: PairLayout,
    tiles: Tiles,
    minor: tuple[bool, bool],
    patched: bool,
) -> None:
    """One tile of tokens against the rows of ``tiles.heads`` KV heads.

    Args:
        refs: the scalars, inputs, outputs and scratch of `_call`.
        minor: whether tokens are the last axis of keys and of values.
        patched: whether there are ranks and factors among the refs.
    """
    lengths, bases, _, _, _, *rest = refs
    ranks = rest.pop(0) if patched else None
    q, positions, inv_freq, rot, free, *rest = rest
    factors = [rest.pop(0) for _ in range((2 if tiles.heads == heads.groups else 3) if patched else 0)]
    out, lse, weighted, highest, total, *absorbed = rest
    batch = pl.program_id(0)
    chunk = pl.program_id(3)
    step = pl.program_id(4)
    length = lengths[batch, chunk]
    base = bases[batch, chunk]
    key_width = tiles.heads * heads.rotated
    dtype = q.dtype
    by_token = 1 if minor[1] else 0  # the axis of values that tokens are on

    @pl.when((chunk == 0) & (step == 0))
    def start() -> None:
        weighted[...] = jnp.zeros_like(weighted)
        highest[...] = jnp.full_like(highest, UNSEEN)
        total[...] = jnp.zeros_like(total)

    def patch() -> tuple[jax.Array, jax.Array, jax.Array]:
        """u [m, tokens], v of the keys, v of the values; zero past the chunk's rank and length: 0 * nan is nan."""
        assert ranks is not None
        rank = ranks[batch, chunk]

        def used(array: jax.Array) -> jax.Array:
            return jnp.where(jax.lax.broadcasted_iota(jnp.int32, array.shape, 0) < rank, array, jnp.zeros_like(array))

        u = used(factors[0][0, 0])
        u = jnp.where(seen(u.shape, 1), u, jnp.zeros_like(u))
        if len(factors) == 3:
            return u, used(factors[1][0, 0]), used(factors[2][0, 0])
        return u, used(factors[1][0, 0, :, :key_width]), used(factors[1][0, 0, :, key_width:])

    def seen(shape: tuple[int, ...], axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, shape, axis) < length - step * tiles.tokens

    @pl.when((step * tiles.tokens < length) & (length < (step + 1) * tiles.tokens))
    def clear() -> None:
        # Past the length: p is 0 there, and 0 * nan is nan. In the fetched block, so that full tiles do not pay.
        values = free[0, 0]
        free[0, 0] = jnp.where(seen(values.shape, by_token), values, jnp.zeros_like(values))

    @pl.when(step * tiles.tokens < length)
    def attend() -> None:
        u, v_keys, v_values = patch() if patched else (None, None, None)
        at = positions[0, 0] + base
        angles = inv_freq[0, :, :1] * at[:1]
        for axis in range(1, at.shape[0]):
            angles += inv_freq[0, :, axis : axis + 1] * at[axis : axis + 1]
        cos, sin = _cos_sin(angles)
        if rope_scale != 1.0:
            cos = cos * rope_scale
            sin = sin * rope_scale

        keys = rot[0, 0].astype(jnp.float32)
        keys = keys if minor[0] else keys.T
        if u is not None and v_keys is not None:
            keys += _dot(v_keys, u, (0, 0))
        for head in range(tiles.heads):
            key = _rotated(keys[head * heads.rotated : (head + 1) * heads.rotated], cos, sin, layout).astype(dtype)
            own = slice(head * heads.value, (head + 1) * heads.value)
            values = free[0, 0, own] if by_token else free[0, 0, :, own]
            v_head = None if v_values is None else v_values[:, own]
            if u is not None and v_head is not None and not tiles.absorb:
                delta = _dot(*((v_head, u) if by_token else (u, v_head)), (0, 0))
                values = (values.astype(jnp.float32) + delta).astype(dtype)

            if heads.latent:
                latent = q[0, head, :, : heads.value]
                scores = _dot(q[0, head, :, heads.value :], key, (1, 0)) + _dot(latent, values, (1, 1 - by_token))
                if u is not None and v_head is not None and tiles.absorb:

                    @pl.when(step == 0)
                    def onto_the_patch(v_head: jax.Array = v_head) -> None:
                        absorbed[0][...] = _dot(latent, v_head, (1, 1))  # noqa: B023

                    scores += _dot(absorbed[0][...].astype(dtype), u, (1, 0))
            else:
                scores = _dot(q[0, head], key, (1, 0))

            scores = jnp.where(seen(scores.shape, 1), scores * scale, UNSEEN)
            before = highest[head, :, :1]
            now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
            # Some token of this tile is seen, so `now` is a score, and what is not seen comes out as exactly 0.
            p = jnp.exp(scores - now)
            kept = jnp.exp(before - now)
            highest[head] = jnp.broadcast_to(now, highest.shape[1:])
            total[head] = kept * total[head] + p.sum(axis=1, keepdims=True)
            p = p.astype(dtype)
            part = _dot(p, values, (1, by_token))
            if u is not None and v_head is not None and tiles.absorb:
                part += _dot(_dot(p, u, (1, 1)).astype(dtype), v_head, (1, 0))
            weighted[head] = kept * weighted[head] + part

    @pl.when((chunk == pl.num_programs(3) - 1) & (step == pl.num_programs(4) - 1))
    def finish() -> None:
        for head in range(tiles.heads):
            sums = total[head]
            some = sums > 0
            sums = jnp.where(some, sums, 1.0)
            out[0, head] = (weighted[head] / sums[:, :1]).astype(out.dtype)
            lse[0, head] = jnp.where(some, highest[head] + jnp.log(sums), -jnp.inf)
