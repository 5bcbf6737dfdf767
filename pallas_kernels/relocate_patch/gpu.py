"""relocate_patch on NVIDIA Hopper GPUs (``"mosaic_gpu"``): which calls it serves, and what their arrays become.

The kernel itself is in `gpu_kernel`, imported when it is first used: what it is written with came with jax 0.11.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import platform
from pallas_kernels.relocate_patch.gpu_call import RANKS, ROWS, Call, choose_tiles, pad_columns
from pallas_kernels.relocate_patch.reference import PairLayout

HEAD_DIMS = (64, 80, 96, 128, 256)


def unsupported(
    rot: Any,
    free: Any,
    u: Any = None,
    v: Any = None,
    *,
    head_dim: int,
    rotary_dim: int,
    layout: PairLayout,
    cache: Any = None,
) -> str | None:
    """Why the kernel cannot serve a call on an NVIDIA GPU, or None when it can; `dispatch` looks at jax and platform.

    Args:
        rot, free, u, v: arrays of the call, or their shapes and dtypes.
        head_dim: D.
        rotary_dim: leading dims of a head that rotate.
        layout: of the pairs.
        cache: that of ``rot``, [L, S, F] or [L, P, page, F], when it is written into.
    """
    if platform() == "gpu" and (found := getattr(jax.devices()[0], "compute_capability", "none")) != "9.0":
        return f"it needs an NVIDIA GPU of compute capability 9.0 (H100, H200), and this one's is {found}"
    dtypes = {str(x.dtype) for x in (rot, free, u, v, cache) if x is not None}
    if dtypes != {"bfloat16"}:
        return f"it takes bfloat16 arrays, and these are {', '.join(sorted(dtypes))}"
    if head_dim not in HEAD_DIMS:
        return f"it is built for heads of {HEAD_DIMS}, and D is {head_dim}"
    if layout == "half" and rotary_dim not in {*range(16, 129, 16), 256}:
        return f"it rotates 16, 32, … 128 or 256 dims of a head in half-split pairs, not {rotary_dim}"
    if free.shape[-1] % 16:
        return f"it takes free features in multiples of 16, not {free.shape[-1]}"
    if u is not None and not 0 < u.shape[1] <= RANKS[-1]:
        return f"it takes patches of rank 1 to {RANKS[-1]}, and this one has {u.shape[1]} components"
    if (
        cache is not None
        and cache.ndim == 4
        and (cache.shape[2] % 16 or (ROWS % cache.shape[2] and cache.shape[2] % ROWS))
    ):
        return f"it writes pages of 16, 32 or a multiple of {ROWS} tokens, not {cache.shape[2]}"
    if cache is not None and cache.ndim == 3 and (cache.shape[1] < ROWS or cache.shape[1] % 8):
        return f"it writes caches of {ROWS} slots or more, in multiples of 8, not {cache.shape[1]}"
    return None


def relocate_patch_gpu(
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
) -> tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.relocate_patch`; every argument is checked, and `unsupported` said None.

    ``interpret``: parameters of Mosaic GPU's interpret mode, for tests.
    """
    call = _call(rot, cos, u, rotary_dim, layout, into=False, page=None)
    new_rot, new_free = _launch(rot, free, cos, sin, u, v, ranks, length.reshape(1), None, call, interpret)
    new_rot = _unpack(new_rot) if call.packed else new_rot
    return new_rot[:, : rot.shape[1]], new_free[:, : rot.shape[1]]


def relocate_patch_into_gpu(
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
) -> tuple[jax.Array, jax.Array]:
    """The caches with ``length`` rows written at ``place``; donated caches are written where they are.

    Args as of `relocate_patch_gpu`, and

    Args:
        cache_rot, cache_free: [L, S, F], or pages [L, P, page, F].
        place: the first slot, i32[], a multiple of 16; or the page table i32[T / page], read as far as ``length``.
    """
    page = cache_rot.shape[2] if cache_rot.ndim == 4 else None
    call = _call(rot, cos, u, rotary_dim, layout, into=True, page=page)
    flat_rot, flat_free = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (cache_rot, cache_free))
    if page is not None:
        # The kernel looks up the pages of whole tiles before it knows which it needs.
        place = jnp.pad(place, (0, max(0, -(-_padded(rot.shape[1]) // page) - place.shape[0])))
    place = jnp.concatenate([length.reshape(1), place.reshape(-1)])
    refs = jax.new_ref(_pack(flat_rot) if call.packed else flat_rot), jax.new_ref(flat_free)
    _launch(rot, free, cos, sin, u, v, ranks, place, refs, call, interpret)
    new_rot, new_free = (jax.freeze(ref) for ref in refs)
    new_rot = _unpack(new_rot) if call.packed else new_rot
    return new_rot.reshape(cache_rot.shape), new_free.reshape(cache_free.shape)


def _padded(tokens: int) -> int:
    return -(-tokens // ROWS) * ROWS


def _rank(u: jax.Array | None) -> int:
    return 0 if u is None else next(rank for rank in RANKS if rank >= u.shape[1])


def _call(
    rot: jax.Array,
    cos: jax.Array,
    u: jax.Array | None,
    rotary_dim: int,
    layout: PairLayout,
    *,
    into: bool,
    page: int | None,
) -> Call:
    head_dim = cos.shape[-1]
    packed = layout == "interleaved"
    tiles = choose_tiles(rot.shape[0], _padded(rot.shape[1]), _rank(u))
    # All neighbours are pairs to it: outside the rotary dims the tables rotate by nothing.
    return Call(head_dim, (head_dim if packed else rotary_dim) // 2, packed, into, page, tiles)


def _launch(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    place: jax.Array,
    caches: tuple[Any, Any] | None,
    call: Call,
    interpret: Any,
) -> Any:
    from pallas_kernels.relocate_patch.gpu_kernel import relocate

    patch = None
    if u is not None and v is not None and ranks is not None:
        patch = _prepare_patch(u, v, ranks, call, rot.shape[-1])
    if call.packed:
        # Of a pair's two columns one has its cosine, the second its sine with the sign it is used with.
        rot = _pack(rot)
        cos = cos[:, 0::2]
        sin = sin[:, 1::2]
    if missing := _padded(rot.shape[1]) - rot.shape[1]:
        rot, free = (jnp.pad(x, ((0, 0), (0, missing), (0, 0))) for x in (rot, free))
        cos, sin = (jnp.pad(x, ((0, missing), (0, 0))) for x in (cos, sin))
        patch = patch and (jnp.pad(patch[0], ((0, 0), (0, 0), (0, missing))), patch[1])
    return relocate(rot, free, cos, sin, patch, place, caches, call, interpret)


def _prepare_patch(
    u: jax.Array, v: jax.Array, ranks: jax.Array, call: Call, rot_dim: int
) -> tuple[jax.Array, jax.Array]:
    """Zero past the ranks, which a multiply reads, and each half of a head where a tile can start."""
    used = (jnp.arange(u.shape[1])[None, :] < ranks[:, None])[..., None]
    u, v = (jnp.where(used, factor, jnp.zeros((), factor.dtype)) for factor in (u, v))
    u, v = (jnp.pad(factor, ((0, 0), (0, _rank(u) - u.shape[1]), (0, 0))) for factor in (u, v))
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
