"""The language model of Qwen2.5-VL (HF ``Qwen2_5_VLTextModel``): GQA with qkv bias, M-RoPE, SwiGLU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax import rope
from kamera_jax.kv import KV
from models.layers import dense, rms_norm, swiglu
from models.params import ParamInfo, Params, linear, stacked
from models.qwen2_5_vl.config import TextConfig


def text_declaration(config: TextConfig) -> Params:
    """Every parameter of the language model; layers stacked on the leading axis."""
    width, heads, kv_heads, dim = (
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    layer: Params = {
        "attn_norm": ParamInfo((width,), "ones"),
        "attn": {
            "q": linear(width, heads * dim, bias=True),
            "k": linear(width, kv_heads * dim, bias=True),
            "v": linear(width, kv_heads * dim, bias=True),
            "o": linear(heads * dim, width),
        },
        "mlp_norm": ParamInfo((width,), "ones"),
        "mlp": {
            "gate": linear(width, config.intermediate_size),
            "up": linear(width, config.intermediate_size),
            "down": linear(config.intermediate_size, width),
        },
    }
    declaration: Params = {
        "embed": {"w": ParamInfo((config.vocab_size, width), "embedding")},
        "layers": stacked(config.num_hidden_layers, layer),
        "norm": ParamInfo((width,), "ones"),
    }
    if not config.tie_word_embeddings:
        declaration["head"] = linear(width, config.vocab_size)
    return declaration


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""Rotated q [T, N, D], k [S+T, G, D] and v [S+T, G, D] to the output [T, N*D] and whatever is collected per layer."""


class Decoded(NamedTuple):
    """What the decoder computes of T tokens.

    Attributes:
        hidden: after the final norm [T, E].
        kv: un-rotated KV [L, T, ·].
        collected: what ``attend`` returned beside its output, stacked over layers.
        observed: what ``observe`` returned, stacked over layers.
    """

    hidden: jax.Array
    kv: KV
    collected: Any
    observed: Any


def decoder(
    params: Params,
    config: TextConfig,
    embeds: Float[Array, "T E"],
    positions: Float[Array, "A T"],
    attend: Attend,
    past: KV | None = None,
    observe: Callable[[jax.Array], Any] = lambda x: None,
) -> Decoded:
    """Run the decoder over T tokens; only ``attend`` knows who sees whom.

    Args:
        params: as declared by `text_declaration`.
        config: the language model's configuration.
        embeds: input embeddings.
        positions: absolute positions.
        attend: attention over the S past and T present tokens.
        past: rotated keys and values of the S tokens before.
        observe: called with the residual stream [T, E] after every layer.
    """
    cos, sin = rope.tables(config.rope, positions)
    tokens, dim = embeds.shape[0], config.head_dim

    def rotated(x: jax.Array) -> jax.Array:
        flat = x.astype(jnp.float32).reshape(1, tokens, -1)
        flat = rope.rotate_flat(flat, cos, sin, rotary_dim=config.rope.rotary_dim, layout=config.rope.layout)
        return flat.reshape(x.shape).astype(x.dtype)

    def layer(x: jax.Array, scanned: tuple[Params, KV | None]) -> tuple[jax.Array, Any]:
        weights, before = scanned
        attn = weights["attn"]
        h = rms_norm(x, weights["attn_norm"], config.rms_norm_eps)
        q, k, v = (dense(attn[name], h).reshape(tokens, -1, dim) for name in "qkv")
        keys, values = rotated(k), v
        if before is not None:
            keys = jnp.concatenate([before.rot.reshape(-1, *k.shape[1:]), keys])
            values = jnp.concatenate([before.free.reshape(-1, *v.shape[1:]), values])
        out, collected = attend(rotated(q), keys, values)
        x = x + dense(attn["o"], out)
        x = x + swiglu(weights["mlp"], rms_norm(x, weights["mlp_norm"], config.rms_norm_eps))
        return x, (KV(k.reshape(tokens, -1), v.reshape(tokens, -1)), collected, observe(x))

    x, (kv, collected, observed) = jax.lax.scan(layer, embeds, (params["layers"], past))
    return Decoded(rms_norm(x, params["norm"], config.rms_norm_eps), kv, collected, observed)


def embed(params: Params, tokens: jax.Array) -> Float[Array, "T E"]:
    """Token embeddings."""
    return params["embed"]["w"][tokens]


def logits(params: Params, hidden: Float[Array, "n E"]) -> Float[Array, "n V"]:
    """Next-token logits in f32."""
    if "head" in params:
        return dense(params["head"], hidden).astype(jnp.float32)
    return (hidden @ params["embed"]["w"].T).astype(jnp.float32)
