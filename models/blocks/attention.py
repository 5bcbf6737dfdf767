"""Attention of the text decoders: grouped-query (MHA included) and multi-head latent, over past and present tokens.

What sees what, and what is collected on the way, is the caller's: it passes ``attend``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kamera_jax.kv import KV
from models.blocks.layers import dense, rms_norm
from models.blocks.params import ParamInfo, Params, linear

MASKED = -1e30
"""Finite, so that a row with nothing to see (padding) stays finite too."""

Attend = Callable[..., tuple[jax.Array, Any]]
"""Rotated q [T, N, D], k [S+T, G, D] and v [S+T, G, Dv] to the output [T, N*Dv] and whatever is collected per layer.

Where chunks lie in pools, the layer's index follows v; an MLA's q, k and v are then absorbed.
"""

Rotated = Callable[[jax.Array], jax.Array]
"""Heads [T, H, D] rotated to the positions of the T present tokens."""


class Attended(NamedTuple):
    """What `grouped_attention` computes; what is not used is dead code.

    Attributes:
        out: with heads concatenated [T, N*Dv].
        probabilities: f32[G, N/G, T, S].
        lse: log-sum-exp of the scores, f32[T, N].
    """

    out: jax.Array
    probabilities: jax.Array
    lse: jax.Array


def grouped_attention(
    q: Float[Array, "T N D"],
    k: Float[Array, "S G D"],
    v: Float[Array, "S G Dv"],
    mask: Bool[Array, "T S"],
    scale: float,
) -> Attended:
    """Grouped-query attention; MHA is G = N.

    Args:
        q: rotated queries.
        k, v: rotated keys and values.
        mask: True where a query sees a key.
        scale: factor on the scores.
    """
    tokens, heads, _ = q.shape
    groups = k.shape[1]
    # Heads lead and a group's queries share one axis: plain batched matrix products, which every backend runs well.
    q = q.reshape(tokens, groups, heads // groups, -1).transpose(1, 2, 0, 3).reshape(groups, -1, q.shape[-1])
    scores = jnp.einsum("gqd,sgd->gqs", q, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(groups, -1, tokens, k.shape[0])
    scores = jnp.where(mask[None, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = probabilities.astype(v.dtype).reshape(groups, -1, k.shape[0])
    out = jnp.einsum("gqs,sgd->gqd", weights, v).reshape(groups, heads // groups, tokens, -1)
    lse = jax.nn.logsumexp(scores, axis=-1).transpose(2, 0, 1).reshape(tokens, heads)
    return Attended(out.transpose(2, 0, 1, 3).reshape(tokens, -1), probabilities, lse)


@dataclass(frozen=True)
class GroupedQuery:
    """N query heads that share G KV heads of D dims; MHA is G = N.

    Attributes:
        heads: N.
        kv_heads: G.
        head_dim: D.
        bias: whether q, k and v have one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False

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
        return {
            "q": linear(width, self.heads * self.head_dim, bias=self.bias, axes=("embed", "heads"), heads=self.heads),
            "k": linear(width, kv, bias=self.bias, axes=("embed", "kv_heads"), heads=self.kv_heads),
            "v": linear(width, kv, bias=self.bias, axes=("embed", "kv_heads"), heads=self.kv_heads),
            "o": linear(self.heads * self.head_dim, width, axes=("heads", "embed"), heads=self.heads),
        }

    def __call__(
        self,
        layer: Params,
        h: Float[Array, "T E"],
        rotated: Rotated,
        past: KV | None,
        attend: Attend,
        index: jax.Array | None = None,
        *,
        absorb: bool | None = None,
    ) -> tuple[Float[Array, "T E"], KV, Any]:
        """Attend from T tokens (HF ``Qwen2Attention``, ``LlamaAttention``).

        Args:
            layer: as declared.
            h: normalised residual stream.
            rotated: see `Rotated`.
            past: rotated keys and values of the S tokens before [S, ·], or None.
            attend: see `Attend`.
            index: of the layer, for an ``attend`` that also reads chunks in pools; else None.
            absorb: as of `Latent`; there is nothing to absorb here.

        Returns:
            What is added to the residual stream, the un-rotated KV [T, ·], and what ``attend`` collected.
        """
        tokens = h.shape[0]
        q, k, v = (dense(layer[name], h).reshape(tokens, -1, self.head_dim) for name in "qkv")
        keys = rotated(k)
        values = v
        if past is not None:
            keys = jnp.concatenate([past.rot.reshape(-1, *k.shape[1:]), keys])
            values = jnp.concatenate([past.free.reshape(-1, *v.shape[1:]), values])
        out, collected = attend(rotated(q), keys, values, *(() if index is None else (index,)))
        return dense(layer["o"], out), KV(k.reshape(tokens, -1), v.reshape(tokens, -1)), collected


@dataclass(frozen=True)
class Latent:
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
    """Of the latents' RMSNorm; not configurable in HF either."""

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

    def __call__(
        self,
        layer: Params,
        h: Float[Array, "T E"],
        rotated: Rotated,
        past: KV | None,
        attend: Attend,
        index: jax.Array | None = None,
        *,
        absorb: bool | None = None,
    ) -> tuple[Float[Array, "T E"], KV, Any]:
        """Attend from T tokens (HF ``DeepseekV3Attention``).

        Args:
            layer: as declared.
            h: normalised residual stream.
            rotated: see `Rotated`.
            past: rotated k_pe and latents of the S tokens before [S, ·], or None.
            attend: see `Attend`.
            index: of the layer, for an ``attend`` that also reads chunks in pools; else None.
            absorb: attend in the latent space, the up-projections absorbed into queries and output, instead of
                expanding keys and values: the same function; by default the cheaper one, or the one that pools need.

        Raises:
            ValueError: pools and ``absorb=False``: what lies in them is never expanded.

        Returns:
            What is added to the residual stream, the un-rotated KV [T, ·], and what ``attend`` collected.
        """
        tokens = h.shape[0]
        if self.query_latent_dim is not None:
            q = dense(layer["q_b"], rms_norm(dense(layer["q_a"], h), layer["q_norm"], self.EPS))
        else:
            q = dense(layer["q"], h)
        q_nope, q_rope = jnp.split(q.reshape(tokens, self.heads, -1), [self.nope_dim], axis=-1)
        q_rope = rotated(q_rope)
        latent, k_pe = jnp.split(dense(layer["kv_a"], h), [self.latent_dim], axis=-1)
        latent = rms_norm(latent, layer["kv_norm"], self.EPS)
        kv = KV(k_pe, latent)
        k_pe = rotated(k_pe[:, None])[:, 0]
        if past is not None:
            k_pe = jnp.concatenate([past.rot, k_pe])
            latent = jnp.concatenate([past.free, latent])

        pooled = index is not None
        if pooled and absorb is False:
            raise ValueError("chunks in pools are attended to in the absorbed form alone; leave absorb out")
        slots = latent.shape[0] - tokens
        if (pooled or self.absorbs(tokens, slots)) if absorb is None else absorb:
            up = layer["kv_b"]["w"].reshape(self.latent_dim, self.heads, -1)
            up_key, up_value = jnp.split(up, [self.nope_dim], axis=-1)
            q_latent = jnp.einsum("tnd,rnd->tnr", q_nope, up_key, preferred_element_type=jnp.float32).astype(h.dtype)
            queries = jnp.concatenate([q_latent, q_rope], axis=-1)
            keys = jnp.concatenate([latent, k_pe], axis=-1)
            out, collected = attend(queries, keys[:, None], latent[:, None], *(() if index is None else (index,)))
            out = out.reshape(tokens, self.heads, -1)
            out = jnp.einsum("tnr,rnd->tnd", out, up_value, preferred_element_type=jnp.float32).astype(h.dtype)
            out = out.reshape(tokens, -1)
        else:
            expanded = dense(layer["kv_b"], latent).reshape(-1, self.heads, self.nope_dim + self.value_dim)
            k_nope, values = jnp.split(expanded, [self.nope_dim], axis=-1)
            shared = jnp.broadcast_to(k_pe[:, None], (*k_nope.shape[:2], self.rope_dim))
            keys = jnp.concatenate([k_nope, shared], axis=-1)
            out, collected = attend(jnp.concatenate([q_nope, q_rope], axis=-1), keys, values)
        return dense(layer["o"], out), kv, collected
