"""What a call of chunk_attention is made of, and the real ones that tests and benchmarks share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.relocate_patch.limits import DTYPES, HEAD_DIMS
from pallas_kernels.relocate_patch.reference import PairLayout


@dataclass(frozen=True)
class Heads:
    """How q, rot and free split into heads.

    Attributes:
        queries: N.
        groups: G, KV heads; N // G queries share one.
        rotated: width of one key head in rot: D (GQA, MHA) or Dr (MLA).
        value: width of one value head in free: Dv (GQA, MHA) or the latent's R (MLA).
        latent: MLA in the absorbed form: the key is [latent | k_pe] and the value is the latent.
    """

    queries: int
    groups: int
    rotated: int
    value: int
    latent: bool

    @property
    def per_group(self) -> int:
        """N // G."""
        return self.queries // self.groups


def heads_of(query: Sequence[int], rot: int, free: int) -> Heads | None:
    """Heads of q [Tq, N, width] against flat features of the given widths, or None when they do not fit."""
    count, width = query[-2:]
    if width == rot + free:
        return Heads(count, 1, rot, free, latent=True)
    groups, rest = divmod(rot, width)
    if groups == 0 or rest or free % groups or count % groups:
        return None
    return Heads(count, groups, width, free // groups, latent=False)


def tpu_refusal(heads: Heads, pairs: int, dtypes: Sequence[Any] = ()) -> str | None:
    """Why ``"pallas_tpu"`` cannot serve these heads in arrays of these dtypes, or None."""
    if wrong := {str(jnp.dtype(dtype)) for dtype in dtypes} - set(DTYPES):
        return f"it needs arrays in {' or '.join(DTYPES)}, not {', '.join(sorted(wrong))}"
    if heads.rotated not in HEAD_DIMS:
        return f"it needs keys whose head dim D is in {HEAD_DIMS}, not {heads.rotated}"
    if pairs % 8 or heads.value % 16:
        return f"it needs R/2 in multiples of 8 and values in multiples of 16, not {pairs} and {heads.value}"
    return None


@dataclass(frozen=True)
class Shape:
    """One call.

    Attributes:
        queries: query tokens.
        heads: N.
        rot: Fr.
        free: Ff.
        width: of one query: D, or R + Dr in MLA's absorbed form.
        chunks: C.
        tokens: T of every chunk.
        rank: m; 0 for no patch.
        axes: position axes A.
        pairs: rotated pairs of a head, R / 2.
        layout: of the pairs.
    """

    queries: int
    heads: int
    rot: int
    free: int
    width: int
    chunks: int
    tokens: int
    rank: int
    axes: int
    pairs: int
    layout: PairLayout = "half"

    @property
    def kv_values(self) -> int:
        """How many numbers the KV of all chunks holds."""
        return self.chunks * self.tokens * (self.rot + self.free)

    def arguments(self, dtype: Any = jnp.bfloat16, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Arrays of the call, by name of `pallas_kernels.chunk_attention`."""
        chunks = self.chunks
        tokens = self.tokens
        rank = self.rank
        arrays = {
            "q": ((self.queries, self.heads, self.width), dtype),
            "rot": ((chunks, tokens, self.rot), dtype),
            "free": ((chunks, tokens, self.free), dtype),
            "positions": ((chunks, self.axes, tokens), jnp.float32),
            "inv_freq": ((self.axes, self.pairs), jnp.float32),
            "lengths": ((chunks,), jnp.int32),
            "bases": ((chunks,), jnp.float32),
        }
        if rank:
            arrays |= {
                "u": ((chunks, rank, tokens), dtype),
                "v": ((chunks, rank, self.rot + self.free), dtype),
                "ranks": ((chunks,), jnp.int32),
            }
        return {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, (shape, kind) in arrays.items()}

    def call(self, backend: Callable[..., Any], **options: Any) -> Callable[[dict[str, Any]], Any]:
        """A backend as a function of the arrays by name."""
        heads = heads_of((self.queries, self.heads, self.width), self.rot, self.free)
        fixed = {"heads": heads, "scale": self.width**-0.5, "rope_scale": 1.0, "layout": self.layout} | options
        names = ("q", "rot", "free", "positions", "inv_freq", "u", "v", "ranks", "lengths", "bases")
        return lambda arrays: backend(*(arrays.get(name) for name in names), arrays.get("first", 0), **fixed)


def _grouped(
    queries: int,
    heads: int,
    groups: int,
    dim: int,
    chunks: int,
    tokens: int,
    rank: int,
    *,
    axes: int = 1,
    pairs: int | None = None,
) -> Shape:
    width = groups * dim
    return Shape(queries, heads, width, width, dim, chunks, tokens, rank, axes, pairs or dim // 2)


def _latent(queries: int, heads: int, chunks: int, tokens: int, rank: int) -> Shape:
    return Shape(queries, heads, 64, 512, 576, chunks, tokens, rank, axes=1, pairs=32, layout="interleaved")


SHAPES: dict[str, Shape] = {
    "qwen2.5-vl-7b decode": _grouped(1, 28, 4, 128, 64, 512, 32, axes=3),
    "qwen2.5-vl-7b decode, no patch": _grouped(1, 28, 4, 128, 64, 512, 0, axes=3),
    "qwen2.5-vl-7b prefill": _grouped(512, 28, 4, 128, 16, 1024, 32, axes=3),
    "qwen2.5-vl-3b decode": _grouped(1, 16, 2, 128, 64, 384, 32, axes=3),
    "llava-1.5-7b decode": _grouped(1, 32, 32, 128, 8, 640, 32),
    "llava-1.5-7b prefill": _grouped(512, 32, 32, 128, 8, 640, 32),
    "kimi-vl decode": _latent(1, 16, 64, 512, 32),
    "kimi-vl prefill": _latent(512, 16, 16, 1024, 32),
    "deepseek-v3 decode": _latent(1, 128, 64, 512, 64),
    "D = 64 decode": _grouped(1, 32, 8, 64, 16, 512, 16),
    "D = 80 prefill": _grouped(256, 32, 8, 80, 8, 512, 32, pairs=16),
    "D = 96 decode": _grouped(4, 32, 8, 96, 16, 256, 32),
    "D = 256 prefill": _grouped(256, 16, 8, 256, 8, 512, 64),
    "short chunks": _grouped(32, 28, 4, 128, 64, 64, 8),
    "kimi-vl short chunks": _latent(4, 16, 64, 32, 8),
    "shortest chunks": _grouped(32, 28, 4, 128, 64, 16, 8),
}
