"""What relocate_patch works on, as one value: a chunk, its rotation and its patch; and the cache it is written to."""

from dataclasses import dataclass, field
from typing import Literal, no_type_check

import jax
from jax.tree_util import register_dataclass

PairLayout = Literal["half", "interleaved"]
PAIR_LAYOUTS: tuple[PairLayout, ...] = ("half", "interleaved")


@no_type_check  # pytrees are rebuilt with whatever a transformation puts in the leaves
@register_dataclass
@dataclass(frozen=True)
class Patch:
    """A low-rank change of N layers (or chunks): ``uᵀ v`` over the first ``ranks[n]`` of m components.

    Attributes:
        u: token factors [N, m, T].
        v: feature factors [N, m, Fr + Ff].
        ranks: components used, i32[N]. What lies past them is not read.
    """

    u: jax.Array
    v: jax.Array
    ranks: jax.Array

    @property
    def rank(self) -> int:
        """Components that u and v have room for, m."""
        return self.u.shape[1]


def check_complete(u: jax.Array | None, v: jax.Array | None, ranks: jax.Array | None) -> None:
    """Raise a ValueError where some of a patch is given and not both of its factors."""
    if (u is None) != (v is None) or (u is None and ranks is not None):
        given = [name for name, array in (("u", u), ("v", v), ("ranks", ranks)) if array is not None]
        raise ValueError(f"a patch needs both factors u and v; got {' and '.join(given)}")


@no_type_check
@register_dataclass
@dataclass(frozen=True)
class Chunk:
    """A chunk's KV in every layer, and what is done to it: a checked call, as every backend takes it.

    Attributes:
        rot: un-rotated keys [L, T, G*D] (GQA, MHA) or k_pe [L, T, D] (MLA).
        free: what RoPE leaves alone [L, T, Ff].
        cos: table of the target positions over a head's full width, f32[T, D]; 1 outside the rotary dims.
        sin: the same, with the sign that each member of a pair takes; 0 outside the rotary dims.
        patch: factors of all L layers, or None.
        length: valid tokens, i32[].
        rotary_dim: leading dims of a head that rotate; not traced.
        layout: of the rotated pairs; not traced.
    """

    rot: jax.Array
    free: jax.Array
    cos: jax.Array
    sin: jax.Array
    patch: Patch | None
    length: jax.Array
    rotary_dim: int = field(metadata={"static": True})
    layout: PairLayout = field(metadata={"static": True})

    @property
    def layers(self) -> int:
        """Layers, L."""
        return self.rot.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens with the padding, T."""
        return self.rot.shape[1]

    @property
    def head_dim(self) -> int:
        """Width of a head of rot, D."""
        return self.cos.shape[-1]

    @property
    def rank(self) -> int:
        """Components the patch has room for, m; 0 without one."""
        return 0 if self.patch is None else self.patch.rank

    @property
    def stored(self) -> tuple[jax.Array, ...]:
        """The arrays in the dtypes they are stored in: rot, free and the factors."""
        return (self.rot, self.free) if self.patch is None else (self.rot, self.free, self.patch.u, self.patch.v)


@no_type_check
@register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a chunk is written to.

    Attributes:
        rot: [L, S, G*D], or in pages [L, P, page, G*D].
        free: [L, S, Ff], or in pages [L, P, page, Ff].
    """

    rot: jax.Array
    free: jax.Array

    @property
    def page(self) -> int | None:
        """Tokens of a page; None where the cache is contiguous."""
        return self.rot.shape[2] if self.rot.ndim == 4 else None
