"""relocate_patch on NVIDIA Hopper GPUs (``"mosaic_gpu"``): which calls it serves, and what their arrays become.

The kernel itself is in `gpu_kernel`, imported when it is first used: what it is written with came with jax 0.11.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import not_hopper
from pallas_kernels.relocate_patch.chunk import Cache, Chunk, Patch
from pallas_kernels.relocate_patch.gpu_call import RANKS, ROWS, Call, Operands, choose_tiles, pad_columns
from pallas_kernels.relocate_patch.limits import HEAD_DIMS


def refusal(chunk: Chunk, cache: Cache | None = None) -> str | None:
    """Why the kernel cannot serve a call on an NVIDIA GPU, or None when it can; `dispatch` looks at jax and platform.

    Args:
        chunk: the call, its arrays or their shapes and dtypes.
        cache: what it is written into, if it is.
    """
    if reason := not_hopper():
        return reason
    arrays = chunk.stored if cache is None else (*chunk.stored, cache.rot)
    dtypes = {str(x.dtype) for x in arrays}
    if dtypes != {"bfloat16"}:
        return f"it takes bfloat16 arrays, and these are {', '.join(sorted(dtypes))}"
    if chunk.head_dim not in HEAD_DIMS:
        return f"it is built for heads of {HEAD_DIMS}, and D is {chunk.head_dim}"
    if chunk.layout == "half" and chunk.rotary_dim not in {*range(16, 129, 16), 256}:
        return f"it rotates 16, 32, … 128 or 256 dims of a head in half-split pairs, not {chunk.rotary_dim}"
    if chunk.free.shape[-1] % 16:
        return f"it takes free features in multiples of 16, not {chunk.free.shape[-1]}"
    if chunk.patch is not None and not 0 < chunk.rank <= RANKS[-1]:
        return f"it takes patches of rank 1 to {RANKS[-1]}, and this one has {chunk.rank} components"
    return None if cache is None else _cache_refusal(cache)


def _cache_refusal(cache: Cache) -> str | None:
    page = cache.page
    slots = cache.rot.shape[1]
    if page is not None and (page % 16 or (ROWS % page and page % ROWS)):
        return f"it writes pages of 16, 32 or a multiple of {ROWS} tokens, not {page}"
    if page is None and (slots < ROWS or slots % 8):
        return f"it writes caches of {ROWS} slots or more, in multiples of 8, not {slots}"
    return None


def relocate_patch_gpu(chunk: Chunk, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`; `refusal` has answered None.

    Args:
        chunk: the call.
        interpret: parameters of Mosaic GPU's interpret mode, for tests.
    """
    call = _call(chunk, into=False, page=None)
    new_rot, new_free = _launch(chunk, chunk.length.reshape(1), None, call, interpret)
    new_rot = _unpack(new_rot) if call.packed else new_rot
    return new_rot[:, : chunk.tokens], new_free[:, : chunk.tokens]


def relocate_patch_into_gpu(
    cache: Cache, place: jax.Array, chunk: Chunk, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The cache with ``length`` rows written at ``place``; a donated one is written where it is.

    Args:
        cache: contiguous or in pages.
        place: the first slot, i32[], a multiple of 16; or the page table i32[T / page], read as far as ``length``.
        chunk: the call.
        interpret: parameters of Mosaic GPU's interpret mode, for tests.
    """
    page = cache.page
    call = _call(chunk, into=True, page=page)
    flat_rot, flat_free = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (cache.rot, cache.free))
    if page is not None:
        # The kernel looks up the pages of whole tiles before it knows which it needs.
        place = jnp.pad(place, (0, max(0, -(-_padded(chunk.tokens) // page) - place.shape[0])))
    place = jnp.concatenate([chunk.length.reshape(1), place.reshape(-1)])
    refs = jax.new_ref(_pack(flat_rot) if call.packed else flat_rot), jax.new_ref(flat_free)
    _launch(chunk, place, refs, call, interpret)
    new_rot, new_free = (jax.freeze(ref) for ref in refs)
    new_rot = _unpack(new_rot) if call.packed else new_rot
    return new_rot.reshape(cache.rot.shape), new_free.reshape(cache.free.shape)


def _padded(tokens: int) -> int:
    return -(-tokens // ROWS) * ROWS


def _depth(rank: int) -> int:
    """Components of the multiply for a patch with room for so many."""
    return next(depth for depth in RANKS if depth >= rank) if rank else 0


def _call(chunk: Chunk, *, into: bool, page: int | None) -> Call:
    packed = chunk.layout == "interleaved"
    tiles = choose_tiles(chunk.layers, _padded(chunk.tokens), _depth(chunk.rank))
    # All neighbours are pairs to it: outside the rotary dims the tables rotate by nothing.
    pairs = (chunk.head_dim if packed else chunk.rotary_dim) // 2
    return Call(chunk.head_dim, pairs, packed, into, page, tiles)


def _launch(chunk: Chunk, place: jax.Array, caches: tuple[Any, Any] | None, call: Call, interpret: Any) -> Any:
    from pallas_kernels.relocate_patch.gpu_kernel import relocate

    return relocate(_operands(chunk, place, caches, call), call, interpret)


def _operands(chunk: Chunk, place: jax.Array, caches: tuple[Any, Any] | None, call: Call) -> Operands:
    """The chunk in whole tiles, the members of a pair in one word where they are neighbours."""
    rot = chunk.rot
    free = chunk.free
    cos = chunk.cos
    sin = chunk.sin
    patch = None if chunk.patch is None else _prepare_patch(chunk.patch, call, rot.shape[-1])
    if call.packed:
        # Of a pair's two columns one has its cosine, the second its sine with the sign it is used with.
        rot = _pack(rot)
        cos = cos[:, 0::2]
        sin = sin[:, 1::2]
    if missing := _padded(chunk.tokens) - chunk.tokens:
        rot, free = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (rot, free))
        cos, sin = (jnp.pad(x, ((0, missing), (0, 0))) for x in (cos, sin))
        patch = patch and (jnp.pad(patch[0], ((0, 0), (0, 0), (0, missing))), patch[1])
    return Operands(rot, free, cos, sin, patch, place, caches)


def _prepare_patch(patch: Patch, call: Call, rot_dim: int) -> tuple[jax.Array, jax.Array]:
    """u and v: zero past the ranks, which a multiply reads, and each half of a head where a tile can start."""
    used = (jnp.arange(patch.rank, dtype=jnp.int32)[None, :] < patch.ranks[:, None])[..., None]
    u, v = (jnp.where(used, factor, jnp.zeros((), factor.dtype)) for factor in (patch.u, patch.v))
    u, v = (jnp.pad(factor, ((0, 0), (0, _depth(patch.rank) - patch.rank), (0, 0))) for factor in (u, v))
    heads = v[..., :rot_dim].reshape(*v.shape[:2], -1, call.head_dim)
    if call.packed:
        parts = [heads[..., 0::2], heads[..., 1::2]]
    else:
        parts = jnp.split(heads, [call.pairs, 2 * call.pairs], axis=-1)
    padding = [(0, 0)] * 3
    parts = [jnp.pad(part, [*padding, (0, pad_columns(part.shape[-1]) - part.shape[-1])]) for part in parts]
    rotated = jnp.concatenate(parts, axis=-1).reshape(*v.shape[:2], -1)
    return u, jnp.concatenate([rotated, v[..., rot_dim:]], axis=-1)


def _pack(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 2), jnp.uint32)


def _unpack(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16).reshape(*x.shape[:-1], -1)
