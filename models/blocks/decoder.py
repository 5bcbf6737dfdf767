"""The text decoder of every port: embeddings, pre-norm layers of attention and SwiGLU or experts, tied or own head."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax.kv import KV
from kamera_jax.rope import RopeSpec
from models.blocks.attention import Attend, GroupedQuery, Latent
from models.blocks.int8 import rows, tied_logits
from models.blocks.layers import dense, rms_norm, rotation, swiglu
from models.blocks.moe import Experts, Routing, mixture
from models.blocks.params import ParamInfo, Params, is_info, linear, stacked, swiglu_declaration
from models.blocks.scanning import layer_of, scan
from models.blocks.unstacked import one_by_one


@dataclass(frozen=True)
class DecoderConfig:
    """A language model of width E with V words.

    Attributes:
        vocab_size: V.
        hidden_size: E.
        intermediate_size: of the dense layers' SwiGLU.
        num_hidden_layers: L.
        rms_norm_eps: of the layers' norms.
        attention: the same in every layer.
        rope: of its rotated features.
        tie_word_embeddings: whether the head is the embedding.
        experts: of the layers after the dense ones.
        dense_layers: leading layers without experts; all of them if there are none.
        max_positions: positions the model is for; None if the configuration does not say.
        mlp_bias: whether the SwiGLU of the dense layers has biases.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    rms_norm_eps: float
    attention: GroupedQuery | Latent
    rope: RopeSpec
    tie_word_embeddings: bool
    experts: Experts | None = None
    dense_layers: int = 0
    max_positions: int | None = None
    mlp_bias: bool = False

    @property
    def stacks(self) -> dict[str, range]:
        """Layers whose parameters are stacked, by their name in the parameters, in order."""
        dense_layers = self.num_hidden_layers if self.experts is None else self.dense_layers
        stacks = {"layers": range(dense_layers), "moe_layers": range(dense_layers, self.num_hidden_layers)}
        return {name: layers for name, layers in stacks.items() if layers}

    def leading(self, layers: int) -> "DecoderConfig":
        """The configuration of the first ``layers`` layers alone.

        Raises:
            ValueError: there are fewer, or none are asked for.
        """
        if not 1 <= layers <= self.num_hidden_layers:
            raise ValueError(f"the model has {self.num_hidden_layers} layers; got the first {layers}")
        dense_only = layers <= self.dense_layers
        return replace(self, num_hidden_layers=layers, experts=None if dense_only else self.experts)


def leading_params(params: Params, config: DecoderConfig) -> Params:
    """The parameters that a configuration cut by `DecoderConfig.leading` declares: layers past its last left out."""
    kept = {name: params[name] for name in params if name not in ("layers", "moe_layers")}
    for name, layers in config.stacks.items():
        kept[name] = jax.tree.map(itemgetter(slice(len(layers))), params[name])
    return kept


def text_declaration(config: DecoderConfig) -> Params:
    """Every parameter of the language model; layers stacked on the leading axis."""
    width = config.hidden_size
    declaration: Params = {
        "embed": {"w": ParamInfo((config.vocab_size, width), "embedding", axes=("vocab", "embed"))},
        "norm": ParamInfo((width,), "ones", axes=("norm",)),
    }
    for name, layers in config.stacks.items():
        if name == "layers":
            mlp = swiglu_declaration(width, config.intermediate_size, bias=config.mlp_bias)
        else:
            assert config.experts is not None
            mlp = config.experts.declaration(width)
        layer: Params = {
            "attn_norm": ParamInfo((width,), "ones", axes=("norm",)),
            "attn": config.attention.declaration(width),
            "mlp_norm": ParamInfo((width,), "ones", axes=("norm",)),
            "mlp": mlp,
        }
        declaration[name] = stacked(len(layers), layer)
    if not config.tie_word_embeddings:
        declaration["head"] = linear(width, config.vocab_size, axes=("embed", "vocab"))
    return declaration


class Decoded(NamedTuple):
    """What the decoder computes of T tokens.

    Attributes:
        hidden: after the final norm [T, E].
        kv: un-rotated KV [L, T, ·].
        collected: what ``attend`` returned beside its output, stacked over layers.
        observed: what ``observe`` returned, stacked over layers.
        routing: of the layers with experts, stacked; None without.
    """

    hidden: jax.Array
    kv: KV
    collected: Any
    observed: Any
    routing: Routing | None


def decoder(
    params: Params,
    config: DecoderConfig,
    embeds: Float[Array, "T E"],
    positions: Float[Array, "A T"],
    attend: Attend,
    past: Sequence[KV] = (),
    pooled: bool = False,
    observe: Callable[[jax.Array], Any] = lambda x: None,
    absorb: bool | None = None,
    deep: Float[Array, "T d E"] | None = None,
    spread: bool = False,
) -> Decoded:
    """Run the decoder over T tokens; only ``attend`` knows who sees whom.

    Args:
        params: as declared by `text_declaration`; the layers of a stack may also be a tuple of one tree for each, and
            are then run one by one; see `models.blocks.unstacked`.
        config: the language model's configuration.
        embeds: input embeddings.
        positions: absolute positions.
        attend: attention over the S past and T present tokens.
        past: rotated KV of the S tokens before, in parts [L, ·, ·].
        pooled: whether ``attend`` also reads chunks that lie in pools; it is then given the layer's index.
        observe: called with the residual stream [T, E] after every layer, and after what ``deep`` adds to it.
        absorb: whether an MLA attends in the latent space; see `models.blocks.attention.Latent`.
        deep: what is added to the residual stream behind each of the first d layers (DeepStack, arXiv 2406.04334);
            zero at tokens that are no media.
        spread: whether experts may lie on several devices; see `models.blocks.moe.mixture`.
    """
    rotated = rotation(config.rope, positions)

    def layer(x: jax.Array, scanned: tuple[Params, jax.Array]) -> tuple[jax.Array, Any]:
        weights, index = scanned
        before = jax.tree.map(lambda leaf: layer_of(leaf, index), list(past))
        h = rms_norm(x, weights["attn_norm"], config.rms_norm_eps)
        here = index if pooled else None
        turned = partial(rotated, layer=index)
        out, kv, collected = config.attention(weights["attn"], h, turned, before, attend, here, absorb=absorb)
        x = x + out
        h = rms_norm(x, weights["mlp_norm"], config.rms_norm_eps)
        if "router" in weights["mlp"]:
            assert config.experts is not None
            out, routing = mixture(config.experts, weights["mlp"], h, spread=spread)
        else:
            out = swiglu(weights["mlp"], h)
            routing = None
        x = x + out
        if deep is not None:
            levels = deep.shape[1]
            level = jax.lax.dynamic_index_in_dim(deep, jnp.minimum(index, levels - 1), axis=1, keepdims=False)
            x = x + jnp.where(index < levels, level, 0).astype(x.dtype)
        return x, (kv, collected, observe(x), routing)

    x = embeds
    routing = None
    outputs = []
    for name, layers in config.stacks.items():
        run = one_by_one if isinstance(params[name], tuple) else scan
        x, (*output, routing) = run(layer, x, (params[name], jnp.arange(layers.start, layers.stop, dtype=jnp.int32)))
        outputs.append(output)
    kv, collected, observed = jax.tree.map(lambda *stacks: jnp.concatenate(stacks), *outputs)
    return Decoded(rms_norm(x, params["norm"], config.rms_norm_eps), kv, collected, observed, routing)


def embed(params: Params, tokens: jax.Array) -> Float[Array, "T E"]:
    """Token embeddings."""
    return rows(params["embed"]["w"], tokens)


def logits(params: Params, hidden: Float[Array, "n E"]) -> Float[Array, "n V"]:
    """Next-token logits in f32."""
    if "head" in params:
        return dense(params["head"], hidden).astype(jnp.float32)
    return tied_logits(params["embed"]["w"], hidden)


def flops(config: DecoderConfig, tokens: int, slots: int) -> float:
    """FLOPs of T tokens that see S more: products with parameters, scores and weighted sums; no head."""
    attended = 2.0 * tokens * (slots + tokens) * config.attention.score_width
    total = config.num_hidden_layers * attended
    for name in config.stacks:
        declared = text_declaration(config)[name]
        used = {"attn": declared["attn"], **declared["mlp"]}
        sizes: dict[str, float] = {
            part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(used[part], is_leaf=is_info)) for part in used
        }
        if config.experts is not None and "experts" in sizes:
            sizes["experts"] *= config.experts.per_token / config.experts.count
        total += 2.0 * tokens * sum(sizes.values())
    return total
