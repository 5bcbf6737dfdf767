"""relocate_patch: the reuse operator on arrays (arXiv 2606.23581, eq. 1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pallas_kernels.dispatch import Implementation, serve
from pallas_kernels.relocate_patch import gpu, limits
from pallas_kernels.relocate_patch.chunk import PAIR_LAYOUTS, Cache, Chunk, PairLayout, Patch, check_complete
from pallas_kernels.relocate_patch.reference import relocate_patch_into_reference, relocate_patch_reference


def relocate_patch(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None = None,
    v: jax.Array | None = None,
    ranks: jax.Array | None = None,
    *,
    length: jax.Array | int | None = None,
    rotary_dim: int | None = None,
    layout: PairLayout = "half",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``R(positions) · (rot + patch)`` and ``free + patch`` for every layer: f32 math, the inputs' dtypes out.

    Args:
        rot: un-rotated keys [L, T, G*D] (GQA, MHA) or k_pe [L, T, D] (MLA).
        free: what RoPE leaves alone [L, T, Ff].
        cos, sin: full-width tables of the target positions, f32[T, D]; the sign is in sin, (1, 0) outside the rotary
            dims.
        u, v: patch factors [L, m, T] and [L, m, G*D + Ff], both or neither.
        ranks: components used per layer, i32[L]; all m by default.
        length: valid tokens; rows past it come back as zero. T by default.
        rotary_dim: leading dims of a head that rotate; D by default.
        layout: ``"half"`` or ``"interleaved"`` pairs.
        implementation: None picks, for the platform that it runs on; a named backend that cannot serve the call raises.

    Returns:
        ``(rot, free)`` at the target positions, rotated and patched, of the inputs' shapes and dtypes.

    Raises:
        ValueError: shapes disagree, or the named backend cannot serve the call.
    """
    chunk = _chunk(rot, free, cos, sin, u, v, ranks, length, rotary_dim, layout)
    return serve("relocate_patch", implementation, _refusals(chunk, None), _relocating, chunk)


def relocate_patch_into(
    cache_rot: jax.Array,
    cache_free: jax.Array,
    place: jax.Array | int,
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None = None,
    v: jax.Array | None = None,
    ranks: jax.Array | None = None,
    *,
    length: jax.Array | int | None = None,
    rotary_dim: int | None = None,
    layout: PairLayout = "half",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`relocate_patch`, its first ``length`` rows written straight into a cache; donate the cache to write in place.

    Nothing else in the cache changes. The caller makes sure that ``place + length`` fits; the padding need not.

    Args:
        cache_rot, cache_free: [L, S, G*D] and [L, S, Ff], or paged [L, P, page, G*D] and [L, P, page, Ff].
        place: the first slot, a multiple of 16 (with ``implementation="xla"`` any); or for pages a table
            i32[T / page], each page once.
        rot, free, cos, sin, u, v, ranks, length, rotary_dim, layout: as for `relocate_patch`.
        implementation: None picks, for the platform that it runs on; a named backend that cannot serve the call raises.

    Returns:
        ``(cache_rot, cache_free)``.

    Raises:
        ValueError: shapes disagree, the slot is no multiple of 16 or too near the end (where its value is known), or
            the named backend cannot serve the call.
    """
    chunk = _chunk(rot, free, cos, sin, u, v, ranks, length, rotary_dim, layout)
    cache = Cache(cache_rot, cache_free)
    _check_cache(cache, place, chunk, 1 if implementation == "xla" else limits.ROWS)
    place = jnp.asarray(place, jnp.int32)
    return serve("relocate_patch_into", implementation, _refusals(chunk, cache), _writing, cache, place, chunk)


def refusals(
    rot: Any,
    free: Any,
    cos: Any,
    u: Any = None,
    v: Any = None,
    *,
    rotary_dim: int,
    layout: PairLayout,
    cache: tuple[Any, Any] | None = None,
) -> dict[Implementation, str | None]:
    """Why each backend cannot serve these arrays, or their shapes and dtypes; None where it can, on its own machine.

    Args:
        rot, free, cos, u, v, rotary_dim, layout: of the call.
        cache: (cache_rot, cache_free) of `relocate_patch_into`.
    """
    unread: Any = None
    patch = None if u is None else Patch(u, v, ranks=unread)
    chunk = Chunk(rot, free, cos, sin=unread, patch=patch, length=unread, rotary_dim=rotary_dim, layout=layout)
    return _refusals(chunk, None if cache is None else Cache(*cache))


def _refusals(chunk: Chunk, cache: Cache | None) -> dict[Implementation, str | None]:
    tpu = limits.tpu_refusal(chunk)
    if cache is not None:
        tpu = tpu or limits.tpu_cache_refusal(cache)
    return {"pallas_tpu": tpu, "mosaic_gpu": gpu.refusal(chunk, cache), "xla": None}


def _relocating(name: Implementation) -> Callable[..., tuple[jax.Array, jax.Array]]:
    # Imported when it may be chosen: Pallas takes a second to load.
    if name == "pallas_tpu":
        from pallas_kernels.relocate_patch.tpu import relocate_patch_tpu

        return relocate_patch_tpu
    return gpu.relocate_patch_gpu if name == "mosaic_gpu" else relocate_patch_reference


def _writing(name: Implementation) -> Callable[..., tuple[jax.Array, jax.Array]]:
    if name == "pallas_tpu":
        from pallas_kernels.relocate_patch.tpu_into import relocate_patch_into_tpu

        return relocate_patch_into_tpu
    return gpu.relocate_patch_into_gpu if name == "mosaic_gpu" else relocate_patch_into_reference


def _chunk(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    length: jax.Array | int | None,
    rotary_dim: int | None,
    layout: PairLayout,
) -> Chunk:
    """The call as one value, checked."""
    layers, tokens = rot.shape[:2]
    stored = [x for x in (rot, free, u, v) if x is not None]
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in stored):
        given = ", ".join(str(x.dtype) for x in stored)
        raise ValueError(f"rot, free, u and v must be floating point; got {given}: make int8 factors floats first")
    if free.shape[:2] != (layers, tokens):
        raise ValueError(
            f"rot is [L, T, F] = {rot.shape}, so free must start with {(layers, tokens)}; got {free.shape}"
        )
    if layout not in PAIR_LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {PAIR_LAYOUTS}")
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] != tokens or rot.shape[-1] % cos.shape[-1]:
        raise ValueError(
            f"cos and sin must be [T, D] with T = {tokens} and D dividing {rot.shape[-1]}; got {cos.shape}, {sin.shape}"
        )
    return Chunk(
        rot=rot,
        free=free,
        cos=cos,
        sin=sin,
        patch=_patch(rot, free, u, v, ranks),
        length=jnp.asarray(tokens if length is None else length, jnp.int32),
        rotary_dim=cos.shape[-1] if rotary_dim is None else rotary_dim,
        layout=layout,
    )


def _patch(
    rot: jax.Array, free: jax.Array, u: jax.Array | None, v: jax.Array | None, ranks: jax.Array | None
) -> Patch | None:
    """The factors as one value, checked against what they patch; None where they have no component."""
    check_complete(u, v, ranks)
    if u is None or v is None:
        return None
    layers, tokens = rot.shape[:2]
    features = rot.shape[-1] + free.shape[-1]
    rank = u.shape[1] if u.ndim == 3 else 0
    if u.shape != (layers, rank, tokens) or v.shape != (layers, rank, features):
        raise ValueError(
            f"patch factors must be u [{layers}, m, {tokens}] and v [{layers}, m, {features}]; "
            f"got {u.shape} and {v.shape}"
        )
    ranks = jnp.full((layers,), rank, jnp.int32) if ranks is None else ranks
    if ranks.shape != (layers,):
        raise ValueError(f"ranks must be [{layers}], one per layer; got {ranks.shape}")
    return Patch(u, v, ranks) if rank else None


def _check_cache(cache: Cache, place: Any, chunk: Chunk, multiple: int) -> None:
    layers = chunk.layers
    tokens = chunk.tokens
    paged = jnp.ndim(place) == 1
    names, dims = ("[L, P, page, F]", 4) if paged else ("[L, S, F]", 3)
    for name, array, rows in (("cache_rot", cache.rot, chunk.rot), ("cache_free", cache.free, chunk.free)):
        if array.ndim != dims or array.shape[0] != layers or array.shape[-1] != rows.shape[-1]:
            raise ValueError(
                f"{name} must be {names} with L = {layers} and F = {rows.shape[-1]}, place having {jnp.ndim(place)} "
                f"dimensions; got {array.shape}"
            )
    if cache.rot.shape[:-1] != cache.free.shape[:-1]:
        raise ValueError(f"the caches must differ in F alone; got {cache.rot.shape} and {cache.free.shape}")
    page = cache.page
    if page is not None:
        if tokens % page or jnp.shape(place) != (tokens // page,):
            raise ValueError(
                f"the chunk's {tokens} tokens must fill whole pages of {page}, named by a table i32[T / page]; "
                f"got a table of {jnp.shape(place)}; pad the chunk"
            )
    elif not isinstance(place, Tracer) and jnp.ndim(place) == 0:
        known = not isinstance(chunk.length, Tracer)
        slots = cache.rot.shape[1]
        end = int(place) + (int(chunk.length) if known else 0)
        if int(place) % multiple or int(place) < 0 or end > slots:
            raise ValueError(
                f"the chunk must start at a multiple of {multiple} and end within the cache's {slots} slots; got "
                f"slot {int(place)} and length {int(chunk.length) if known else 'traced'}"
            )
