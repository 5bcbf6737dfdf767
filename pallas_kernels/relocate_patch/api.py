"""relocate_patch: the reuse operator on arrays (arXiv 2606.23581, eq. 1)."""

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Implementation, choose
from pallas_kernels.relocate_patch.reference import PAIR_LAYOUTS, PairLayout, relocate_patch_reference

BUILT: tuple[Implementation, ...] = ("xla",)


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
        ValueError: shapes disagree, or the named backend is not available.
    """
    choose("relocate_patch", implementation, BUILT)
    layers, tokens = rot.shape[:2]
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
    return relocate_patch_reference(
        rot,
        free,
        cos,
        sin,
        u,
        v,
        ranks,
        jnp.asarray(tokens if length is None else length, jnp.int32),
        rotary_dim=cos.shape[-1] if rotary_dim is None else rotary_dim,
        layout=layout,
    )
