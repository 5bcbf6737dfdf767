"""The jnp reference of relocate_patch, and its ``"xla"`` backend."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.bits import bits_of, index_bits, is_bf16, of_bits
from pallas_kernels.relocate_patch.chunk import Cache, Chunk, PairLayout

BLOCK = 512
"""Lanes of the permutation by which a TPU swaps partners."""
PART = 2**23
"""Bytes of keys in f32 that a TPU works on at a time, of which it keeps a few copies in VMEM."""
MAX_PARTS = 65
WIDTH = 32
"""Components by which a CPU's products with the factors grow, so that a layer costs what its own rank does."""


def partner(x: jax.Array, rotary_dim: int, layout: PairLayout) -> jax.Array:
    """The other member of every rotated pair of the last axis; identity outside the first ``rotary_dim`` entries."""
    rotary = x[..., :rotary_dim]
    rest = x[..., rotary_dim:]
    if layout == "half":
        swapped = jnp.roll(rotary, rotary_dim // 2, axis=-1)
    else:
        swapped = rotary.reshape(*rotary.shape[:-1], -1, 2)[..., ::-1].reshape(rotary.shape)
    return jnp.concatenate([swapped, rest], axis=-1)


def rotate_flat(x: jax.Array, cos: jax.Array, sin: jax.Array, *, rotary_dim: int, layout: PairLayout) -> jax.Array:
    """Rotate flat features [L, T, G*D] by full-width tables [T, D] whose sin carries the sign."""
    heads = x.reshape(*x.shape[:2], -1, cos.shape[-1])
    rotated = heads * cos[None, :, None, :] + partner(heads, rotary_dim, layout) * sin[None, :, None, :]
    return rotated.reshape(x.shape)


def low_rank(u: jax.Array, v: jax.Array, ranks: jax.Array) -> jax.Array:
    """``Uᵀ V`` in f32 over the first ``ranks[l]`` components of each layer: u [L, m, T], v [L, m, F] -> [L, T, F]."""
    used = jnp.arange(u.shape[1], dtype=jnp.int32)[None, :, None] < ranks[:, None, None]
    # Both sides: what lies past a layer's rank is not read, and 0 * nan would be.
    u, v = (jnp.where(used, factor.astype(jnp.float32), 0.0) for factor in (u, v))
    return jnp.einsum("lmt,lmf->ltf", u, v, precision="highest")


def low_rank_by_width(u: jax.Array, v: jax.Array, ranks: jax.Array) -> jax.Array:
    """`low_rank` of one layer [1, m, ·] that multiplies no further than its rank, in steps of `WIDTH` components."""
    widths = range(WIDTH, u.shape[1] + WIDTH, WIDTH)
    if len(widths) == 1:
        return low_rank(u, v, ranks)

    def nothing(u: jax.Array, v: jax.Array, ranks: jax.Array) -> jax.Array:
        return varying_like((u, v, ranks), jnp.zeros((1, u.shape[2], v.shape[2]), jnp.float32))

    def leading(width: int, u: jax.Array, v: jax.Array, ranks: jax.Array) -> jax.Array:
        return low_rank(u[:, :width], v[:, :width], ranks)

    products = [nothing, *(partial(leading, width) for width in widths)]
    return jax.lax.switch(-(-jnp.clip(ranks[0], 0, u.shape[1]) // WIDTH), products, u, v, ranks)


def relocate_patch_reference(chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`."""
    rotation = {"rotary_dim": chunk.rotary_dim, "layout": chunk.layout}
    return jax.lax.platform_dependent(
        chunk,
        cpu=on_cpu,
        tpu=partial(by_part, parts=_parts(*chunk.rot.shape[1:]), rotate=partial(rotate_by_product, **rotation)),
        default=at_once,
    )


def on_cpu(chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """Layer by layer, but for a single token."""
    if _single(chunk):
        return at_once(chunk)
    # In f32 and then rounded: a CPU would write all of bf16 out in f32, and back, to add the rows of a layer to it.
    wide = replace(chunk, rot=chunk.rot.astype(jnp.float32), free=chunk.free.astype(jnp.float32))
    rot, free = by_part(wide, **_by_layer(chunk))
    return rot.astype(chunk.rot.dtype), free.astype(chunk.free.dtype)


def _single(chunk: Chunk) -> bool:
    """Whether it is a token, as decoding writes them: a loop over layers would take longer than what it does."""
    return chunk.patch is None and chunk.tokens == 1


def _by_layer(chunk: Chunk) -> dict[str, Any]:
    rotate = partial(rotate_flat, rotary_dim=chunk.rotary_dim, layout=chunk.layout)
    return {"parts": 1, "rotate": rotate, "product": low_rank_by_width}


def at_once(chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """The definition, all layers together."""
    width = chunk.rot.shape[-1]
    rot = chunk.rot.astype(jnp.float32)
    free = chunk.free.astype(jnp.float32)
    if chunk.patch is not None:
        delta = low_rank(chunk.patch.u, chunk.patch.v, chunk.patch.ranks)
        rot = rot + delta[..., :width]
        free = free + delta[..., width:]
    rot = rotate_flat(rot, chunk.cos, chunk.sin, rotary_dim=chunk.rotary_dim, layout=chunk.layout)
    return _stored(chunk, rot, free, jnp.arange(chunk.tokens, dtype=jnp.int32))


def _starts(*indices: Any) -> tuple[jax.Array, ...]:
    """Where a slice starts, in one dtype: under ``jax_enable_x64`` a number that Python knows would be of 64 bits."""
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)


def _stored(chunk: Chunk, rot: jax.Array, free: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f32 rows of these tokens as they are stored: zero past the length, in the chunk's dtypes."""
    valid = (tokens < chunk.length)[None, :, None]
    return jnp.where(valid, rot, 0.0).astype(chunk.rot.dtype), jnp.where(valid, free, 0.0).astype(chunk.free.dtype)


def by_part(
    chunk: Chunk, *, parts: int, rotate: Callable[..., jax.Array], product: Callable[..., jax.Array] = low_rank
) -> tuple[jax.Array, jax.Array]:
    """The same in ``parts`` for each layer, whose f32 patch stays in a CPU's cache or a TPU's VMEM."""
    new = jax.lax.map(partial(_part, chunk, parts, rotate, product), jnp.arange(chunk.layers * parts, dtype=jnp.int32))
    return new[0].reshape(chunk.rot.shape), new[1].reshape(chunk.free.shape)


def _part(
    chunk: Chunk,
    parts: int,
    rotate: Callable[..., jax.Array],
    product: Callable[..., jax.Array],
    index: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Part ``index``, counted over all layers: [1, T / parts, F]."""
    rows = chunk.tokens // parts
    width = chunk.rot.shape[2]
    layer = index // parts
    start = index % parts * rows

    def here(array: jax.Array, *lead: Any) -> jax.Array:
        return jax.lax.dynamic_slice(array, _starts(*lead, start, 0), (1,) * len(lead) + (rows, array.shape[-1]))

    rot, free = (here(x, layer).astype(jnp.float32) for x in (chunk.rot, chunk.free))
    if chunk.patch is not None:
        left = jax.lax.dynamic_slice(chunk.patch.u, _starts(layer, 0, start), (1, chunk.patch.rank, rows))
        right, rank = (jax.lax.dynamic_slice_in_dim(x, layer, 1) for x in (chunk.patch.v, chunk.patch.ranks))
        # Two products, each fused with its sum; a slice of one product would be written first.
        rot = rot + product(left, right[..., :width], rank)
        free = free + product(left, right[..., width:], rank)
    return _stored(
        chunk, rotate(rot, here(chunk.cos), here(chunk.sin)), free, start + jnp.arange(rows, dtype=jnp.int32)
    )


def _parts(tokens: int, width: int) -> int:
    """The fewest parts of a layer that a TPU can keep; all of it where none of the counts divides the tokens."""
    return next((n for n in range(1, MAX_PARTS) if tokens % n == 0 and 4 * tokens // n * width <= PART), 1)


def rotate_by_product(
    x: jax.Array, cos: jax.Array, sin: jax.Array, *, rotary_dim: int, layout: PairLayout
) -> jax.Array:
    """`rotate_flat` for a TPU, where a swap of lanes in memory costs several passes over it.

    The partners come from a product with a permutation, block-diagonal over the heads, which XLA fuses with the rest
    (exact at the highest precision).
    """
    width = x.shape[-1]
    head_dim = cos.shape[-1]
    heads = width // head_dim
    together = next(n for n in range(min(heads, max(1, BLOCK // head_dim)), 0, -1) if heads % n == 0)
    lanes = together * head_dim
    permutation = partner(jnp.eye(lanes, dtype=jnp.float32).reshape(lanes, together, head_dim), rotary_dim, layout)
    permutation = permutation.reshape(lanes, lanes)
    cos, sin = (jnp.tile(table, (1, together))[None] for table in (cos, sin))
    blocks = jnp.split(x, width // lanes, axis=-1)
    partners = [jnp.einsum("ltf,fg->ltg", block, permutation, precision="highest") for block in blocks]
    return jnp.concatenate([a * cos + b * sin for a, b in zip(blocks, partners, strict=True)], axis=-1)


def put(cache: jax.Array, layer: Any, place: jax.Array, rows: jax.Array, length: jax.Array) -> jax.Array:
    """The cache with the first ``length`` of rows [n, T, F] in the n layers from ``layer`` on."""
    return (into_slot if place.ndim == 0 else into_pages)(cache, layer, place, rows.astype(cache.dtype), length)


@jax.custom_jvp
def put_bits(cache: jax.Array, layer: Any, place: jax.Array, rows: jax.Array, length: jax.Array) -> jax.Array:
    """`put` of bf16 as bits: a CPU would write the cache out in f32, and back, to change some of its rows."""
    return of_bits(put(bits_of(cache), layer, place, bits_of(rows.astype(cache.dtype)), length))


@put_bits.defjvp
def _put_bits_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    _, layer, place, _, length = primals
    return put_bits(*primals), put(tangents[0], layer, place, tangents[3], length)


def relocate_patch_into_reference(cache: Cache, place: jax.Array, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch_into`."""
    rotation = {"rotary_dim": chunk.rotary_dim, "layout": chunk.layout}
    parts = _parts(*chunk.rot.shape[1:]) if place.ndim == 0 else 1
    return jax.lax.platform_dependent(
        cache,
        place,
        chunk,
        cpu=into_on_cpu,
        tpu=partial(into_by_part, parts=parts, rotate=partial(rotate_by_product, **rotation)),
        default=into_at_once,
    )


def into_at_once(
    cache: Cache,
    place: jax.Array,
    chunk: Chunk,
    relocated: Callable[[Chunk], tuple[jax.Array, jax.Array]] = at_once,
    written: Callable[..., jax.Array] = put,
) -> tuple[jax.Array, jax.Array]:
    """All rows, and then their place."""
    rot, free = relocated(chunk)
    return written(cache.rot, 0, place, rot, chunk.length), written(cache.free, 0, place, free, chunk.length)


def into_on_cpu(cache: Cache, place: jax.Array, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """Layer by layer, in place; all layers together of a single token."""
    if _single(chunk):
        return into_at_once(cache, place, chunk, written=put_bits if is_bf16(cache.rot) else put)
    if is_bf16(cache.rot):
        return into_bits(cache, place, chunk)
    return into_by_part(cache, place, chunk, **_by_layer(chunk))


@jax.custom_jvp
def into_bits(cache: Cache, place: jax.Array, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """Layer by layer into a cache of bf16, as bits: a CPU would write it out in f32, and back, for every layer."""

    def write(index: jax.Array, caches: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new_rot, new_free = (
            put(array, index, place, bits_of(new.astype(jnp.bfloat16)), chunk.length)
            for array, new in zip(caches, _part(_layer(chunk, index), index=zero, **_by_layer(chunk)), strict=True)
        )
        return new_rot, new_free

    zero = jnp.int32(0)
    everything = (cache, place, chunk)
    carries = varying_like(everything, bits_of(cache.rot)), varying_like(everything, bits_of(cache.free))
    rot, free = jax.lax.fori_loop(0, jnp.int32(chunk.layers), write, carries)
    return of_bits(rot), of_bits(free)


@into_bits.defjvp
def _into_bits_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    _, tangent = jax.jvp(partial(into_at_once, relocated=on_cpu), primals, tangents)
    return into_bits(*primals), tangent


def _layer(chunk: Chunk, index: jax.Array) -> Chunk:
    """A layer of a chunk as a chunk of one."""

    def cut(array: jax.Array) -> jax.Array:
        if is_bf16(array):
            return index_bits(array, index)[None]
        return jax.lax.dynamic_slice_in_dim(array, index, 1)

    return replace(chunk, rot=cut(chunk.rot), free=cut(chunk.free), patch=jax.tree.map(cut, chunk.patch))


def into_by_part(
    cache: Cache,
    place: jax.Array,
    chunk: Chunk,
    *,
    parts: int,
    rotate: Callable[..., jax.Array],
    product: Callable[..., jax.Array] = low_rank,
) -> tuple[jax.Array, jax.Array]:
    """Part by part, so that nothing of the chunk's size stands beside the cache."""
    rows = chunk.tokens // parts

    def write(index: jax.Array, caches: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index = index.astype(jnp.int32)  # of a loop with known bounds, which can be differentiated, under x64
        start = index % parts * rows
        count = jnp.clip(chunk.length - start, 0, rows)
        there = place + start if place.ndim == 0 else place  # pages are not cut
        new_rot, new_free = (
            put(array, index // parts, there, new, count)
            for array, new in zip(caches, _part(chunk, parts, rotate, product, index), strict=True)
        )
        return new_rot, new_free

    everything = (cache, place, chunk)
    carries = varying_like(everything, cache.rot), varying_like(everything, cache.free)
    return jax.lax.fori_loop(0, chunk.layers * parts, write, carries)


def varying_like(arguments: Any, carry: jax.Array) -> jax.Array:
    """A loop's carry, typed inside ``shard_map`` as what differs from device to device if any of ``arguments`` is.

    A carry must not change its type, and one that is the same on all devices does when it is written to. The condition
    is never true, and XLA leaves nothing of it.
    """
    never = sum(jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(arguments)) != 0
    return jnp.where(never & False, jnp.zeros((), carry.dtype), carry)


def into_slot(cache: jax.Array, layer: Any, slot: jax.Array, rows: jax.Array, length: jax.Array) -> jax.Array:
    """A cache [L, S, F], written from ``slot`` on; the padding need not fit."""
    slots = cache.shape[1]
    tokens = min(rows.shape[1], cache.shape[1])
    # A slice that would reach past the end starts earlier instead, and the rows move right by as much.
    start = jnp.minimum(slot, slots - tokens)
    shift = slot - start
    row = jnp.arange(tokens, dtype=jnp.int32)
    rows = jnp.roll(jax.lax.slice_in_dim(rows, 0, tokens, axis=1), shift, axis=1)
    place = _starts(layer, start, 0)
    before = jax.lax.dynamic_slice(cache, place, rows.shape)
    written = ((row >= shift) & (row < shift + length))[None, :, None]
    return jax.lax.dynamic_update_slice(cache, jnp.where(written, rows, before), place)


def into_pages(cache: jax.Array, layer: Any, table: jax.Array, rows: jax.Array, length: jax.Array) -> jax.Array:
    """A cache [L, P, page, F], written to the pages of the table."""
    layers, pages, page, width = cache.shape
    token = jnp.arange(rows.shape[1], dtype=jnp.int32)
    # Past the end of the cache, where nothing is written.
    place = jnp.where(token < length, table[token // page] * page + token % page, pages * page)
    flat = cache.reshape(layers, pages * page, width)
    there = (layer + jnp.arange(rows.shape[0], dtype=jnp.int32))[:, None], place[None, :]
    return flat.at[there].set(rows, mode="drop").reshape(cache.shape)
