"""Attention of the text decoders: grouped-query (MHA included) and multi-head latent, over past and present tokens.

What sees what, and what is collected on the way, is the caller's: it passes ``attend``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax.kv import KV
from models.blocks.int8 import floats
from models.blocks.layers import dense, rms_norm
from models.blocks.params import ParamInfo, Params, linear
from models.blocks.softmax import MASKED, grouped_attention

__all__ = ["MASKED", "Attend", "DecoderAttention", "GroupedQuery", "Latent", "Rotated", "grouped_attention"]

Attend = Callable[..., tuple[jax.Array, Any]]
"""Rotated q [T, N, D] and the parts of keys and values to the output [T, N*Dv] and whatever is collected per layer.

A part is a pair of rotated k [S, G, D] and v [S, G, Dv]: those of the past tokens where there are any, then that of the
present ones. Where chunks lie in pools, the layer's index follows; an MLA's q, k and v are then absorbed.
"""

Rotated = Callable[[jax.Array], jax.Array]
"""Heads [T, H, D] rotated to the positions of the T present tokens."""


class Reading(NamedTuple):
    """How a layer's queries read its KV.

    Attributes:
        q: rotated queries [T, N, D].
        keys: rotated KV [S, ·] as cached to heads of keys [S, G, D] and of values [S, G, Dv].
        output: what attention gives [T, N*Dv] to what the output projection takes.
    """

    q: jax.Array
    keys: Callable[[KV], tuple[jax.Array, jax.Array]]
    output: Callable[[jax.Array], jax.Array]


class DecoderAttention(ABC):
    """What grouped-query and latent attention share: KV is computed, joined to the past, attended to, projected."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """Factor on the scores."""

    @property
    @abstractmethod
    def score_width(self) -> int:
        """Products for each pair of query and key, over all heads: of the score and of the weighted sum."""

    @property
    @abstractmethod
    def kv_widths(self) -> tuple[int, int, int]:
        """Fr, Ff, and the heads that Fr splits into."""

    @abstractmethod
    def declaration(self, width: int) -> Params:
        """Parameters of one layer."""

    @abstractmethod
    def kv(self, layer: Params, h: Float[Array, "T E"]) -> KV:
        """Un-rotated KV [T, ·], as it is cached."""

    @abstractmethod
    def reading(
        self, layer: Params, h: Float[Array, "T E"], rotated: Rotated, slots: int, pooled: bool, absorb: bool | None
    ) -> Reading:
        """Queries, and how they read what ``kv`` gives; ``slots`` past tokens are read too, and pools if ``pooled``."""

    def __call__(
        self,
        layer: Params,
        h: Float[Array, "T E"],
        rotated: Rotated,
        past: Sequence[KV],
        attend: Attend,
        index: jax.Array | None = None,
        *,
        absorb: bool | None = None,
    ) -> tuple[Float[Array, "T E"], KV, Any]:
        """Attend from T tokens (HF ``Qwen2Attention``, ``LlamaAttention``, ``DeepseekV3Attention``).

        Args:
            layer: as declared.
            h: normalised residual stream.
            rotated: see `Rotated`.
            past: rotated KV of the S tokens before, in parts [·, ·].
            attend: see `Attend`.
            index: of the layer, for an ``attend`` that also reads chunks in pools; else None.
            absorb: of an MLA: attend in the latent space, the up-projections absorbed into queries and output, instead
                of expanding keys and values: the same function; by default the cheaper one, or the one that pools need.

        Raises:
            ValueError: pools and ``absorb=False``: what lies in them is never expanded.

        Returns:
            What is added to the residual stream, the un-rotated KV [T, ·], and what ``attend`` collected.
        """
        kv = self.kv(layer, h)
        heads = kv.rot.reshape(kv.rot.shape[0], self.kv_widths[2], -1)
        present = KV(rotated(heads).reshape(kv.rot.shape), kv.free)
        slots = sum(part.rot.shape[0] for part in past)
        reading = self.reading(layer, h, rotated, slots, index is not None, absorb)
        parts = [reading.keys(part) for part in (*past, present)]
        out, collected = attend(reading.q, parts, *(() if index is None else (index,)))
        return dense(layer["o"], reading.output(out)), kv, collected


@dataclass(frozen=True)
class GroupedQuery(DecoderAttention):
    """N query heads that share G KV heads of D dims; MHA is G = N.

    Attributes:
        heads: N.
        kv_heads: G.
        head_dim: D.
        bias: whether q, k and v have one.
        output_bias: whether the output projection has one.
        norm_eps: epsilon of an RMSNorm of each head of queries and keys before their rotation (QK-norm); None without.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False
    norm_eps: float | None = None

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return self.head_dim**-0.5

    @property
    def score_width(self) -> int:
        """Products for each pair of query and key, over all heads: of the score and of the weighted sum."""
        return 2 * self.heads * self.head_dim

    @property
    def kv_widths(self) -> tuple[int, int, int]:
        """Fr, Ff, and the heads that Fr splits into: keys rotate, values do not."""
        return self.kv_heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads

    def declaration(self, width: int) -> Params:
        """Parameters of one layer."""
        kv = self.kv_heads * self.head_dim
        norm = ParamInfo((self.head_dim,), "ones", axes=("norm",))
        return {
            "q": linear(width, self.heads * self.head_dim, bias=self.bias, axes=("embed", "heads"), heads=self.heads),
            "k": linear(width, kv, bias=self.bias, axes=("embed", "kv_heads"), heads=self.kv_heads),
            "v": linear(width, kv, bias=self.bias, axes=("embed", "kv_heads"), heads=self.kv_heads),
            "o": linear(
                self.heads * self.head_dim, width, bias=self.output_bias, axes=("heads", "embed"), heads=self.heads
            ),
            **({} if self.norm_eps is None else {"q_norm": norm, "k_norm": norm}),
        }

    def kv(self, layer: Params, h: Float[Array, "T E"]) -> KV:
        """Un-rotated keys, normalised where there is a QK-norm, and values [T, G*D]."""
        k = self._heads(layer, "k", h, self.kv_heads)
        return KV(k.reshape(h.shape[0], -1), dense(layer["v"], h))

    def _heads(self, layer: Params, name: str, h: jax.Array, heads: int) -> jax.Array:
        """Heads [T, H, D] of queries or keys, not rotated yet."""
        x = dense(layer[name], h).reshape(h.shape[0], heads, self.head_dim)
        return x if self.norm_eps is None else rms_norm(x, layer[f"{name}_norm"], self.norm_eps)

    def reading(
        self, layer: Params, h: Float[Array, "T E"], rotated: Rotated, slots: int, pooled: bool, absorb: bool | None
    ) -> Reading:
        """Heads as they are cached; there is nothing to absorb."""
        q = rotated(self._heads(layer, "q", h, self.heads))

        def keys(kv: KV) -> tuple[jax.Array, jax.Array]:
            k, v = (x.reshape(x.shape[0], self.kv_heads, self.head_dim) for x in (kv.rot, kv.free))
            return k, v

        return Reading(q, keys, lambda out: out)


@dataclass(frozen=True)
class Latent(DecoderAttention):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads read one latent.

    Attributes:
        heads: N.
        latent_dim: R, width of the normalised latent c_KV: what is cached beside k_pe.
        nope_dim: dims of a head's query and key that carry no position.
        rope_dim: dims that do; the heads share their key, k_pe.
        value_dim: dims of a head's value.
        query_latent_dim: width of the queries' own latent; None for none.
        score_factor: beside ``1/sqrt(nope_dim + rope_dim)`` (YaRN's mscale squared).
    """

    heads: int
    latent_dim: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    query_latent_dim: int | None = None
    score_factor: float = 1.0

    EPS = 1e-6
    """Epsilon of the latents' RMSNorm; not configurable in HF either."""

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return (self.nope_dim + self.rope_dim) ** -0.5 * self.score_factor

    @property
    def score_width(self) -> int:
        """Products for each pair of query and key, over all heads, latents expanded: as prefill attends."""
        return self.heads * (self.nope_dim + self.rope_dim + self.value_dim)

    @property
    def kv_widths(self) -> tuple[int, int, int]:
        """Fr, Ff, and the heads that Fr splits into: k_pe rotates, the latent does not."""
        return self.rope_dim, self.latent_dim, 1

    def declaration(self, width: int) -> Params:
        """Parameters of one layer."""
        queries = self.heads * (self.nope_dim + self.rope_dim)
        declared: Params = {
            "kv_a": linear(width, self.latent_dim + self.rope_dim, axes=("embed", "kv_latent")),
            "kv_norm": ParamInfo((self.latent_dim,), "ones", axes=("norm",)),
            "kv_b": linear(
                self.latent_dim,
                self.heads * (self.nope_dim + self.value_dim),
                axes=("kv_latent", "heads"),
                heads=self.heads,
            ),
            "o": linear(self.heads * self.value_dim, width, axes=("heads", "embed"), heads=self.heads),
        }
        if self.query_latent_dim is None:
            return {"q": linear(width, queries, axes=("embed", "heads"), heads=self.heads), **declared}
        return {
            "q_a": linear(width, self.query_latent_dim, axes=("embed", "q_latent")),
            "q_norm": ParamInfo((self.query_latent_dim,), "ones", axes=("norm",)),
            "q_b": linear(self.query_latent_dim, queries, axes=("q_latent", "heads"), heads=self.heads),
            **declared,
        }

    def absorbs(self, tokens: int, slots: int) -> bool:
        """Whether attention in the latent space takes fewer FLOPs than expanding S latents to keys and values.

        It does for a few tokens over a long past (decoding), and not for prefill.
        """
        wider = 2 * self.latent_dim - self.nope_dim - self.value_dim
        return tokens * (slots + tokens) * wider < slots * self.latent_dim * (self.nope_dim + self.value_dim)

    def kv(self, layer: Params, h: Float[Array, "T E"]) -> KV:
        """Un-rotated k_pe [T, Dr], and the normalised latent [T, R]."""
        latent, k_pe = jnp.split(dense(layer["kv_a"], h), [self.latent_dim], axis=-1)
        return KV(k_pe, rms_norm(latent, layer["kv_norm"], self.EPS))

    def reading(
        self, layer: Params, h: Float[Array, "T E"], rotated: Rotated, slots: int, pooled: bool, absorb: bool | None
    ) -> Reading:
        """Queries against latents as they are cached (absorbed), or against the keys that those expand to.

        Raises:
            ValueError: pools and ``absorb=False``.
        """
        if pooled and absorb is False:
            raise ValueError("chunks in pools are attended to in the absorbed form alone; leave absorb out")
        tokens = h.shape[0]
        if self.query_latent_dim is not None:
            q = dense(layer["q_b"], rms_norm(dense(layer["q_a"], h), layer["q_norm"], self.EPS))
        else:
            q = dense(layer["q"], h)
        q_nope, q_rope = jnp.split(q.reshape(tokens, self.heads, -1), [self.nope_dim], axis=-1)
        q_rope = rotated(q_rope)
        if (pooled or self.absorbs(tokens, slots)) if absorb is None else absorb:
            return self._absorbed(layer, q_nope, q_rope)
        return self._expanded(layer, q_nope, q_rope)

    def _absorbed(self, layer: Params, q_nope: jax.Array, q_rope: jax.Array) -> Reading:
        up = floats(layer["kv_b"]["w"]).reshape(self.latent_dim, self.heads, -1)
        up_key, up_value = jnp.split(up, [self.nope_dim], axis=-1)
        dtype = q_nope.dtype
        q_latent = jnp.einsum("tnd,rnd->tnr", q_nope, up_key, preferred_element_type=jnp.float32).astype(dtype)

        def keys(kv: KV) -> tuple[jax.Array, jax.Array]:
            return jnp.concatenate([kv.free, kv.rot], axis=-1)[:, None], kv.free[:, None]

        def output(out: jax.Array) -> jax.Array:
            out = out.reshape(out.shape[0], self.heads, -1)
            out = jnp.einsum("tnr,rnd->tnd", out, up_value, preferred_element_type=jnp.float32).astype(dtype)
            return out.reshape(out.shape[0], -1)

        return Reading(jnp.concatenate([q_latent, q_rope], axis=-1), keys, output)

    def _expanded(self, layer: Params, q_nope: jax.Array, q_rope: jax.Array) -> Reading:
        def keys(kv: KV) -> tuple[jax.Array, jax.Array]:
            expanded = dense(layer["kv_b"], kv.free).reshape(-1, self.heads, self.nope_dim + self.value_dim)
            k_nope, values = jnp.split(expanded, [self.nope_dim], axis=-1)
            shared = jnp.broadcast_to(kv.rot[:, None], (*k_nope.shape[:2], self.rope_dim))
            return jnp.concatenate([k_nope, shared], axis=-1), values

        return Reading(jnp.concatenate([q_nope, q_rope], axis=-1), keys, lambda out: out)
