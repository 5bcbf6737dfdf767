"""chunk_attention: attention to canonical chunks where they lie."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.chunk_attention.shapes import Heads, heads_of, tpu_refusal
from pallas_kernels.dispatch import Implementation, choose
from pallas_kernels.relocate_patch.reference import PAIR_LAYOUTS, PairLayout

DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))


def chunk_attention(
    q: jax.Array,
    rot: jax.Array,
    free: jax.Array,
    positions: jax.Array,
    inv_freq: jax.Array,
    u: jax.Array | None = None,
    v: jax.Array | None = None,
    ranks: jax.Array | None = None,
    *,
    layer: jax.Array | int | None = None,
    lengths: jax.Array,
    bases: jax.Array,
    scale: float,
    rope_scale: float = 1.0,
    layout: PairLayout = "half",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of rotated queries to C un-rotated chunks at once, in one layer.

    Equals attention over what `relocate_patch` would write of the chunks, and writes none of it: keys are patched and
    rotated a tile at a time. Every query sees every valid token of every chunk. Join it to attention over other keys,
    or over chunks of another bucket, with `merge_states`. Softmax and sums are f32. Only ``"xla"`` has gradients.

    Args:
        q: rotated queries [Tq, N, D]; for MLA in the absorbed form [Tq, N, R + Dr], against [latent | k_pe].
        rot: un-rotated keys [C, T, G*D] (GQA, MHA) or k_pe [C, T, Dr] (MLA).
        free: values [C, T, G*Dv], or latents [C, T, R], which are key and value both.
        positions: of tokens within their chunk, f32[C, A, T].
        inv_freq: radians per position, f32[A, R/2]: of every rotated pair on the axis that drives it, zero on the
            others. The pairs are the leading dims of a head.
        u, v: patch factors [C, m, T] and [C, m, Fr + Ff], both or neither.
        ranks: components used per chunk, i32[C]; all m by default.
        layer: which layer to attend to, where rot, free, u, v and ranks lead with L layers: a decoder's loop over them
            need not cut its layer out, which would write it.
        lengths: valid tokens per chunk, i32[C]; what lies past them is not read; 0 for an empty place.
        bases: the absolute position each chunk starts at, f32[C].
        scale: factor on the scores.
        rope_scale: factor on cos and sin (YaRN).
        layout: ``"half"`` or ``"interleaved"`` pairs.
        implementation: None picks; a named backend that cannot serve the call raises.

    Returns:
        ``(out, lse)``: out [Tq, N, Dv] (MLA: [Tq, N, R]) of q's dtype, normalised over all chunks, and the log-sum-exp
        of the scores f32[Tq, N]; 0 and -inf where no chunk has a token.

    Raises:
        ValueError: shapes or dtypes disagree, or the named backend cannot serve the call.
    """
    lead, named = ((), "") if layer is None else (rot.shape[:1], "L, ")
    dims = 3 + len(lead)
    if (q.ndim, rot.ndim, free.ndim) != (3, dims, dims) or rot.shape[:-1] != free.shape[:-1] or 0 in rot.shape:
        raise ValueError(
            f"expected q [Tq, N, D], rot [{named}C, T, Fr] and free [{named}C, T, Ff], of at least one chunk and "
            f"token; got {q.shape}, {rot.shape} and {free.shape}"
        )
    if q.dtype not in DTYPES or {rot.dtype, free.dtype} != {q.dtype}:
        raise ValueError(
            f"q, rot and free must all be bfloat16 or all float32, or all float16; got {q.dtype}, {rot.dtype} and "
            f"{free.dtype}; cast the queries to what the chunks are stored in"
        )
    chunks, tokens, width = rot.shape[-3:]
    heads = heads_of(q.shape, width, free.shape[-1])
    if heads is None:
        raise ValueError(
            f"queries of width {q.shape[-1]} fit neither G heads that rot's {width} and free's {free.shape[-1]} split "
            f"into, with G dividing {q.shape[1]}, nor one [latent | k_pe] of {free.shape[-1]} + {width}"
        )
    if layout not in PAIR_LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {PAIR_LAYOUTS}")
    axes, pairs = inv_freq.shape if inv_freq.ndim == 2 else (0, 0)
    if not axes or not 0 < 2 * pairs <= heads.rotated or positions.shape != (chunks, axes, tokens):
        raise ValueError(
            f"expected positions [{chunks}, A, {tokens}] and inv_freq [A, R/2] with 0 < R <= {heads.rotated}; got "
            f"{positions.shape} and {inv_freq.shape}"
        )
    if lengths.shape != (chunks,) or bases.shape != (chunks,):
        raise ValueError(f"lengths and bases must be [{chunks}], one per chunk; got {lengths.shape} and {bases.shape}")
    if (u is None) != (v is None) or (u is None and ranks is not None):
        given = [name for name, array in (("u", u), ("v", v), ("ranks", ranks)) if array is not None]
        raise ValueError(f"a patch needs both factors u and v; got {' and '.join(given)}")
    if u is not None and v is not None:
        rank = u.shape[-2] if u.ndim == rot.ndim else 0
        features = width + free.shape[-1]
        if not rank or u.shape != (*lead, chunks, rank, tokens) or v.shape != (*lead, chunks, rank, features):
            raise ValueError(
                f"patch factors must be u [{named}{chunks}, m, {tokens}] and v [{named}{chunks}, m, {features}], m at "
                f"least 1; got {u.shape} and {v.shape}"
            )
        if u.dtype not in DTYPES or v.dtype != u.dtype:
            raise ValueError(f"u and v must both be bfloat16, float16 or float32; got {u.dtype} and {v.dtype}")
        ranks = jnp.full((*lead, chunks), rank, jnp.int32) if ranks is None else ranks
        if ranks.shape != (*lead, chunks):
            raise ValueError(f"ranks must be [{named}{chunks}], one per chunk; got {ranks.shape}")
    first = jnp.int32(0)
    if layer is not None:
        # One row of chunks after the other: views, of which a backend reads C from the first on.
        rot, free = (x.reshape(-1, *x.shape[2:]) for x in (rot, free))
        u, v = (x if x is None else x.reshape(-1, *x.shape[2:]) for x in (u, v))
        ranks = None if ranks is None else ranks[layer]
        first = jnp.asarray(layer, jnp.int32) * chunks
    run = chunk_attention_reference
    dtypes = [q.dtype] if u is None else [q.dtype, u.dtype]
    if choose("chunk_attention", implementation, refusals(heads, pairs, dtypes)) == "pallas_tpu":
        from pallas_kernels.chunk_attention.tpu import chunk_attention_tpu as run
    return run(
        q,
        rot,
        free,
        positions.astype(jnp.float32),
        inv_freq.astype(jnp.float32),
        u,
        v,
        ranks,
        lengths.astype(jnp.int32),
        bases.astype(jnp.float32),
        first,
        heads=heads,
        scale=scale,
        rope_scale=rope_scale,
        layout=layout,
    )


def refusals(heads: Heads, pairs: int, dtypes: Sequence[Any] = ()) -> dict[Implementation, str | None]:
    """Why each backend cannot serve heads of which so many pairs rotate; None where it can, on its own machine.

    Args:
        heads: of the call.
        pairs: of a head that rotate.
        dtypes: of the call's arrays.
    """
    return {"pallas_tpu": tpu_refusal(heads, pairs, dtypes), "xla": None}
