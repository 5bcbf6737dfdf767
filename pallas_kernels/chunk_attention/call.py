"""What chunk_attention works on, as one value: queries, chunks where they lie, and how both split into heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, no_type_check, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from pallas_kernels.relocate_patch.chunk import PairLayout, Patch


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
        """Queries that share one KV head, N // G."""
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


@runtime_checkable
class Unpack(Protocol):
    """How a chunk's KV comes out of the arrays that it is packed in: hashed and compared, and pure."""

    def __call__(self, stored: Mapping[str, jax.Array], length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys f32[T, Fr] and values f32[T, Ff] of one chunk.

        Args:
            stored: its ``rot``, ``free`` and what else it is packed in, by name.
            length: its valid tokens; rows past them may come back as anything.
        """
        ...


@dataclass(frozen=True)
class ScaledInt8:
    """`Unpack` of int8: ``rot`` times ``rot_scale`` f32[1, Fr], by channel; ``free`` times ``free_scale`` f32[1, T]."""

    def __call__(self, stored: Mapping[str, jax.Array], length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Unpack`."""
        keys = stored["rot"].astype(jnp.float32) * stored["rot_scale"]
        return keys, stored["free"].astype(jnp.float32) * stored["free_scale"].T


@no_type_check  # pytrees are rebuilt with whatever a transformation puts in the leaves
@register_dataclass
@dataclass(frozen=True)
class Call:
    """Queries, and the C chunks that they attend to: a checked call, as every backend takes it.

    rot, free and the factors may hold more than C chunks, those of all layers one after the other; the call's own begin
    at ``first``. Everything else is of the C chunks alone.

    Attributes:
        q: rotated queries [Tq, N, D]; for MLA in the absorbed form [Tq, N, R + Dr].
        rot: un-rotated keys [≥ C, T, G*D] or k_pe [≥ C, T, Dr]; or what these are packed in.
        free: values [≥ C, T, G*Dv] or latents [≥ C, T, R]; or what these are packed in.
        positions: of tokens within their chunk, f32[C, A, T].
        inv_freq: radians per position, f32[A, R/2], zero on the axes that do not drive a pair.
        patch: u [≥ C, m, T] and v [≥ C, m, Fr + Ff], and the C chunks' ranks; or None.
        lengths: valid tokens, i32[C].
        bases: the absolute position each chunk starts at, f32[C].
        first: where the C chunks begin, i32[].
        bias: what is added to the scores of each token, f32[C, T]; None for 0.
        packed: what else rot and free are packed in, each [≥ C, ...], by name; None where they are as they are.
        heads: how q, rot and free split; not traced.
        scale: factor on the scores; not traced.
        rope_scale: factor on cos and sin; not traced.
        layout: of the rotated pairs; not traced.
        unpack: how a chunk comes out of ``rot``, ``free`` and ``packed``; not traced.
    """

    q: jax.Array
    rot: jax.Array
    free: jax.Array
    positions: jax.Array
    inv_freq: jax.Array
    patch: Patch | None
    lengths: jax.Array
    bases: jax.Array
    first: jax.Array
    heads: Heads = field(metadata={"static": True})
    scale: float = field(metadata={"static": True})
    rope_scale: float = field(metadata={"static": True})
    layout: PairLayout = field(metadata={"static": True})
    bias: jax.Array | None = None
    packed: dict[str, jax.Array] | None = None
    unpack: Unpack | None = field(default=None, metadata={"static": True})

    @property
    def stored(self) -> dict[str, jax.Array]:
        """All that keys and values come from, each [≥ C, ...], by name."""
        return {"rot": self.rot, "free": self.free, **(self.packed or {})}
