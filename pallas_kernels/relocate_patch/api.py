"""relocate_patch: the reuse operator on arrays (arXiv 2606.23581, eq. 1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pallas_kernels.dispatch import Implementation, choose
from pallas_kernels.relocate_patch import gpu, limits
from pallas_kernels.relocate_patch.reference import (
    PAIR_LAYOUTS,
    PairLayout,
    relocate_patch_into_reference,
    relocate_patch_reference,
)


class _Chunk(NamedTuple):
    """Checked arguments, as every backend takes them."""

    rot: jax.Array
    free: jax.Array
    cos: jax.Array
    sin: jax.Array
    u: jax.Array | None
    v: jax.Array | None
    ranks: jax.Array | None
    length: jax.Array


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
        implementation: None picks; a named backend that cannot serve the call raises.

    Returns:
        ``(rot, free)`` at the target positions, rotated and patched, of the inputs' shapes and dtypes.

    Raises:
        ValueError: shapes disagree, or the named backend cannot serve the call.
    """
    chunk = _checked(rot, free, cos, sin, u, v, ranks, length, layout)
    rotary_dim = cos.shape[-1] if rotary_dim is None else rotary_dim
    reasons = refusals(rot, free, cos, u, v, rotary_dim=rotary_dim, layout=layout)
    return _backend(choose("relocate_patch", implementation, reasons))(*chunk, rotary_dim=rotary_dim, layout=layout)


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
        implementation: None picks; a named backend that cannot serve the call raises.

    Returns:
        ``(cache_rot, cache_free)``.

    Raises:
        ValueError: shapes disagree, the slot is no multiple of 16 or too near the end (where its value is known), or
            the named backend cannot serve the call.
    """
    chunk = _checked(rot, free, cos, sin, u, v, ranks, length, layout)
    _check_cache(cache_rot, cache_free, place, chunk, 1 if implementation == "xla" else limits.ROWS)
    rotary_dim = cos.shape[-1] if rotary_dim is None else rotary_dim
    place = jnp.asarray(place, jnp.int32)
    reasons = refusals(
        rot, free, cos, u, v, rotary_dim=rotary_dim, layout=layout, cache=(cache_rot, cache_free), paged=place.ndim == 1
    )
    backend = _backend(choose("relocate_patch_into", implementation, reasons), into=True)
    return backend(cache_rot, cache_free, place, *chunk, rotary_dim=rotary_dim, layout=layout)


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
    paged: bool = False,
) -> dict[Implementation, str | None]:
    """Why each backend cannot serve these arrays, or their shapes and dtypes; None where it can, on its own machine.

    Args:
        rot, free, cos, u, v, rotary_dim, layout: of the call.
        cache: (cache_rot, cache_free) of `relocate_patch_into`.
        paged: whether the cache is.
    """
    tpu = limits.tpu_refusal(rot, free, cos, (u, v))
    if cache is not None:
        tpu = tpu or limits.tpu_cache_refusal(*cache, paged=paged)
    return {
        "pallas_tpu": tpu,
        "mosaic_gpu": gpu.unsupported(
            rot,
            free,
            u,
            v,
            head_dim=cos.shape[-1],
            rotary_dim=rotary_dim,
            layout=layout,
            cache=None if cache is None else cache[0],
        ),
        "xla": None,
    }


def _backend(name: Implementation, *, into: bool = False) -> Callable[..., tuple[jax.Array, jax.Array]]:
    # Imported when chosen: Pallas takes a second to load.
    if name == "pallas_tpu":
        from pallas_kernels.relocate_patch import tpu, tpu_into

        return tpu_into.relocate_patch_into_tpu if into else tpu.relocate_patch_tpu
    if name == "mosaic_gpu":
        return gpu.relocate_patch_into_gpu if into else gpu.relocate_patch_gpu
    return relocate_patch_into_reference if into else relocate_patch_reference


def _checked(
    rot: jax.Array,
    free: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
    length: jax.Array | int | None,
    layout: PairLayout,
) -> _Chunk:
    layers, tokens = rot.shape[:2]
    floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (rot, free, u, v) if x is not None)
    if not floating:
        given = ", ".join(str(x.dtype) for x in (rot, free, u, v) if x is not None)
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
    if (u is None) != (v is None) or (u is None and ranks is not None):
        given = [name for name, array in (("u", u), ("v", v), ("ranks", ranks)) if array is not None]
        raise ValueError(f"a patch needs both factors u and v; got {' and '.join(given)}")
    if u is not None and v is not None:
        rank = u.shape[1] if u.ndim == 3 else 0
        if u.shape != (layers, rank, tokens) or v.shape != (layers, rank, rot.shape[-1] + free.shape[-1]):
            raise ValueError(
                f"patch factors must be u [{layers}, m, {tokens}] and v [{layers}, m, "
                f"{rot.shape[-1] + free.shape[-1]}]; "
                f"got {u.shape} and {v.shape}"
            )
        ranks = jnp.full((layers,), rank, jnp.int32) if ranks is None else ranks
        if ranks.shape != (layers,):
            raise ValueError(f"ranks must be [{layers}], one per layer; got {ranks.shape}")
        if rank == 0:
            u = v = ranks = None
    return _Chunk(rot, free, cos, sin, u, v, ranks, jnp.asarray(tokens if length is None else length, jnp.int32))


def _check_cache(cache_rot: jax.Array, cache_free: jax.Array, place: Any, chunk: _Chunk, multiple: int) -> None:
    layers, tokens = chunk.rot.shape[:2]
    paged = jnp.ndim(place) == 1
    names, dims = ("[L, P, page, F]", 4) if paged else ("[L, S, F]", 3)
    for name, cache, rows in (("cache_rot", cache_rot, chunk.rot), ("cache_free", cache_free, chunk.free)):
        if cache.ndim != dims or cache.shape[0] != layers or cache.shape[-1] != rows.shape[-1]:
            raise ValueError(
                f"{name} must be {names} with L = {layers} and F = {rows.shape[-1]}, place having {jnp.ndim(place)} "
                f"dimensions; got {cache.shape}"
            )
    if cache_rot.shape[:-1] != cache_free.shape[:-1]:
        raise ValueError(f"the caches must differ in F alone; got {cache_rot.shape} and {cache_free.shape}")
    if paged:
        page = cache_rot.shape[2]
        if tokens % page or jnp.shape(place) != (tokens // page,):
            raise ValueError(
                f"the chunk's {tokens} tokens must fill whole pages of {page}, named by a table i32[T / page]; "
                f"got a table of {jnp.shape(place)}; pad the chunk"
            )
    elif not isinstance(place, Tracer) and jnp.ndim(place) == 0:
        known = not isinstance(chunk.length, Tracer)
        slots = cache_rot.shape[1]
        end = int(place) + (int(chunk.length) if known else 0)
        if int(place) % multiple or int(place) < 0 or end > slots:
            raise ValueError(
                f"the chunk must start at a multiple of {multiple} and end within the cache's {slots} slots; got "
                f"slot {int(place)} and length {int(chunk.length) if known else 'traced'}"
            )
