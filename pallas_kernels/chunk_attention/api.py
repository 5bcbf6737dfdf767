"""chunk_attention: attention to canonical chunks where they lie."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunk_attention.call import Call, Heads, Unpack, heads_of
from pallas_kernels.chunk_attention.gpu import chunk_attention_gpu
from pallas_kernels.chunk_attention.limits import gpu_refusal, tpu_refusal
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.dispatch import Implementation, serve
from pallas_kernels.relocate_patch.chunk import PAIR_LAYOUTS, PairLayout, Patch, check_complete
from pallas_kernels.relocate_patch.gpu_call import ROWS

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
    bias: jax.Array | None = None,
    packed: Mapping[str, jax.Array] | None = None,
    unpack: Unpack | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of rotated queries to C un-rotated chunks at once, in one layer.

    Equals attention over what `relocate_patch` would write of the chunks, and writes none of it: keys are patched and
    rotated a tile at a time. Every query sees every valid token of every chunk. Join it to attention over other keys,
    or over chunks of another bucket, with `merge_states`. Softmax and sums are f32. Gradients are those of ``"xla"``.

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
        bias: what is added to the scores of each token, f32[C, T]: log n for a row that stands for n tokens; by
            ``"xla"`` alone.
        packed: what keys and values are packed in beside ``rot`` and ``free``, which are then codes: arrays [C, ...] by
            name, led by L layers as those are.
        unpack: how one chunk's keys and values come out of these; they are unpacked a chunk, or a tile, at a time.
            `pallas_kernels.chunk_attention.call.ScaledInt8` by kernels too, others by ``"xla"`` alone.
        implementation: None picks, for the platform that it runs on; a named backend that cannot serve the call raises.

    Returns:
        ``(out, lse)``: out [Tq, N, Dv] (MLA: [Tq, N, R]) of q's dtype, normalised over all chunks, and the log-sum-exp
        of the scores f32[Tq, N]; 0 and -inf where no chunk has a token.

    Raises:
        ValueError: shapes or dtypes disagree, or the named backend cannot serve the call.
    """
    packed = dict(packed or {})
    kv = _unpacked(rot, free, packed, unpack, layer)
    heads = _heads(q, *kv, layer)
    lead = () if layer is None else kv[0].shape[:1]
    chunks, tokens = kv[0].shape[-3:-1]
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
    if bias is not None and bias.shape != (chunks, tokens):
        raise ValueError(f"bias must be [{chunks}, {tokens}], one for each token; got {bias.shape}")
    patch = _patch((*lead, chunks), tokens, sum(each.shape[-1] for each in kv), u, v, ranks)
    first = jnp.int32(0)
    if layer is not None:
        # One row of chunks after the other: views, of which a backend reads C from the first on.
        rot, free = (x.reshape(-1, *x.shape[2:]) for x in (rot, free))
        packed = {name: x.reshape(-1, *x.shape[2:]) for name, x in packed.items()}
        if patch is not None:
            u, v = (x.reshape(-1, *x.shape[2:]) for x in (patch.u, patch.v))
            patch = Patch(u, v, patch.ranks[layer])
        first = jnp.asarray(layer, jnp.int32) * chunks
    call = Call(
        q=q,
        rot=rot,
        free=free,
        positions=positions.astype(jnp.float32),
        inv_freq=inv_freq.astype(jnp.float32),
        patch=patch,
        lengths=lengths.astype(jnp.int32),
        bases=bases.astype(jnp.float32),
        first=first,
        heads=heads,
        scale=scale,
        rope_scale=rope_scale,
        layout=layout,
        bias=None if bias is None else bias.astype(jnp.float32),
        packed=packed or None,
        unpack=unpack,
    )
    dtypes = [q.dtype] if patch is None else [q.dtype, patch.u.dtype]
    rows = q.shape[0] * heads.per_group
    rank = 0 if patch is None else patch.u.shape[-2]
    sizes = {"layout": layout, "rows": rows, "tokens": tokens, "rank": rank}
    refused = refusals(heads, pairs, dtypes, biased=bias is not None, unpack=unpack, **sizes)
    return serve("chunk_attention", implementation, refused, _attending, call)


def _attending(name: Implementation) -> Callable[[Call], tuple[jax.Array, jax.Array]]:
    # Imported when it may be chosen: Pallas takes a second to load.
    if name == "pallas_tpu":
        from pallas_kernels.chunk_attention.tpu import chunk_attention_tpu

        return chunk_attention_tpu
    if name == "mosaic_gpu":
        return chunk_attention_gpu
    return chunk_attention_reference


def _unpacked(
    rot: jax.Array, free: jax.Array, packed: Mapping[str, jax.Array], unpack: Unpack | None, layer: Any
) -> tuple[Any, Any]:
    """What keys and values are, or the shapes that they are unpacked to; a ValueError where they cannot be."""
    if unpack is None:
        if packed:
            raise ValueError(f"packed has {sorted(packed)}, and nothing says how to unpack them; give unpack")
        return rot, free
    stored = {"rot": rot, "free": free, **packed}
    lead = rot.shape[: 1 if layer is None else 2]
    if wrong := {name: array.shape for name, array in stored.items() if array.shape[: len(lead)] != lead}:
        raise ValueError(f"what chunks are packed in leads with {list(lead)} as rot does; got {wrong}")
    one = {name: jax.ShapeDtypeStruct(array.shape[len(lead) :], array.dtype) for name, array in stored.items()}
    keys, values = jax.eval_shape(unpack, one, jax.ShapeDtypeStruct((), jnp.int32))
    keys, values = (jax.ShapeDtypeStruct((*lead, *part.shape), part.dtype) for part in (keys, values))
    return keys, values


def _heads(q: jax.Array, rot: Any, free: Any, layer: Any) -> Heads:
    """How the queries and the chunks split into heads; a ValueError where they do not fit."""
    named = "" if layer is None else "L, "
    dims = 3 if layer is None else 4
    if (q.ndim, rot.ndim, free.ndim) != (3, dims, dims) or rot.shape[:-1] != free.shape[:-1] or 0 in rot.shape:
        raise ValueError(
            f"expected q [Tq, N, D], rot [{named}C, T, Fr] and free [{named}C, T, Ff], of at least one chunk and "
            f"token; got {q.shape}, {rot.shape} and {free.shape}"
        )
    if q.dtype not in DTYPES or (not isinstance(rot, jax.ShapeDtypeStruct) and {rot.dtype, free.dtype} != {q.dtype}):
        raise ValueError(
            f"q, rot and free must all be bfloat16 or all float32, or all float16; got {q.dtype}, {rot.dtype} and "
            f"{free.dtype}; cast the queries to what the chunks are stored in"
        )
    heads = heads_of(q.shape, rot.shape[-1], free.shape[-1])
    if heads is None:
        raise ValueError(
            f"queries of width {q.shape[-1]} fit neither G heads that rot's {rot.shape[-1]} and free's "
            f"{free.shape[-1]} split into, with G dividing {q.shape[1]}, nor one [latent | k_pe] of {free.shape[-1]} + "
            f"{rot.shape[-1]}"
        )
    return heads


def _patch(
    places: tuple[int, ...],
    tokens: int,
    features: int,
    u: jax.Array | None,
    v: jax.Array | None,
    ranks: jax.Array | None,
) -> Patch | None:
    """The factors of ``places`` ([C], or [L, C]) as one value, checked; None where there are none."""
    check_complete(u, v, ranks)
    if u is None or v is None:
        return None
    named = f"L, {places[-1]}" if len(places) == 2 else f"{places[0]}"
    rank = u.shape[-2] if u.ndim == len(places) + 2 else 0
    if not rank or u.shape != (*places, rank, tokens) or v.shape != (*places, rank, features):
        raise ValueError(
            f"patch factors must be u [{named}, m, {tokens}] and v [{named}, m, {features}], m at least 1; got "
            f"{u.shape} and {v.shape}"
        )
    if u.dtype not in DTYPES or v.dtype != u.dtype:
        raise ValueError(f"u and v must both be bfloat16, float16 or float32; got {u.dtype} and {v.dtype}")
    ranks = jnp.full(places, rank, jnp.int32) if ranks is None else ranks
    if ranks.shape != places:
        raise ValueError(f"ranks must be [{named}], one per chunk; got {ranks.shape}")
    return Patch(u, v, ranks)


def refusals(
    heads: Heads,
    pairs: int,
    dtypes: Sequence[Any] = (),
    *,
    biased: bool = False,
    unpack: Unpack | None = None,
    layout: PairLayout = "half",
    rows: int = 1,
    tokens: int = ROWS,
    rank: int = 0,
) -> dict[Implementation, str | None]:
    """Why each backend cannot serve heads of which so many pairs rotate; None where it can, on its own machine.

    Args:
        heads: of the call.
        pairs: of a head that rotate.
        dtypes: of the call's arrays.
        biased: whether something is added to the scores.
        unpack: of a chunk that is packed.
        layout: of the pairs.
        rows: queries of a KV head, together.
        tokens: T of every chunk.
        rank: room for components of their patches; 0 for none.
    """
    refused = "it adds no bias to the scores, as rows that stand for several tokens take" if biased else None
    sizes = {"rows": rows, "tokens": tokens, "rank": rank}
    packed = None if unpack is None else "it reads chunks as they are, and none that are packed"
    return {
        "pallas_tpu": refused or tpu_refusal(heads, pairs, dtypes, tokens=tokens, unpack=unpack),
        "mosaic_gpu": refused or packed or gpu_refusal(heads, pairs, dtypes, layout=layout, **sizes),
        "xla": None,
    }
